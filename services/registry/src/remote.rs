//! One repository of one registry over HTTP: documents, blobs from an offset on.
//!
//! Invariants: a document's size is bounded before it is read; authentication is asked for only when the registry wants it; who
//! redirects elsewhere never gets our credentials there (the HTTP client drops them on another host); at most ten redirects.
//! Source: OCI distribution specification v1.1, "Pull". Tokens are obtained by oci-client.

use std::time::Duration;

use bytes::Bytes;
use oci_distribution::client::{Client, ClientConfig, ClientProtocol};
use oci_distribution::secrets::RegistryAuth;
use oci_distribution::{Reference as OciReference, RegistryOperation};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RANGE};
use reqwest::{Response, StatusCode};

use gantry_types::{Digest, Reference};

use crate::credentials::Credentials;
use crate::error::Error;

/// Largest manifest or index, bytes (distribution specification: registries should accept at least this).
pub const MOST_DOCUMENT: usize = 4 << 20;
const CONNECT: Duration = Duration::from_secs(15);
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes.
    pub bytes: Bytes,
    /// What the registry calls it.
    pub media_type: String,
}

/// A blob that is about to come.
#[derive(Debug)]
pub struct Download {
    /// Its bytes.
    pub response: Response,
    /// Where they begin: the offset that was asked for, or 0 when the registry knows no ranges.
    pub offset: u64,
    /// How many the registry says will come.
    pub length: Option<u64>,
}

/// A client for one repository.
pub struct Remote {
    http: reqwest::Client,
    protocol: ClientProtocol,
    scheme: &'static str,
    host: String,
    reference: Reference,
    image: String,
    credentials: Credentials,
    authorization: tokio::sync::Mutex<Option<String>>,
    stall: Duration,
}

/// The HTTP client that pulls share. One for registries without TLS needs no certificates, which a small host may lack.
///
/// # Errors
/// When TLS cannot be set up.
pub fn http(plain: bool) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder();
    if plain {
        builder = builder.tls_certs_only(Vec::new());
    }
    builder
        .connect_timeout(CONNECT)
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::limited(10))
        .build()
        .map_err(|error| Error::Client(chain(&error)))
}

/// The causes of an error on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Remote {
    /// A client for the repository of a reference.
    pub fn new(
        http: reqwest::Client,
        reference: &Reference,
        plain_http: bool,
        credentials: Credentials,
        stall: Duration,
    ) -> Self {
        let host = match reference.registry() {
            "docker.io" => "registry-1.docker.io".to_owned(),
            other => other.to_owned(),
        };
        let protocol = if plain_http {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        Self {
            http,
            protocol,
            scheme: if plain_http { "http" } else { "https" },
            host,
            image: reference.familiar(),
            reference: reference.clone(),
            credentials,
            authorization: tokio::sync::Mutex::default(),
            stall,
        }
    }

    /// The registry as users know it.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    fn away(&self, reason: impl Into<String>) -> Error {
        Error::Away {
            image: self.image.clone(),
            registry: self.registry().to_owned(),
            reason: reason.into(),
        }
    }

    fn wrong(&self, what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Wrong {
            image: self.image.clone(),
            what: what.into(),
            reason: reason.into(),
        }
    }

    fn stalled(&self) -> Error {
        Error::Stalled {
            image: self.image.clone(),
            registry: self.registry().to_owned(),
            seconds: self.stall.as_secs(),
            attempts: 1,
        }
    }

    /// The header for the next try, after the registry said 401.
    async fn authorize(&self) -> Result<String, Error> {
        let denied = |status| Error::Denied {
            image: self.image.clone(),
            registry: self.registry().to_owned(),
            status,
        };
        let auth = match &self.credentials {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic(user, password) => {
                RegistryAuth::Basic(user.clone(), password.clone())
            }
        };
        let text = format!("{}/{}", self.host, self.reference.repository());
        let reference: OciReference = text
            .parse()
            .map_err(|error| self.away(format!("{text}: {error}")))?;
        // Made when it is needed only: it loads the host's certificates.
        let oci = Client::new(ClientConfig {
            protocol: self.protocol.clone(),
            connect_timeout: Some(CONNECT),
            read_timeout: Some(self.stall),
            ..ClientConfig::default()
        });
        let token = oci
            .auth(&reference, &auth, RegistryOperation::Pull)
            .await
            .map_err(|error| {
                tracing::debug!(registry = self.registry(), %error, "no token");
                denied(401)
            })?;
        match (token, &self.credentials) {
            (Some(token), _) => Ok(format!("Bearer {token}")),
            (None, Credentials::Basic(user, password)) => {
                use base64::Engine as _;
                let pair = format!("{user}:{password}");
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                Ok(format!("Basic {encoded}"))
            }
            (None, Credentials::Anonymous) => Err(denied(401)),
        }
    }

    /// Sends a request, with a token when one is wanted.
    async fn get(&self, path: &str, what: &str, range_from: u64) -> Result<Response, Error> {
        let url = format!(
            "{}://{}/v2/{}/{path}",
            self.scheme,
            self.host,
            self.reference.repository()
        );
        let mut authorized = false;
        loop {
            let header = self.authorization.lock().await.clone();
            let mut request = self.http.get(&url).header(ACCEPT, ACCEPTED);
            if let Some(header) = &header {
                request = request.header(AUTHORIZATION, header);
            }
            if range_from > 0 {
                request = request.header(RANGE, format!("bytes={range_from}-"));
            }
            let response = tokio::time::timeout(self.stall, request.send())
                .await
                .map_err(|_| self.stalled())?
                .map_err(|error| {
                    if error.is_redirect() {
                        self.wrong(what, "the registry redirects in a circle")
                    } else {
                        self.away(chain(&error.without_url()))
                    }
                })?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !authorized {
                authorized = true;
                let fresh = self.authorize().await?;
                *self.authorization.lock().await = Some(fresh);
                continue;
            }
            return match status.as_u16() {
                200 | 206 => Ok(response),
                404 => Err(Error::NoImage {
                    image: self.image.clone(),
                    registry: self.registry().to_owned(),
                    what: what.to_owned(),
                }),
                status @ (401 | 403) => Err(Error::Denied {
                    image: self.image.clone(),
                    registry: self.registry().to_owned(),
                    status,
                }),
                429 | 500..=599 => Err(self.away(format!("{what}: HTTP status {status}"))),
                _ => Err(self.wrong(what, format!("HTTP status {status}"))),
            };
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

    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// When there is none, or it is too large.
    pub async fn document(&self, reference: &str) -> Result<Document, Error> {
        let what = format!("manifest {reference}");
        let mut response = self
            .get(&format!("manifests/{reference}"), &what, 0)
            .await?;
        let too_large = || {
            self.wrong(
                &what,
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
        })
    }

    /// A blob from an offset on.
    ///
    /// # Errors
    /// When there is none, or the registry breaks its word about the range.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<Download, Error> {
        let what = format!("layer {digest}");
        let response = self.get(&format!("blobs/{digest}"), &what, from).await?;
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
            length: response.content_length(),
            response,
        })
    }
}
