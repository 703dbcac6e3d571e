//! Volumes: trees that outlive containers.
//!
//! Invariants: a volume's tree is never half seeded (a copy is made aside and renamed into place); a volume that a snapshot's
//! container uses cannot be removed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use gantry_sys::{fs, tree};

use crate::copy::copy_tree;
use crate::error::Error;
use crate::schema::VolumeRecord;
use crate::shelf::{Shelf, blocking, now};
use crate::snapshot;

/// Checks a volume's name (docker's rule).
fn check_name(name: &str) -> Result<(), Error> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !first || name.len() < 2 || name.len() > 200 || !name.bytes().all(fits) {
        return Err(Error::Field {
            field: "volume name",
            value: name.to_owned(),
            reason: "write 2 to 200 of [A-Za-z0-9_.-], beginning with a letter or digit; a host directory is an absolute path",
        });
    }
    Ok(())
}

fn random_name() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

impl Shelf {
    /// The tree of a volume.
    pub fn volume_data(&self, name: &str) -> PathBuf {
        self.files.volume(name).join("data")
    }

    /// Makes a volume, or finds it; a user is noted either way.
    ///
    /// # Errors
    /// For a name that is none, or a user that is no snapshot.
    pub async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
        user: &str,
    ) -> Result<(String, VolumeRecord), Error> {
        let anonymous = name.is_empty();
        let name = if anonymous {
            random_name()
        } else {
            name.to_owned()
        };
        check_name(&name)?;
        let mut index = self.lock().await;
        if !user.is_empty() && !index.snapshots.contains_key(user) {
            return Err(Error::NoSnapshot(user.to_owned()));
        }
        let known = index.volumes.get(&name).cloned();
        let is_new = known.is_none();
        let mut record = known.unwrap_or_else(|| VolumeRecord {
            labels,
            anonymous,
            created_at: now(),
            users: Vec::new(),
        });
        let is_user = user.is_empty() || record.users.iter().any(|known| known == user);
        if !is_user {
            record.users.push(user.to_owned());
        }
        if is_new {
            let fresh = self.files.fresh()?;
            let data = fresh.join("data");
            std::fs::create_dir(&data).map_err(Error::io("make", &data))?;
            self.files.publish(&fresh, &self.files.volume(&name))?;
        }
        if is_new || !is_user {
            let mut batch = self.batch();
            self.volumes.put(&mut batch, name.as_bytes(), &record);
            if let Err(error) = self.commit(batch).await {
                if is_new {
                    self.discard(&self.files.volume(&name))?;
                }
                return Err(error);
            }
            index.volumes.insert(name.clone(), record.clone());
        }
        Ok((name, record))
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::NoVolume`].
    pub async fn volume(&self, name: &str) -> Result<VolumeRecord, Error> {
        let index = self.lock().await;
        index
            .volumes
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoVolume(name.to_owned()))
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// [`Error::NoVolume`], [`Error::VolumeInUse`].
    pub async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let mut index = self.lock().await;
        let record = index
            .volumes
            .get(name)
            .ok_or_else(|| Error::NoVolume(name.to_owned()))?;
        if !record.users.is_empty() {
            let short = |user: &String| user.chars().take(12).collect::<String>();
            return Err(Error::VolumeInUse {
                name: name.to_owned(),
                users: record
                    .users
                    .iter()
                    .map(short)
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        }
        self.discard(&self.files.volume(name))?;
        let mut batch = self.batch();
        self.volumes.delete(&mut batch, name.as_bytes());
        self.commit_lazy(batch)?;
        index.volumes.remove(name);
        Ok(())
    }

    /// Copies what a snapshot has at `path` into an empty volume. Says whether it did.
    ///
    /// # Errors
    /// When the volume or the snapshot is missing, or the copy fails.
    pub async fn seed_volume(&self, name: &str, key: &str, path: &str) -> Result<bool, Error> {
        // Held all along: nobody else may fill or remove the volume meanwhile.
        let index = self.lock().await;
        if !index.volumes.contains_key(name) {
            return Err(Error::NoVolume(name.to_owned()));
        }
        let record = index
            .snapshots
            .get(key)
            .ok_or_else(|| Error::NoSnapshot(key.to_owned()))?;
        let data = self.volume_data(name);
        let mut entries = std::fs::read_dir(&data).map_err(Error::io("list", &data))?;
        if entries.next().is_some() {
            return Ok(false);
        }
        let mut view = record.clone();
        view.readonly = true;
        let mounts = snapshot::mounts(&self.files, key, &view)?;
        let (fresh, path) = (self.files.fresh()?, PathBuf::from(path));
        let work = (fresh.clone(), data.clone());
        let copied = blocking(move || seed(&mounts, &path, &work.0, &work.1)).await;
        self.discard(&fresh)?;
        copied
    }
}

/// Mounts the snapshot without a place, and copies from it.
fn seed(mounts: &[snapshot::Mount], path: &Path, fresh: &Path, data: &Path) -> Result<bool, Error> {
    let Some(mounted) =
        snapshot::without_place(mounts).map_err(Error::io("mount the snapshot for", data))?
    else {
        return Ok(false);
    };
    let from = match fs::open_in_root(mounted.fd(), path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(Error::io("open", path))?,
    };
    if tree::stat_at(&from, OsStr::new(""))
        .map_err(Error::io("read", path))?
        .kind
        != tree::Kind::Dir
    {
        return Ok(false);
    }
    let from = tree::open_dir_at(&from, OsStr::new(".")).map_err(Error::io("open", path))?;
    let copy = fresh.join("data");
    std::fs::create_dir(&copy).map_err(Error::io("make", &copy))?;
    let to = tree::open_dir(&copy).map_err(Error::io("open", &copy))?;
    copy_tree(from.as_fd(), to.as_fd())
        .map_err(Error::io("copy the image's content into", data))?;
    // Onto the empty directory: one step, so a volume is empty or complete.
    std::fs::rename(&copy, data).map_err(Error::io("fill", data))?;
    Ok(true)
}
