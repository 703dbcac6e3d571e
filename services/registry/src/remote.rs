//! One way to one repository over HTTP: documents, blobs from an offset on, requests of a push.
//!
//! Invariants: a document's size is bounded before it is read; authentication is asked for only when the registry wants it; who
//! redirects elsewhere never gets our credentials there (the HTTP client drops them on another host); at most ten redirects.
//! Source: OCI distribution specification v1.1. Media types and error bodies are oci-client's.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use oci_distribution::errors::OciEnvelope;
use oci_distribution::manifest;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LINK, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use gantry_types::Digest;

use crate::auth::{Asker, Refusal};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::hosts::Endpoint;

/// Largest manifest or index, bytes (distribution specification: registries should accept at least this).
pub const MOST_DOCUMENT: usize = 4 << 20;
/// Largest error body that is read, bytes.
const MOST_COMPLAINT: usize = 64 << 10;
/// What we understand; the last is for artifacts whose index has a type of its own.
const ACCEPTED: [&str; 5] = [
    manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
    manifest::OCI_IMAGE_MEDIA_TYPE,
    manifest::IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    manifest::IMAGE_MANIFEST_MEDIA_TYPE,
    "*/*",
];

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes.
    pub bytes: Bytes,
    /// What the registry calls it.
    pub media_type: String,
    /// It is a page of a list, and there is another.
    pub next: bool,
}

/// A blob that is about to come.
#[derive(Debug)]
pub struct Download {
    /// Its bytes.
    pub response: Response,
    /// Where they begin: the offset that was asked for, or 0 when the registry knows no ranges.
    pub offset: u64,
    /// The registry kept to the range.
    pub partial: bool,
    /// How many the registry says will come.
    pub length: Option<u64>,
}

/// A client for one repository.
pub struct Remote {
    http: reqwest::Client,
    endpoint: Endpoint,
    image: String,
    credentials: Credentials,
    /// What we want to do there, and the header that the registry accepts for it.
    access: Mutex<Access>,
    /// It was away once in this pull.
    was_away: AtomicBool,
    stall: Duration,
}

#[derive(Default)]
struct Access {
    scopes: Vec<String>,
    header: Option<String>,
}

