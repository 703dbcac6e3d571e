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

use futures_util::future::{BoxFuture, Shared, WeakShared};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use gantry_chassis::Fault;
use gantry_types::{Digest, ErrorKind};

use crate::document::Descriptor;
use crate::error::Error;
use crate::peers::{Peers, Staging};
use crate::remote::{Download, Remote};
use crate::remotes::Remotes;

/// A rest of a blob that is at least this long is fetched in pieces, bytes.
const LARGE: u64 = 64 << 20;
/// Length of a piece, bytes; each that is on its way is held in memory.
const PIECE: u64 = 4 << 20;

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
    pub remotes: Arc<Remotes>,
    /// To whom.
    pub peers: Peers,
    /// The image, as users type it.
    pub image: String,
    /// Tries without progress.
    pub attempts: u32,
    /// Pieces of a large blob that are fetched at once.
    pub ranges: usize,
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
        let (mut tries, mut furthest, mut nth) = (0, 0, 0);
        let mut pause = Duration::from_millis(200);
        loop {
            let error = match self.attempt(blob, count, nth).await {
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
            nth += 1;
            let useless = matches!(error, Error::Wrong { .. } | Error::Write { .. });
            if useless {
                // Bytes that are no use must not be there for the next try, nor fill the disk.
                let _ = self.peers.abort(&blob.digest).await;
            }
            // What one way does not have, or has wrong, another may have right.
            let elsewhere = nth < self.remotes.count()
                && matches!(
                    error,
                    Error::NoImage { .. } | Error::Denied { .. } | Error::Wrong { .. }
                );
            if !elsewhere && (!error.is_passing() || tries >= self.attempts) {
                return Err(error.after(tries));
            }
            tracing::debug!(digest = %blob.digest, %error, reached, "a download broke off; trying again");
            if elsewhere {
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn attempt(&self, blob: &Descriptor, count: &AtomicU64, nth: usize) -> Fetched {
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
            let Some(remote) = self.remotes.at(nth) else {
                return Err(self.wrong(blob, "no host may be asked for it"));
            };
            let download = Transfer {
                job: self,
                remote,
                blob,
                path: &path,
                count,
            };
            download.run(offset).await?;
        }
        match self.peers.commit(&blob.digest, blob.size).await {
            Ok(()) => Ok(true),
            Err(fault) if fault.kind == ErrorKind::Corrupt => Err(self.wrong(blob, fault.message)),
            Err(fault) => Err(self.peer(fault)),
        }
    }
}

/// One try at the bytes of one blob.
struct Transfer<'a> {
    job: &'a Job,
    remote: &'a Arc<Remote>,
    blob: &'a Descriptor,
    path: &'a Path,
    count: &'a AtomicU64,
}

impl Transfer<'_> {
    fn failed(&self, error: &std::io::Error) -> Error {
        Error::Write {
            digest: self.blob.digest.clone(),
            path: self.path.to_owned(),
            full: matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            reason: error.to_string(),
        }
    }

    fn broken_off(&self, at: u64) -> Error {
        self.remote.away(format!(
            "layer {}: the connection ended after {at} of {} bytes",
            self.blob.digest, self.blob.size
        ))
    }

    /// Fetches from an offset on: as one stream, or a large rest in pieces side by side.
    async fn run(&self, offset: u64) -> Result<(), Error> {
        let in_pieces = self.job.ranges > 1 && self.blob.size - offset >= LARGE;
        let until = in_pieces.then_some(offset + PIECE);
        let digest = &self.blob.digest;
        let first = self.remote.blob(digest, offset, until).await?;
        let mut file = std::fs::File::options()
            .write(true)
            .open(self.path)
            .map_err(|error| self.failed(&error))?;
        file.set_len(first.offset)
            .and_then(|()| file.seek(SeekFrom::Start(first.offset)))
            .map_err(|error| self.failed(&error))?;
        self.count.store(first.offset, Ordering::Relaxed);
        if in_pieces && first.partial {
            self.pieces(first, offset, &mut file).await
        } else {
            self.stream(first, &mut file).await
        }
    }

    async fn stream(&self, mut download: Download, file: &mut std::fs::File) -> Result<(), Error> {
        let (size, mut at) = (self.blob.size, download.offset);
        if let Some(length) = download.length
            && at + length != size
        {
            let reason = format!(
                "the registry sends {} bytes, the manifest says {size}",
                at + length
            );
            return Err(self.job.wrong(self.blob, reason));
        }
        while let Some(piece) = self.remote.piece(&mut download.response).await? {
            if at + piece.len() as u64 > size {
                let reason =
                    format!("the registry sends more than the {size} bytes that the manifest says");
                return Err(self.job.wrong(self.blob, reason));
            }
            file.write_all(&piece)
                .map_err(|error| self.failed(&error))?;
            at += piece.len() as u64;
            self.count.store(at, Ordering::Relaxed);
        }
        if at < size {
            return Err(self.broken_off(at));
        }
        Ok(())
    }

    /// Pieces arrive in any order and are written in theirs, so that what is in the file is always a beginning of the blob.
    async fn pieces(
        &self,
        first: Download,
        offset: u64,
        file: &mut std::fs::File,
    ) -> Result<(), Error> {
        let size = self.blob.size;
        let begins: Vec<u64> = (offset..size)
            .step_by(usize::try_from(PIECE).unwrap_or(usize::MAX))
            .collect();
        let mut first = Some(first);
        let mut pieces = stream::iter(begins)
            .map(|from| {
                let open = first.take();
                async move {
                    let until = (from + PIECE).min(size);
                    let mut download = match open {
                        Some(download) => download,
                        None => {
                            let digest = &self.blob.digest;
                            self.remote.blob(digest, from, Some(until)).await?
                        }
                    };
                    let length = usize::try_from(until - from).unwrap_or(usize::MAX);
                    let mut bytes = Vec::with_capacity(length);
                    while let Some(piece) = self.remote.piece(&mut download.response).await? {
                        bytes.extend_from_slice(&piece);
                        if !download.partial || bytes.len() > length {
                            let reason = "the registry answers with another range";
                            return Err(self.job.wrong(self.blob, reason));
                        }
                    }
                    if bytes.len() < length {
                        return Err(self.broken_off(from + bytes.len() as u64));
                    }
                    Ok(bytes)
                }
            })
            .buffered(self.job.ranges);
        let mut at = offset;
        while let Some(bytes) = pieces.next().await {
            let bytes = bytes?;
            file.write_all(&bytes)
                .map_err(|error| self.failed(&error))?;
            at += bytes.len() as u64;
            self.count.store(at, Ordering::Relaxed);
        }
        Ok(())
    }
}
