//! Writable and read-only trees on top of layers.
//!
//! Invariants: a snapshot is made whole under `new/` and renamed to its name; its mounts are a pure function of its record;
//! options that make what is written to it readable as a layer (no redirects, no metadata-only copies) are always set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gantry_types::Digest;

use crate::apply::path_from;
use crate::error::Error;
use crate::files::Files;
use crate::meta;
use crate::schema::SnapshotRecord;
use crate::shelf::{Index, Shelf, now};

/// A mount that makes the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// "overlay" or "bind".
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// As in mount(8).
    pub options: Vec<String>,
}

/// Checks a key.
///
/// # Errors
/// Names the field.
pub fn check_key(key: &str) -> Result<(), Error> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if key.is_empty() || key.len() > 128 || !key.bytes().all(fits) || key.starts_with('.') {
        return Err(Error::Field {
            field: "key",
            value: key.to_owned(),
            reason: "write 1 to 128 of [A-Za-z0-9_.-], not beginning with a dot",
        });
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Directories of a snapshot's layers, highest first, as overlayfs wants them.
pub fn lower(files: &Files, key: &str, record: &SnapshotRecord) -> Result<Vec<PathBuf>, Error> {
    let mut dirs = Vec::new();
    if record.meta {
        dirs.push(files.snapshot(key).join("meta"));
    }
    for layer in record.layers.iter().rev() {
        dirs.push(files.layer(&layer.parse()?));
    }
    if dirs.is_empty() {
        dirs.push(files.empty());
    }
    Ok(dirs)
}

/// How to make the root file system.
///
/// # Errors
/// When a record holds no digest.
pub fn mounts(files: &Files, key: &str, record: &SnapshotRecord) -> Result<Vec<Mount>, Error> {
    let dirs = lower(files, key, record)?;
    if record.readonly
        && let [only] = dirs.as_slice()
    {
        return Ok(vec![Mount {
            kind: "bind",
            source: text(only),
            options: vec!["rbind".into(), "ro".into()],
        }]);
    }
    let more = if record.readonly {
        vec!["ro".into()]
    } else {
        let home = files.snapshot(key);
        vec![
            format!("upperdir={}", text(&home.join("upper"))),
            format!("workdir={}", text(&home.join("work"))),
        ]
    };
    Ok(vec![overlay(&dirs, more)])
}

fn overlay(dirs: &[PathBuf], more: Vec<String>) -> Mount {
    let joined: Vec<String> = dirs.iter().map(|dir| text(dir)).collect();
    let mut options = vec![format!("lowerdir={}", joined.join(":"))];
    options.extend(more);
    options.extend(["index=off", "redirect_dir=off", "metacopy=off"].map(str::to_owned));
    Mount {
        kind: "overlay",
        source: "overlay".into(),
        options,
    }
}

/// How to look at a snapshot with its own changes, without touching it: they are the highest of the layers.
///
/// # Errors
/// When a record holds no digest.
pub fn look(files: &Files, key: &str, record: &SnapshotRecord) -> Result<Vec<Mount>, Error> {
    if record.readonly {
        return mounts(files, key, record);
    }
    let mut dirs = vec![files.snapshot(key).join("upper")];
    dirs.extend(lower(files, key, record)?);
    Ok(vec![overlay(&dirs, vec!["ro".into()])])
}

fn stack(shelf: &Shelf, index: &Index, layers: &[Digest]) -> Result<Vec<meta::Layer>, Error> {
    let one = |diff_id: &Digest| {
        let record = index
            .layers
            .get(diff_id)
            .ok_or_else(|| Error::NoLayer(diff_id.clone()))?;
        Ok(meta::Layer {
            dir: shelf.files.layer(diff_id),
            implicit: record
                .implicit
                .iter()
                .map(|path| path_from(path))
                .collect::<BTreeSet<_>>(),
        })
    };
    layers.iter().map(one).collect()
}

/// Makes the folder of a snapshot. Says whether it needed a `meta` tree.
fn make(home: &Path, stack: &[meta::Layer]) -> std::io::Result<bool> {
    for part in ["upper", "work", "meta"] {
        std::fs::create_dir(home.join(part))?;
    }
    let needed = meta::build(stack, &home.join("meta"))?;
    if !needed {
        std::fs::remove_dir(home.join("meta"))?;
    }
    if let Some(root) = meta::root_source(stack)? {
        meta::copy_attributes(root, &home.join("upper"))?;
    }
    Ok(needed)
}

/// The root of a snapshot as a mount without a place; `None` = it has none.
///
/// # Errors
/// When the kernel refuses.
pub fn without_place(mounts: &[Mount]) -> std::io::Result<Option<gantry_sys::mount::Detached>> {
    use gantry_sys::mount;
    let Some(root) = mounts.first() else {
        return Ok(None);
    };
    let options = mount::Options::parse(&root.options);
    if root.kind == "bind" {
        return mount::copy_of(Path::new(&root.source), true).map(Some);
    }
    let make = || mount::new_fs(root.kind, &root.source, &options.data);
    gantry_sys::ns::aside(make).map(Some)
}

impl Shelf {
    /// Makes a snapshot, or finds the one that was made under the same key from the same layers.
    ///
    /// # Errors
    /// [`Error::NoLayer`], [`Error::Taken`].
    pub async fn prepare(
        &self,
        key: &str,
        layers: &[Digest],
        holder: &str,
        readonly: bool,
    ) -> Result<SnapshotRecord, Error> {
        check_key(key)?;
        let texts: Vec<String> = layers.iter().map(Digest::to_string).collect();
        let mut index = self.lock().await;
        if let Some(known) = index.snapshots.get(key) {
            if known.layers == texts && known.readonly == readonly {
                return Ok(known.clone());
            }
            return Err(Error::Taken(key.to_owned()));
        }
        let stack = stack(self, &index, layers)?;
        let fresh = self.files.fresh()?;
        let made = make(&fresh, &stack).map_err(Error::io("prepare snapshot in", &fresh));
        let published = made.and_then(|meta| {
            self.files
                .publish(&fresh, &self.files.snapshot(key))
                .map(|()| meta)
        });
        let meta = match published {
            Ok(meta) => meta,
            Err(error) => {
                self.discard(&fresh)?;
                return Err(error);
            }
        };
        let record = SnapshotRecord {
            layers: texts,
            holder: holder.to_owned(),
            readonly,
            meta,
            created_at: now(),
        };
        let mut batch = self.batch();
        self.snapshots.put(&mut batch, key.as_bytes(), &record);
        if let Err(error) = self.commit(batch).await {
            self.discard(&self.files.snapshot(key))?;
            return Err(error);
        }
        index.snapshots.insert(key.to_owned(), record.clone());
        Ok(record)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`].
    pub async fn snapshot(&self, key: &str) -> Result<SnapshotRecord, Error> {
        let index = self.lock().await;
        index
            .snapshots
            .get(key)
            .cloned()
            .ok_or_else(|| Error::NoSnapshot(key.to_owned()))
    }

    /// Removes a snapshot and lets go of its volumes. What is gone already is a success.
    ///
    /// # Errors
    /// When the files or the database fail.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        check_key(key)?;
        let mut index = self.lock().await;
        self.remove_locked(&mut index, key)
    }

    fn remove_locked(&self, index: &mut Index, key: &str) -> Result<(), Error> {
        if index.snapshots.contains_key(key) {
            // The files first: a record without files is dropped at start-up, so the record need not wait.
            self.discard(&self.files.snapshot(key))?;
        }
        let mut batch = self.batch();
        self.snapshots.delete(&mut batch, key.as_bytes());
        for (name, volume) in &mut index.volumes {
            if volume.users.iter().any(|user| user == key) {
                volume.users.retain(|user| user != key);
                self.volumes.put(&mut batch, name.as_bytes(), volume);
            }
        }
        self.commit_lazy(batch)?;
        index.snapshots.remove(key);
        Ok(())
    }

    /// Removes the holder's snapshots that are not in `keys`.
    ///
    /// # Errors
    /// When the files or the database fail.
    pub async fn sync_snapshots(
        &self,
        holder: &str,
        keys: &BTreeSet<String>,
    ) -> Result<Vec<String>, Error> {
        let mut index = self.lock().await;
        let leaked: Vec<String> = index
            .snapshots
            .iter()
            .filter(|(key, record)| record.holder == holder && !keys.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &leaked {
            self.remove_locked(&mut index, key)?;
        }
        Ok(leaked)
    }
}