/// The causes of an error on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl Remote {
    /// A client; `actions` are "pull" or "pull,push", `image` is what messages call the image.
    pub fn new(
        http: reqwest::Client,
        endpoint: Endpoint,
        image: &str,
        actions: &str,
        credentials: Credentials,
        stall: Duration,
    ) -> Self {
        let scopes = vec![format!("repository:{}:{actions}", endpoint.repository)];
        Self {
            http,
            image: image.to_owned(),
            credentials,
            access: Mutex::new(Access {
                scopes,
                header: None,
            }),
            endpoint,
            was_away: AtomicBool::default(),
            stall,
        }
    }

    /// A client that only asks whether its credentials are taken.
    pub fn for_login(
        http: reqwest::Client,
        endpoint: Endpoint,
        registry: &str,
        credentials: Credentials,
        stall: Duration,
    ) -> Self {
        let remote = Self::new(http, endpoint, registry, "", credentials, stall);
        remote.access().scopes.clear();
        remote
    }

    /// The registry as users know it.
    pub fn registry(&self) -> &str {
        &self.endpoint.registry
    }

    /// Whether it was away once in this pull.
    pub fn was_away(&self) -> bool {
        self.was_away.load(Ordering::Relaxed)
    }

    /// How it is reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Also wants to read another repository of the registry, for a mount.
    pub fn also_reads(&self, repository: &str) {
        let mut access = self.access();
        let scope = format!("repository:{repository}:pull");
        if !access.scopes.contains(&scope) {
            access.scopes.push(scope);
            access.header = None;
        }
    }

    fn access(&self) -> std::sync::MutexGuard<'_, Access> {
        self.access
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// An error of the registry that another try may not have.
    pub fn away(&self, reason: impl Into<String>) -> Error {
        self.was_away.store(true, Ordering::Relaxed);
        Error::Away {
            image: self.image.clone(),
            registry: self.registry().to_owned(),
            reason: reason.into(),
        }
    }

    /// An error of what the registry sends.
    pub fn wrong(&self, what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Wrong {
            image: self.image.clone(),
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// The registry said nothing for too long.
    pub fn stalled(&self) -> Error {
        self.was_away.store(true, Ordering::Relaxed);
        Error::Stalled {
            image: self.image.clone(),
            registry: self.registry().to_owned(),
            seconds: self.stall.as_secs(),
            attempts: 1,
        }
    }

    /// The error for a status that is none of those expected.
    pub async fn refused(&self, what: &str, mut response: Response) -> Error {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Ok(Some(piece)) = self.piece(&mut response).await {
            if body.len() + piece.len() > MOST_COMPLAINT {
                break;
            }
            body.extend_from_slice(&piece);
        }
        let said = serde_json::from_slice::<OciEnvelope>(&body)
            .ok()
            .and_then(|envelope| envelope.errors.into_iter().next())
            .map(|error| format!(": {:?}: {}", error.code, error.message))
            .unwrap_or_default();
        match status {
            404 => Error::NoImage {
                image: self.image.clone(),
                registry: self.registry().to_owned(),
                what: what.to_owned(),
            },
            401 | 403 => Error::Denied {
                image: self.image.clone(),
                registry: self.registry().to_owned(),
                status,
            },
            408 | 429 | 500..=599 => self.away(format!("{what}: HTTP status {status}{said}")),
            _ => self.wrong(what, format!("HTTP status {status}{said}")),
        }
    }

    async fn authorize(&self, challenged: &Response) -> Result<String, Error> {
        let scopes = self.access().scopes.clone();
        let asker = Asker {
            http: &self.http,
            plain: self.endpoint.tls.is_none(),
            credentials: &self.credentials,
            scopes: &scopes,
            stall: self.stall,
        };
        match asker.answer(challenged.headers()).await {
            Ok(header) => Ok(header),
            Err(Refusal::Denied) => Err(Error::Denied {
                image: self.image.clone(),
                registry: self.registry().to_owned(),
                status: 401,
            }),
            Err(Refusal::Server(reason)) => Err(self.away(reason)),
        }
    }

    /// The address of something of the repository: `blobs/sha256:...`.
    pub fn url(&self, path: &str) -> String {
        let base = format!("{}/{}/{path}", self.endpoint.base, self.endpoint.repository);
        match &self.endpoint.namespace {
            Some(namespace) => {
                let join = if path.contains('?') { '&' } else { '?' };
                format!("{base}{join}ns={namespace}")
            }
            None => base,
        }
    }

    /// Sends a request, and once more with a token when one is wanted. `dress` adds headers and body, each time anew.
    ///
    /// # Errors
    /// When the registry is away or refuses credentials; every other status is the caller's.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        what: &str,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        self.send_watched(method, url, what, &AtomicU64::new(0), dress)
            .await
    }

    /// The same with a long body: it stalls only when the count of bytes that have moved stands still.
    ///
    /// # Errors
    /// As [`Remote::send`].
    pub async fn send_watched(
        &self,
        method: Method,
        url: &str,
        what: &str,
        moved: &AtomicU64,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let mut authorized = false;
        loop {
            let mut request = self.http.request(method.clone(), url);
            for (name, value) in &self.endpoint.headers {
                request = request.header(name, value);
            }
            if let Some(header) = &self.access().header {
                request = request.header(AUTHORIZATION, header);
            }
            let sending = dress(request).send();
            let response = self.watched(sending, moved).await?.map_err(|error| {
                if error.is_redirect() {
                    self.wrong(what, "the registry redirects in a circle")
                } else {
                    self.away(chain(&error.without_url()))
                }
            })?;
            if response.status() == StatusCode::UNAUTHORIZED && !authorized {
                authorized = true;
                let fresh = self.authorize(&response).await?;
                self.access().header = Some(fresh);
                continue;
            }
            return Ok(response);
        }
    }

    async fn watched<T>(
        &self,
        work: impl Future<Output = T>,
        moved: &AtomicU64,
    ) -> Result<T, Error> {
        let mut work = std::pin::pin!(work);
        loop {
            let before = moved.load(Ordering::Relaxed);
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(self.stall) => {
                    if moved.load(Ordering::Relaxed) == before {
                        return Err(self.stalled());
                    }
                }
            }
        }
    }

    async fn get(&self, path: &str, what: &str, range: Option<&str>) -> Result<Response, Error> {
        let response = self
            .send(Method::GET, &self.url(path), what, |mut request| {
                for accepted in ACCEPTED {
                    request = request.header(ACCEPT, accepted);
                }
                match range {
                    Some(range) => request.header(RANGE, range),
                    None => request,
                }
            })
            .await?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            _ => Err(self.refused(what, response).await),
        }
    }

    /// Whether the repository has a manifest or blob: `manifests/TAG`, `blobs/DIGEST`; with the digest that the registry names.
    ///
    /// # Errors
    /// As [`Remote::send`].
    pub async fn head(&self, path: &str, what: &str) -> Result<Option<Option<String>>, Error> {
        let response = self
            .send(Method::HEAD, &self.url(path), what, |mut request| {
                for accepted in ACCEPTED {
                    request = request.header(ACCEPT, accepted);
                }
                request
            })
            .await?;
        match response.status().as_u16() {
            200..=299 => Ok(Some(
                response
                    .headers()
                    .get("docker-content-digest")
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned),
            )),
            404 => Ok(None),
            _ => Err(self.refused(what, response).await),
        }
    }

    /// The next piece of a body; `None` at its end.
    ///
    /// # Errors
    /// When the connection breaks or nothing comes for too long.
    pub async fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(self.stall, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(self.away(chain(&error.without_url()))),
            Err(_) => Err(self.stalled()),
        }
    }

    /// A document at a path of the repository, bounded.
    ///
    /// # Errors
    /// When there is none, or it is too large.
    pub async fn read_document(&self, path: &str, what: &str) -> Result<Document, Error> {
        let mut response = self.get(path, what, None).await?;
        let too_large = || {
            self.wrong(
                what,
                format!("it is larger than {} MiB", MOST_DOCUMENT >> 20),
            )
        };
        if response
            .content_length()
            .is_some_and(|length| length > MOST_DOCUMENT as u64)
        {
            return Err(too_large());
        }
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_owned();
        let next = crate::query::has_next(
            response
                .headers()
                .get(LINK)
                .and_then(|value| value.to_str().ok()),
        );
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&mut response).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MOST_DOCUMENT {
                return Err(too_large());
            }
        }
        Ok(Document {
            bytes: bytes.into(),
            media_type,
            next,
        })
    }

    /// A blob from an offset on, to its end or, when `until` says so, before a later offset.
    ///
    /// # Errors
    /// When there is none, or the registry breaks its word about the range.
    pub async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<Download, Error> {
        let what = format!("layer {digest}");
        let range = match until {
            Some(until) => Some(format!("bytes={from}-{}", until.saturating_sub(1))),
            None => (from > 0).then(|| format!("bytes={from}-")),
        };
        let response = self
            .get(&format!("blobs/{digest}"), &what, range.as_deref())
            .await?;
        let offset = if response.status() == StatusCode::PARTIAL_CONTENT {
            let begins = response
                .headers()
                .get(reqwest::header::CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| {
                    value
                        .strip_prefix("bytes ")?
                        .split('-')
                        .next()?
                        .parse()
                        .ok()
                });
            if begins != Some(from) {
                return Err(self.wrong(what, "the registry answers with another range"));
            }
            from
        } else {
            0
        };
        Ok(Download {
            offset,
            partial: response.status() == StatusCode::PARTIAL_CONTENT,
            length: response.content_length(),
            response,
        })
    }
}
