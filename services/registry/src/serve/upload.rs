//! Blobs in: at once, in chunks, or taken over from another repository.
//!
//! Invariants: the bytes of a session are in the store's staging file, whose length is how far the session is; only one request writes
//! to a session at a time; a blob is there when its digest was checked, and is held for a day, within which a manifest has to name it.
//! Source: distribution specification v1.1, "Pushing blobs".

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_types::{Digest, ErrorKind};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE};
use hyper::{Request, StatusCode};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::error::Refusal;
use super::route::{At, Begin};
use super::{Answer, Registry, STALL, plain, set};

/// Seconds for which a blob without a manifest is held.
const HOLD_SECONDS: i64 = 86_400;
/// How long a session that nobody touches is remembered; the store drops its file by its own rule.
const FORGET: Duration = Duration::from_secs(86_400);

/// Sessions that run, each with the lock of its file.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Debug, Clone)]
struct Session {
    writing: Arc<tokio::sync::Mutex<()>>,
    touched: Instant,
}

impl Sessions {
    /// The lock of a session; `None` = it is none of this run of the service.
    fn touch(&self, key: &str) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.touched.elapsed() < FORGET);
        let session = sessions.get_mut(key)?;
        session.touched = Instant::now();
        Some(session.writing.clone())
    }

    fn begin(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.entry(key.to_owned()).or_insert_with(|| Session {
            writing: Arc::default(),
            touched: Instant::now(),
        });
        session.writing.clone()
    }

    fn end(&self, key: &str) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(key);
    }
}

fn key(repository: &str, session: &str) -> String {
    format!("serve/{repository}/{session}")
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|error| Refusal::digest(format!("{error}")))
}

/// First and last byte of a chunk.
fn span(request: &Request<Incoming>) -> Result<Option<(u64, u64)>, Refusal> {
    let Some(value) = request.headers().get(CONTENT_RANGE) else {
        return Ok(None);
    };
    let wrong = || Refusal::upload("Content-Range is not FIRST-LAST");
    let text = value.to_str().map_err(|_| wrong())?;
    // Some write it as an answer's.
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let text = text.split('/').next().unwrap_or(text);
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first = first.trim().parse().map_err(|_| wrong())?;
    let last = last.trim().parse().map_err(|_| wrong())?;
    Ok(Some((first, last)))
}

impl Registry {
    /// POST of a new session.
    pub(super) async fn begin_upload(
        &self,
        repository: &str,
        how: &Begin,
        request: Request<Incoming>,
    ) -> Answer {
        if let Some(mount) = &how.mount {
            let wanted = digest(mount)?;
            let held = self.peers.paths(vec![mount.clone()]).await?;
            if !held.is_empty() {
                return self.taken(repository, &wanted).await;
            }
        }
        let session = format!("{:032x}", rand::random::<u128>());
        let own = key(repository, &session);
        let writing = self.sessions.begin(&own);
        let _turn = writing.lock().await;
        let (path, _) = self.peers.stage(&own).await?;
        if let Some(text) = &how.digest {
            let wanted = digest(text)?;
            let result = match self.write(&path, 0, request).await {
                Ok(_) => self.finish(repository, &own, &wanted).await,
                Err(refusal) => Err(refusal),
            };
            if result.is_err() {
                self.forget(&own).await;
            }
            return result;
        }
        let mut response = plain(StatusCode::ACCEPTED);
        let location = format!("/v2/{repository}/blobs/uploads/{session}");
        set(&mut response, "location", &location);
        set(&mut response, "range", "0-0");
        set(&mut response, "docker-upload-uuid", &session);
        set(&mut response, "content-length", "0");
        Ok(response)
    }

