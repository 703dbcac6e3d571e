//! The records of layers, snapshots and volumes, in memory and in the database.
//!
//! Invariants: the index and the database change together, under one lock, the database first; a snapshot's layers are never
//! removed while it is there, nor a volume that one uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use gantry_meta::{Batch, Db, Table};
use gantry_types::Digest;
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::error::Error;
use crate::files::Files;
use crate::schema::{self, LayerRecord, SnapshotRecord, VolumeRecord};

/// Everything that is known, by name.
#[derive(Debug, Default)]
pub struct Index {
    /// Unpacked layers.
    pub layers: BTreeMap<Digest, LayerRecord>,
    /// Snapshots.
    pub snapshots: BTreeMap<String, SnapshotRecord>,
    /// Volumes.
    pub volumes: BTreeMap<String, VolumeRecord>,
}

/// Records and files.
#[derive(Debug)]
pub struct Shelf {
    db: Db,
    /// By diff_id.
    pub layers: Table<LayerRecord>,
    /// By key.
    pub snapshots: Table<SnapshotRecord>,
    /// By name.
    pub volumes: Table<VolumeRecord>,
    /// The folder.
    pub files: Files,
    index: Mutex<Index>,
    /// There is something in the trash.
    pub trash_soon: Arc<Notify>,
}

impl Shelf {
    /// Opens the records and makes them agree with the files.
    ///
    /// # Errors
    /// When the database or the folder is unusable.
    pub fn open(root: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(root).map_err(Error::io("make", root))?;
        let db = Db::open(&root.join("db"), schema::VERSION, &[])?;
        let shelf = Self {
            layers: Table::new(&db, schema::LAYERS),
            snapshots: Table::new(&db, schema::SNAPSHOTS),
            volumes: Table::new(&db, schema::VOLUMES),
            files: Files::open(root)?,
            index: Mutex::default(),
            trash_soon: Arc::new(Notify::new()),
            db,
        };
        let mut index = Index::default();
        let name = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
        for (key, record) in shelf.layers.scan()? {
            if let Ok(diff_id) = name(key).parse() {
                index.layers.insert(diff_id, record);
            }
        }
        for (key, record) in shelf.snapshots.scan()? {
            index.snapshots.insert(name(key), record);
        }
        for (key, record) in shelf.volumes.scan()? {
            index.volumes.insert(name(key), record);
        }
        shelf.reconcile(&mut index)?;
        Ok(Self {
            index: Mutex::new(index),
            ..shelf
        })
    }

    /// Drops records without files and files without records: both are removals or creations that were cut off.
    fn reconcile(&self, index: &mut Index) -> Result<(), Error> {
        let mut batch = self.db.batch();
        index.layers.retain(|diff_id, _| {
            let there = self.files.layer(diff_id).is_dir();
            if !there {
                self.layers
                    .delete(&mut batch, diff_id.to_string().as_bytes());
            }
            there
        });
        index.snapshots.retain(|key, _| {
            let there = self.files.snapshot(key).is_dir();
            if !there {
                self.snapshots.delete(&mut batch, key.as_bytes());
            }
            there
        });
        let keys: BTreeSet<String> = index.snapshots.keys().cloned().collect();
        index.volumes.retain(|name, record| {
            let there = self.files.volume(name).is_dir();
            if !there {
                self.volumes.delete(&mut batch, name.as_bytes());
            }
            record.users.retain(|user| keys.contains(user));
            there
        });
        self.db.commit_lazy(batch)?;
        let known: BTreeSet<_> = index.layers.keys().map(|id| self.files.layer(id)).collect();
        for name in self.files.list("layers")? {
            let path = self.files.empty().with_file_name("layers").join(name);
            if !known.contains(&path) {
                self.files.discard(&path)?;
            }
        }
        for key in self.files.list("snapshots")? {
            if !index.snapshots.contains_key(&key) {
                self.files.discard(&self.files.snapshot(&key))?;
            }
        }
        for name in self.files.list("volumes")? {
            if !index.volumes.contains_key(&name) {
                self.files.discard(&self.files.volume(&name))?;
            }
        }
        self.trash_soon.notify_one();
        Ok(())
    }

    /// The index, for one change or one look.
    pub async fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().await
    }

    /// Writes to be committed.
    pub fn batch(&self) -> Batch {
        self.db.batch()
    }

    /// Commits and waits until it is on disk.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        Ok(self.db.commit(batch).await?)
    }

    /// Commits what start-up would find out again.
    ///
    /// # Errors
    /// When the database fails.
    pub fn commit_lazy(&self, batch: Batch) -> Result<(), Error> {
        Ok(self.db.commit_lazy(batch)?)
    }

    /// Moves a folder into the trash and has it removed soon.
    ///
    /// # Errors
    /// When the rename fails.
    pub fn discard(&self, path: &Path) -> Result<(), Error> {
        self.files.discard(path)?;
        self.trash_soon.notify_one();
        Ok(())
    }
}

/// Unix time in nanoseconds.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

/// Runs something that blocks on a thread for that.
///
/// # Errors
/// What it fails with.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::CutOff)?
}
