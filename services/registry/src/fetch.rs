//! One blob from a registry into the store: resumed, bounded, watched for stalls, and fetched once for all who want it.
//!
//! Invariants: no more bytes are written than the blob has; what has arrived stays for the next attempt, unless it is wrong; the
//! download stops when nobody waits for it any more.

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use gantry_chassis::Fault;
use gantry_types::{Digest, ErrorKind};

use crate::document::Descriptor;
use crate::error::Error;
use crate::peers::{Peers, Staging};
use crate::remote::Remote;

/// Whether bytes came over the network.
type Fetched = Result<bool, Error>;
type Future = BoxFuture<'static, Fetched>;

/// A download that others may join.
#[derive(Clone)]
pub struct Flight {
    /// Bytes of it that are there.
    pub count: Arc<AtomicU64>,
    /// How it ends.
    pub ended: Shared<Future>,
}

struct Running {
    count: Arc<AtomicU64>,
    ended: WeakShared<Future>,
}

/// The downloads that run.
#[derive(Default)]
pub struct Fetcher {
    running: Mutex<HashMap<Digest, Running>>,
}

/// What one download needs.
#[derive(Clone)]
pub struct Job {
    /// From where.
    pub remote: Arc<Remote>,
    /// To whom.
    pub peers: Peers,
    /// The image, as users type it.
    pub image: String,
    /// Tries without progress.
    pub attempts: u32,
}

impl Fetcher {
    /// The download of a blob: one that runs, or a new one. It goes on only while somebody waits.
    pub fn fetch(&self, job: &Job, blob: &Descriptor) -> Flight {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, flight| flight.ended.upgrade().is_some_and(|f| f.peek().is_none()));
        if let Some(flight) = running.get(&blob.digest)
            && let Some(ended) = flight.ended.upgrade()
        {
            return Flight {
                count: flight.count.clone(),
                ended,
            };
        }
        let count = Arc::new(AtomicU64::new(0));
        let (job, own, counter) = (job.clone(), blob.clone(), count.clone());
        let ended = async move { job.run(&own, &counter).await }
            .boxed()
            .shared();
        if let Some(weak) = ended.downgrade() {
            let flight = Running {
                count: count.clone(),
                ended: weak,
            };
            running.insert(blob.digest.clone(), flight);
        }
        Flight { count, ended }
    }
}

impl Job {
    fn peer(&self, fault: Fault) -> Error {
        Error::Peer {
            image: self.image.clone(),
            fault,
        }
    }

    fn wrong(&self, blob: &Descriptor, reason: impl Into<String>) -> Error {
        Error::Wrong {
            image: self.image.clone(),
            what: format!("layer {}", blob.digest),
            reason: reason.into(),
        }
    }

    async fn run(&self, blob: &Descriptor, count: &AtomicU64) -> Fetched {
        let (mut tries, mut furthest) = (0, 0);
        let mut pause = Duration::from_millis(200);
        loop {
            let error = match self.attempt(blob, count).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            let reached = count.load(Ordering::Relaxed);
            if reached > furthest {
                furthest = reached;
                tries = 0;
                pause = Duration::from_millis(200);
            }
            tries += 1;
            if !error.is_passing() || tries >= self.attempts {
                if matches!(error, Error::Wrong { .. } | Error::Write { .. }) {
                    // Bytes that are no use must not be there for the next try, nor fill the disk.
                    let _ = self.peers.abort(&blob.digest).await;
                }
                return Err(match error {
                    Error::Stalled {
                        image,
                        registry,
                        seconds,
                        ..
                    } => Error::Stalled {
                        image,
                        registry,
                        seconds,
                        attempts: tries,
                    },
                    other => other,
                });
            }
            tracing::debug!(digest = %blob.digest, %error, reached, "a download broke off; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn attempt(&self, blob: &Descriptor, count: &AtomicU64) -> Fetched {
        let staging = self
            .peers
            .begin(&blob.digest, blob.size)
            .await
            .map_err(|fault| self.peer(fault))?;
        let (path, mut offset) = match staging {
            Staging::Exists => {
                count.store(blob.size, Ordering::Relaxed);
                return Ok(false);
            }
            Staging::File(path, offset) => (path, offset),
        };
        if offset > blob.size {
            offset = 0;
        }
        count.store(offset, Ordering::Relaxed);
        if offset < blob.size || blob.size == 0 {
            self.download(blob, &path, offset, count).await?;
        }
        match self.peers.commit(&blob.digest, blob.size).await {
            Ok(()) => Ok(true),
            Err(fault) if fault.kind == ErrorKind::Corrupt => Err(self.wrong(blob, fault.message)),
            Err(fault) => Err(self.peer(fault)),
        }
    }

    async fn download(
        &self,
        blob: &Descriptor,
        path: &Path,
        offset: u64,
        count: &AtomicU64,
    ) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::Write {
            digest: blob.digest.clone(),
            path: path.to_owned(),
            full: matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            reason: error.to_string(),
        };
        let mut download = self.remote.blob(&blob.digest, offset).await?;
        let mut at = download.offset;
        if let Some(length) = download.length
            && at + length != blob.size
        {
            return Err(self.wrong(
                blob,
                format!(
                    "the registry sends {} bytes, the manifest says {}",
                    at + length,
                    blob.size
                ),
            ));
        }
        let mut file = std::fs::File::options()
            .write(true)
            .open(path)
            .map_err(failed)?;
        file.set_len(at).map_err(failed)?;
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        count.store(at, Ordering::Relaxed);
        while let Some(piece) = self.remote.piece(&mut download.response).await? {
            if at + piece.len() as u64 > blob.size {
                return Err(self.wrong(
                    blob,
                    format!(
                        "the registry sends more than the {} bytes that the manifest says",
                        blob.size
                    ),
                ));
            }
            file.write_all(&piece).map_err(failed)?;
            at += piece.len() as u64;
            count.store(at, Ordering::Relaxed);
        }
        if at < blob.size {
            return Err(Error::Away {
                image: self.image.clone(),
                registry: self.remote.registry().to_owned(),
                reason: format!(
                    "layer {}: the connection ended after {at} of {} bytes",
                    blob.digest, blob.size
                ),
            });
        }
        Ok(())
    }
}
