//! The database: opening, the schema gate, batches and their group flush.
//!
//! Invariants: sled is named in this crate only; one thread flushes, and every commit that arrived before a flush began
//! is answered by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Error;

/// sled's default cache is 1 GiB; our databases are small and an idle service must stay so.
const CACHE_BYTES: u64 = 2 << 20;
/// A killed process's lock is gone when the kernel has closed its files, which can take a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Key of the schema version, under the tag 0.
const VERSION_KEY: &[u8] = b"\0version";

/// One step from a schema version to the next. Applying it twice must be the same as once.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The version that it makes.
    pub to: u32,
    /// Does it.
    pub run: fn(&Db) -> Result<(), Error>,
}

/// Changes that become visible together.
#[derive(Debug, Default)]
pub struct Batch(sled::Batch);

impl Batch {
    pub(crate) fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.0.remove(key);
    }
}

type Flushed = Result<(), Error>;

#[derive(Debug)]
struct Inner {
    tree: sled::Db,
    flusher: mpsc::Sender<Option<oneshot::Sender<Flushed>>>,
}

/// An open database; clones share it.
#[derive(Debug, Clone)]
pub struct Db(Arc<Inner>);

fn engine(action: &'static str) -> impl Fn(sled::Error) -> Error {
    move |source| Error::Engine { action, source }
}

fn open_tree(dir: &Path) -> Result<sled::Db, Error> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        // No flush timer: every commit asks for its flush.
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        match config.open() {
            Ok(tree) => return Ok(tree),
            // sled reports a held lock as an Io error of kind Other.
            Err(sled::Error::Io(error)) if error.kind() == std::io::ErrorKind::Other => {
                if Instant::now() >= give_up {
                    return Err(Error::Locked {
                        path: dir.to_owned(),
                    });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => {
                return Err(Error::Engine {
                    action: "open database",
                    source,
                });
            }
        }
    }
}

/// Answers commits: one flush for all that wait.
fn flush_loop(tree: &sled::Db, requests: &mpsc::Receiver<Option<oneshot::Sender<Flushed>>>) {
    while let Ok(first) = requests.recv() {
        let mut waiting: Vec<_> = first.into_iter().collect();
        waiting.extend(requests.try_iter().flatten());
        let result = tree.flush();
        for waiter in waiting {
            let answer = match &result {
                Ok(_) => Ok(()),
                Err(source) => Err(Error::Engine {
                    action: "flush database",
                    source: source.clone(),
                }),
            };
            // The committer may have been cancelled; its change is written all the same.
            let _ = waiter.send(answer);
        }
    }
}

impl Db {
    /// Opens or makes the database in `dir` at schema `version`. An older one is copied aside to
    /// `<dir>.v<old>` and migrated; a newer one is refused.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process keeps it, [`Error::TooNew`], or what sled or a migration reports.
    pub fn open(dir: &Path, version: u32, migrations: &[Migration]) -> Result<Db, Error> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io {
            action: "make",
            path: dir.to_owned(),
            source,
        })?;
        let tree = open_tree(dir)?;
        let stored = tree
            .get(VERSION_KEY)
            .map_err(engine("read schema version"))?;
        let found = stored
            .and_then(|v| v.as_ref().try_into().ok())
            .map(u32::from_le_bytes);
        let (tree, found) = match found {
            Some(found) if found > version => {
                return Err(Error::TooNew {
                    path: dir.to_owned(),
                    found,
                    known: version,
                });
            }
            Some(found) if found < version => {
                drop(tree);
                copy_aside(dir, found)?;
                (open_tree(dir)?, found)
            }
            _ => (tree, version),
        };
        let (flusher, requests) = mpsc::channel();
        let thread_tree = tree.clone();
        std::thread::Builder::new()
            .name("meta-flush".into())
            .stack_size(256 << 10)
            .spawn(move || flush_loop(&thread_tree, &requests))
            .map_err(|source| Error::Io {
                action: "start the flush thread for",
                path: dir.to_owned(),
                source,
            })?;
        let db = Db(Arc::new(Inner { tree, flusher }));
        for migration in migrations
            .iter()
            .filter(|step| step.to > found && step.to <= version)
        {
            (migration.run)(&db)?;
        }
        db.0.tree
            .insert(VERSION_KEY, &version.to_le_bytes())
            .map_err(engine("write schema version"))?;
        db.0.tree.flush().map_err(engine("flush database"))?;
        Ok(db)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::default()
    }

    /// Applies a batch and returns once it is on disk. Commits that arrive together share one flush.
    ///
    /// # Errors
    /// What sled reports; the batch may then be applied but not durable.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        self.0
            .tree
            .apply_batch(batch.0)
            .map_err(engine("write database"))?;
        let (done, waited) = oneshot::channel();
        self.0.flusher.send(Some(done)).map_err(|_| Error::Closed)?;
        waited.await.map_err(|_| Error::Closed)?
    }

    /// Applies a batch without waiting; it reaches the disk with the flush that this asks for.
    ///
    /// # Errors
    /// What sled reports.
    pub fn commit_lazy(&self, batch: Batch) -> Result<(), Error> {
        self.0
            .tree
            .apply_batch(batch.0)
            .map_err(engine("write database"))?;
        self.0.flusher.send(None).map_err(|_| Error::Closed)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, Error> {
        self.0.tree.get(key).map_err(engine("read database"))
    }

    pub(crate) fn prefix(
        &self,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), Error>> + use<> {
        self.0.tree.scan_prefix(prefix).map(pair)
    }

    pub(crate) fn range(
        &self,
        from: Vec<u8>,
        tag: u8,
    ) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), Error>> + use<> {
        self.0
            .tree
            .range(from..)
            .map(pair)
            .take_while(move |found| match found {
                Ok((key, _)) => key.first() == Some(&tag),
                Err(_) => true,
            })
    }
}

fn pair(found: sled::Result<(sled::IVec, sled::IVec)>) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (key, value) = found.map_err(engine("read database"))?;
    Ok((key.to_vec(), value.to_vec()))
}

/// Copies the files of a database before it is changed, so that the older version can be run again.
fn copy_aside(dir: &Path, version: u32) -> Result<(), Error> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".v{version}"));
    let target = dir.with_file_name(name);
    copy_tree(dir, &target).map_err(|(path, source)| Error::Io {
        action: "copy aside",
        path,
        source,
    })
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| (path, source)
    };
    std::fs::create_dir_all(to).map_err(at(to))?;
    for entry in std::fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(at(from))?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).map_err(at(&target))?;
        }
    }
    Ok(())
}
