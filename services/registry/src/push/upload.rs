//! One blob to a registry: not sent when it is there, taken over from another repository where that is possible, else sent in
//! chunks, each going on where the registry says that it is.
//!
//! Invariants: a stall is a chunk of which nothing moves for too long, however long the whole takes; a session that the registry has
//! forgotten is begun anew. Source: OCI distribution specification v1.1, "Pushing blobs".

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use gantry_types::Reference;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio::sync::OnceCell;
use tokio_util::io::ReaderStream;

use crate::document::Descriptor;
use crate::error::Error;
use crate::peers::Peers;
use crate::progress::{Line, Phase};
use crate::remote::Remote;

/// Length of a chunk, bytes: what is sent again at most when a connection breaks.
const CHUNK: u64 = 64 << 20;
/// Images of the same registry that are looked at for blobs to mount.
const MOST_SOURCES: usize = 200;

/// Which repository of the destination's registry has which blob, as far as names in the store tell.
pub struct Mounts {
    peers: Peers,
    destination: Reference,
    known: OnceCell<HashMap<String, String>>,
}

impl Mounts {
    /// Looked up when first needed.
    pub fn new(peers: Peers, destination: Reference) -> Self {
        Self {
            peers,
            destination,
            known: OnceCell::new(),
        }
    }

    /// A repository that should have the blob.
    async fn source(&self, digest: &str) -> Option<String> {
        let known = self.known.get_or_init(|| self.look()).await;
        known.get(digest).cloned()
    }

    /// A failure costs the mounts, not the push.
    async fn look(&self) -> HashMap<String, String> {
        let mut known = HashMap::new();
        let images = self.peers.images().await.unwrap_or_default();
        let others = images.into_iter().filter_map(|(name, target)| {
            let reference: Reference = name.parse().ok()?;
            let other = reference.registry() == self.destination.registry()
                && reference.repository() != self.destination.repository();
            other.then(|| (reference.repository().to_owned(), target))
        });
        for (repository, target) in others.take(MOST_SOURCES) {
            let Ok(tree) = super::Tree::read(&self.peers, &repository, target).await else {
                continue;
            };
            for blob in tree.held().flat_map(|node| &node.blobs) {
                known.insert(blob.digest.to_string(), repository.clone());
            }
        }
        known
    }
}

/// One blob that is to be there.
pub struct Upload<'a> {
    /// Where.
    pub remote: &'a Arc<Remote>,
    /// Who may have it.
    pub mounts: &'a Mounts,
    /// What.
    pub blob: &'a Descriptor,
    /// Its bytes.
    pub path: &'a Path,
    /// For those who watch.
    pub line: Arc<Line>,
    /// Tries without progress.
    pub attempts: u32,
}

