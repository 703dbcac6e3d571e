//! Unpacked layers: made once, whoever asks, and removed when nobody needs them.
//!
//! Invariants: one job a diff_id (single flight), which goes on when its callers leave; a layer counts only when its record is
//! committed, after its tree is on disk; a failed job leaves nothing.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_chassis::Drain;
use gantry_types::Digest;
use tokio::sync::{Semaphore, watch};

use crate::apply::path_bytes;
use crate::error::Error;
use crate::peers::Store;
use crate::schema::LayerRecord;
use crate::shelf::{Shelf, blocking};
use crate::unpack::unpack;

/// How far a job is.
#[derive(Debug, Clone, Default)]
pub enum Progress {
    /// Not done.
    #[default]
    Running,
    /// The layer is there.
    Done(LayerRecord),
    /// It is not.
    Failed(Arc<Error>),
}

/// A job that others may watch.
#[derive(Debug, Clone)]
pub struct Job {
    /// Compressed bytes read so far.
    pub count: Arc<AtomicU64>,
    /// How it ends.
    pub state: watch::Receiver<Progress>,
}

/// Makes layers.
#[derive(Debug)]
pub struct Layers {
    shelf: Arc<Shelf>,
    store: Store,
    sync: bool,
    slots: Arc<Semaphore>,
    jobs: Mutex<HashMap<Digest, Job>>,
    drain: Drain,
}

impl Layers {
    /// A maker that runs `parallel` jobs at once.
    pub fn new(shelf: Arc<Shelf>, store: Store, config: &crate::Config, drain: Drain) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let parallel = if config.parallel == 0 {
            processors
        } else {
            config.parallel
        };
        Arc::new(Self {
            shelf,
            store,
            sync: config.sync_layers,
            slots: Arc::new(Semaphore::new(parallel)),
            jobs: Mutex::default(),
            drain,
        })
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job that makes a layer: the running one, a new one, or one that has ended as the layer is there.
    pub async fn ensure(self: &Arc<Self>, diff_id: Digest, blob: Digest) -> Job {
        let index = self.shelf.lock().await;
        let (tell, state) = watch::channel(Progress::Running);
        let job = Job {
            count: Arc::default(),
            state,
        };
        if let Some(record) = index.layers.get(&diff_id) {
            let _ = tell.send(Progress::Done(record.clone()));
            return job;
        }
        let mut jobs = self.jobs();
        if let Some(running) = jobs.get(&diff_id) {
            return running.clone();
        }
        jobs.insert(diff_id.clone(), job.clone());
        let (this, count) = (self.clone(), job.count.clone());
        self.drain.spawn("unpack", async move {
            let result = this.make(&diff_id, &blob, count).await;
            this.jobs().remove(&diff_id);
            let _ = tell.send(match result {
                Ok(record) => Progress::Done(record),
                Err(error) => Progress::Failed(Arc::new(error)),
            });
        });
        job
    }

    async fn make(
        &self,
        diff_id: &Digest,
        blob: &Digest,
        count: Arc<AtomicU64>,
    ) -> Result<LayerRecord, Error> {
        let _slot = self.slots.acquire().await.map_err(|_| Error::CutOff)?;
        let path = self.store.blob_path(blob).await?;
        let fresh = self.shelf.files.fresh()?;
        let made = self.fill(diff_id, blob, path, fresh.clone(), count).await;
        if made.is_err() {
            self.shelf.discard(&fresh)?;
        }
        made
    }