    /// The session's file, how long it is, and the lock of it, held.
    async fn session(
        &self,
        at: &At,
    ) -> Result<(String, PathBuf, u64, tokio::sync::OwnedMutexGuard<()>), Refusal> {
        if at.session.len() != 32 || !at.session.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Refusal::no_upload());
        }
        let key = key(&at.repository, &at.session);
        let known = self.sessions.touch(&key);
        let is_known = known.is_some();
        let writing = known.unwrap_or_else(|| self.sessions.begin(&key));
        let turn = writing.lock_owned().await;
        let (path, length) = self.peers.stage(&key).await?;
        // After a restart of the service, what was written says that there was a session.
        if !is_known && length == 0 {
            self.forget(&key).await;
            return Err(Refusal::no_upload());
        }
        Ok((key, path, length, turn))
    }

    async fn forget(&self, key: &str) {
        self.sessions.end(key);
        if let Err(fault) = self.peers.unstage(key).await {
            tracing::debug!(%fault, "the staging file goes by itself");
        }
    }

    /// Appends a body, which must come before it stalls.
    async fn write(
        &self,
        path: &std::path::Path,
        from: u64,
        request: Request<Incoming>,
    ) -> Result<u64, Refusal> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Refusal::from(gantry_chassis::Fault {
                    kind: ErrorKind::Exhausted,
                    message: "the disk is full".into(),
                    resource: None,
                })
            }
            _ => Refusal::server(format!("write {}: {error}", path.display())),
        };
        let mut file = tokio::fs::File::options()
            .write(true)
            .open(path)
            .await
            .map_err(failed)?;
        file.set_len(from).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(from))
            .await
            .map_err(failed)?;
        let mut body = request.into_body();
        let mut length = from;
        loop {
            let next = tokio::time::timeout(STALL, body.frame())
                .await
                .map_err(|_| Refusal::upload("the body stands still"))?;
            let Some(frame) = next else {
                break;
            };
            // What has come stays: the client asks how far it is and goes on.
            let frame = frame.map_err(|error| Refusal::upload(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                file.write_all(&data).await.map_err(failed)?;
                length += data.len() as u64;
            }
        }
        file.flush().await.map_err(failed)?;
        Ok(length)
    }

    /// Checks a staged blob and holds it.
    async fn finish(&self, repository: &str, key: &str, wanted: &Digest) -> Answer {
        match self.peers.take(key, wanted).await {
            Ok(()) => {
                self.sessions.end(key);
                self.taken(repository, wanted).await
            }
            Err(fault) if fault.kind == ErrorKind::Corrupt => {
                self.forget(key).await;
                Err(Refusal::digest(fault.message))
            }
            Err(fault) => Err(fault.into()),
        }
    }

    /// The blob is here: held for a while, and said so.
    async fn taken(&self, repository: &str, digest: &Digest) -> Answer {
        let lease = format!("serve/{repository}/{digest}");
        self.peers
            .hold_for(&lease, vec![digest.to_string()], HOLD_SECONDS)
            .await?;
        let mut response = plain(StatusCode::CREATED);
        let location = format!("/v2/{repository}/blobs/{digest}");
        set(&mut response, "location", &location);
        set(&mut response, "docker-content-digest", &digest.to_string());
        set(&mut response, "content-length", "0");
        Ok(response)
    }

    fn progress(&self, at: &At, length: u64, status: StatusCode) -> hyper::Response<super::Body> {
        let mut response = plain(status);
        let location = format!("/v2/{}/blobs/uploads/{}", at.repository, at.session);
        set(&mut response, "location", &location);
        set(
            &mut response,
            "range",
            &format!("0-{}", length.saturating_sub(1)),
        );
        set(&mut response, "docker-upload-uuid", &at.session);
        response
    }

    /// GET: how far it is.
    pub(super) async fn upload_status(&self, at: &At) -> Answer {
        let (_, _, length, _turn) = self.session(at).await?;
        Ok(self.progress(at, length, StatusCode::NO_CONTENT))
    }

    /// PATCH: the next chunk, or a stream.
    pub(super) async fn patch_upload(&self, at: &At, request: Request<Incoming>) -> Answer {
        let (_, path, length, _turn) = self.session(at).await?;
        self.follows(at, &request, length)?;
        let length = self.write(&path, length, request).await?;
        let mut response = self.progress(at, length, StatusCode::ACCEPTED);
        set(&mut response, "content-length", "0");
        Ok(response)
    }

    /// A chunk has to begin where the last one ended.
    fn follows(&self, at: &At, request: &Request<Incoming>, length: u64) -> Result<(), Refusal> {
        let Some((first, last)) = span(request)? else {
            return Ok(());
        };
        let location = format!("/v2/{}/blobs/uploads/{}", at.repository, at.session);
        let said: Option<u64> = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let spans = last.checked_sub(first).map(|length| length + 1);
        if first != length || spans.is_none() || said.is_some_and(|said| Some(said) != spans) {
            return Err(
                Refusal::range(format!("the upload has {length} bytes; go on from there"))
                    .with("location", location)
                    .with("range", format!("0-{}", length.saturating_sub(1))),
            );
        }
        Ok(())
    }

    /// PUT: the end, maybe with a last chunk.
    pub(super) async fn put_upload(&self, at: &At, request: Request<Incoming>) -> Answer {
        let text = at
            .digest
            .as_deref()
            .ok_or_else(|| Refusal::digest("the query has no digest"))?;
        let wanted = digest(text)?;
        let (key, path, length, _turn) = self.session(at).await?;
        self.follows(at, &request, length)?;
        self.write(&path, length, request).await?;
        self.finish(&at.repository, &key, &wanted).await
    }

    /// DELETE: it is given up.
    pub(super) async fn cancel_upload(&self, at: &At) -> Answer {
        let (key, _, _, _turn) = self.session(at).await?;
        self.forget(&key).await;
        Ok(plain(StatusCode::NO_CONTENT))
    }
}