impl Upload<'_> {
    fn what(&self) -> String {
        format!("layer {}", self.blob.digest)
    }

    fn unreadable(&self, error: &std::io::Error) -> Error {
        self.remote.wrong(
            self.what(),
            format!("read {}: {error}", self.path.display()),
        )
    }

    /// Sees to it that the blob is there.
    ///
    /// # Errors
    /// When it is refused, or the registry is away for too long.
    pub async fn run(&self) -> Result<(), Error> {
        let count = Arc::new(AtomicU64::new(0));
        self.line.follow(count.clone());
        let (mut tries, mut furthest, mut session) = (0, 0, None);
        let mut pause = Duration::from_millis(200);
        loop {
            let error = match self.attempt(&count, &mut session).await {
                Ok(phase) => {
                    count.store(self.blob.size, Ordering::Relaxed);
                    self.line.enter(phase);
                    return Ok(());
                }
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
                return Err(error.after(tries));
            }
            tracing::debug!(digest = %self.blob.digest, %error, reached, "an upload broke off; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn attempt(
        &self,
        count: &Arc<AtomicU64>,
        session: &mut Option<String>,
    ) -> Result<Phase, Error> {
        let what = self.what();
        let digest = self.blob.digest.to_string();
        let path = format!("blobs/{digest}");
        if self.remote.head(&path, &what).await?.is_some() {
            return Ok(Phase::Exists);
        }
        let (mut location, mut at) = match session.take() {
            Some(old) => match self.offset(&old).await? {
                Some((location, at)) => (location, at),
                None => (self.begin("blobs/uploads/").await?, 0),
            },
            None => match self.mounts.source(&digest).await {
                Some(from) => {
                    self.remote.also_reads(&from);
                    let path = format!("blobs/uploads/?mount={digest}&from={from}");
                    let response = self.post(&path).await?;
                    if response.status() == StatusCode::CREATED {
                        self.line.came_from(from);
                        return Ok(Phase::Mounted);
                    }
                    (self.location(&response)?, 0)
                }
                None => (self.begin("blobs/uploads/").await?, 0),
            },
        };
        while at < self.blob.size {
            count.store(at, Ordering::Relaxed);
            *session = Some(location.clone());
            let until = (at + CHUNK).min(self.blob.size);
            let response = self.chunk(&location, at, until, count).await?;
            match response.status() {
                status if status.is_success() => {}
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    // It is elsewhere than we thought: ask.
                    return Err(self.remote.away(format!("{what}: HTTP status 416")));
                }
                StatusCode::NOT_FOUND => {
                    *session = None;
                    return Err(self
                        .remote
                        .away(format!("{what}: the registry has forgotten the upload")));
                }
                _ => return Err(self.remote.refused(&what, response).await),
            }
            location = self.location(&response)?;
            at = until;
        }
        count.store(at, Ordering::Relaxed);
        *session = Some(location.clone());
        let join = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{join}digest={digest}");
        let response = self
            .remote
            .send(Method::PUT, &url, &what, |request| {
                request
                    .header(CONTENT_LENGTH, 0)
                    .header(CONTENT_TYPE, "application/octet-stream")
            })
            .await?;
        if response.status().is_success() {
            return Ok(Phase::Done);
        }
        *session = None;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self
                .remote
                .away(format!("{what}: the registry has forgotten the upload")));
        }
        Err(self.remote.refused(&what, response).await)
    }

    async fn post(&self, path: &str) -> Result<Response, Error> {
        let what = self.what();
        let url = self.remote.url(path);
        let response = self
            .remote
            .send(Method::POST, &url, &what, |request| {
                request.header(CONTENT_LENGTH, 0)
            })
            .await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::ACCEPTED => Ok(response),
            _ => Err(self.remote.refused(&what, response).await),
        }
    }

    async fn begin(&self, path: &str) -> Result<String, Error> {
        let response = self.post(path).await?;
        self.location(&response)
    }

    /// Where the session goes on; the header may be relative to the request.
    fn location(&self, response: &Response) -> Result<String, Error> {
        let missing = || {
            self.remote
                .wrong(self.what(), "the registry does not say where to upload to")
        };
        let text = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(missing)?;
        let url = response.url().join(text).map_err(|_| missing())?;
        Ok(url.into())
    }

    /// How far the registry is with a session; `None` when it has forgotten it.
    async fn offset(&self, location: &str) -> Result<Option<(String, u64)>, Error> {
        let what = self.what();
        let response = self
            .remote
            .send(Method::GET, location, &what, |request| request)
            .await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let next = self.location(&response).unwrap_or(location.to_owned());
        let at = response
            .headers()
            .get(RANGE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.rsplit('-').next()?.parse::<u64>().ok())
            .map_or(0, |last| if last == 0 { 0 } else { last + 1 });
        Ok((at <= self.blob.size).then_some((next, at)))
    }

    async fn chunk(
        &self,
        location: &str,
        at: u64,
        until: u64,
        count: &Arc<AtomicU64>,
    ) -> Result<Response, Error> {
        let what = self.what();
        let mut file = std::fs::File::open(self.path).map_err(|error| self.unreadable(&error))?;
        file.seek(SeekFrom::Start(at))
            .map_err(|error| self.unreadable(&error))?;
        let body = || {
            // A body is made anew when the registry wants a token first.
            let count = count.clone();
            count.store(at, Ordering::Relaxed);
            let bytes = async_file(&file, at).map(|file| {
                let reader = ReaderStream::with_capacity(file.take(until - at), 64 << 10);
                Body::wrap_stream(reader.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        count.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                }))
            });
            bytes.unwrap_or_else(|_| Body::from(Vec::new()))
        };
        self.remote
            .send_watched(Method::PATCH, location, &what, count, |request| {
                request
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(CONTENT_LENGTH, until - at)
                    .header(CONTENT_RANGE, format!("{at}-{}", until - 1))
                    .body(body())
            })
            .await
    }
}

/// A reader of its own, at an offset.
fn async_file(file: &std::fs::File, at: u64) -> std::io::Result<tokio::fs::File> {
    let mut own = file.try_clone()?;
    own.seek(SeekFrom::Start(at))?;
    Ok(tokio::fs::File::from_std(own))
}