    async fn fill(
        &self,
        diff_id: &Digest,
        blob: &Digest,
        path: PathBuf,
        fresh: PathBuf,
        count: Arc<AtomicU64>,
    ) -> Result<LayerRecord, Error> {
        let (id, dir, sync) = (diff_id.clone(), fresh.clone(), self.sync);
        let applied = blocking(move || {
            std::os::unix::fs::chown(&dir, Some(0), Some(0)).map_err(Error::io("own", &dir))?;
            let open = || gantry_sys::tree::open_dir(&dir).map_err(Error::io("open", &dir));
            std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .map_err(Error::io("set the mode of", &dir))?;
            let applied = unpack(&path, &id, open()?, count)?;
            if sync {
                gantry_sys::tree::sync_file_system(open()?).map_err(Error::io("sync", &dir))?;
            }
            Ok(applied)
        })
        .await?;
        let record = LayerRecord {
            blob: blob.to_string(),
            size: applied.size,
            inodes: applied.inodes,
            implicit: applied
                .implicit
                .iter()
                .map(|path| path_bytes(path))
                .collect(),
        };
        let mut index = self.shelf.lock().await;
        self.shelf
            .files
            .publish(&fresh, &self.shelf.files.layer(diff_id))?;
        let mut batch = self.shelf.batch();
        self.shelf
            .layers
            .put(&mut batch, diff_id.to_string().as_bytes(), &record);
        if let Err(error) = self.shelf.commit(batch).await {
            self.shelf.discard(&self.shelf.files.layer(diff_id))?;
            return Err(error);
        }
        index.layers.insert(diff_id.clone(), record.clone());
        tracing::debug!(%diff_id, size = record.size, inodes = record.inodes, "unpacked");
        Ok(record)
    }

    /// Removes layers that no snapshot uses and whose blob the store no longer has.
    ///
    /// # Errors
    /// When the store is away, or the files or the database fail.
    pub async fn collect(&self) -> Result<Vec<Digest>, Error> {
        let unused = |index: &crate::shelf::Index| {
            let used: BTreeSet<&String> = index
                .snapshots
                .values()
                .flat_map(|snapshot| &snapshot.layers)
                .collect();
            index
                .layers
                .iter()
                .filter(|(diff_id, _)| !used.contains(&diff_id.to_string()))
                .map(|(diff_id, record)| (diff_id.clone(), record.blob.clone()))
                .collect::<Vec<_>>()
        };
        let candidates = unused(&*self.shelf.lock().await);
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let blobs = candidates.iter().map(|(_, blob)| blob.clone()).collect();
        let held = self.store.held(blobs).await?;
        let mut index = self.shelf.lock().await;
        let mut removed = Vec::new();
        // Asked again: a snapshot may have been made meanwhile.
        for (diff_id, blob) in unused(&index) {
            if held.contains(&blob) || !candidates.iter().any(|(known, _)| *known == diff_id) {
                continue;
            }
            self.shelf.discard(&self.shelf.files.layer(&diff_id))?;
            let mut batch = self.shelf.batch();
            self.shelf
                .layers
                .delete(&mut batch, diff_id.to_string().as_bytes());
            self.shelf.commit_lazy(batch)?;
            index.layers.remove(&diff_id);
            removed.push(diff_id);
        }
        Ok(removed)
    }

    /// Makes the snapshot's own changes a blob in the store and a layer here. The snapshot stays as it is.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], or what the file system, the store or the unpacking fails with.
    pub async fn commit(
        self: &Arc<Self>,
        key: &str,
        lease: &str,
    ) -> Result<(crate::peers::Stored, Digest), Error> {
        self.shelf.snapshot(key).await?;
        let upper = self.shelf.files.snapshot(key).join("upper");
        let ingest = format!("commit-{key}-{:016x}", rand::random::<u64>());
        let path = self.store.begin(&ingest, lease).await?;
        let packed = blocking({
            let path = path.clone();
            move || crate::diff::pack(&upper, &path)
        })
        .await;
        let diff_id = match packed {
            Ok(diff_id) => diff_id,
            Err(error) => {
                self.store.abort(&ingest).await?;
                return Err(error);
            }
        };
        let stored = self.store.commit(&ingest, lease).await?;
        let mut job = self.ensure(diff_id.clone(), stored.digest.clone()).await;
        wait(&mut job).await?;
        Ok((stored, diff_id))
    }
}

/// Waits until a job has ended.
///
/// # Errors
/// What it failed with.
pub async fn wait(job: &mut Job) -> Result<LayerRecord, Error> {
    let ended = job
        .state
        .wait_for(|state| !matches!(state, Progress::Running))
        .await
        .map_err(|_| Error::CutOff)?;
    match &*ended {
        Progress::Done(record) => Ok(record.clone()),
        Progress::Failed(error) => Err(error.shared()),
        Progress::Running => Err(Error::CutOff),
    }
}

/// Compressed bytes that a job has read.
pub fn read_so_far(job: &Job) -> i64 {
    i64::try_from(job.count.load(Ordering::Relaxed)).unwrap_or(i64::MAX)
}
