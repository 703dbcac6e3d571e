//! A registry of our own: the OCI distribution API over what the store has.
//!
//! Invariants: what is pushed lives under the registry's own name, so nobody who may push can change what another name means here;
//! pulls find everything that the store has under its own names too (`mirror`), which makes every node a mirror; a blob is visible only
//! after its digest was checked; a slow or silent client holds one connection and one small buffer.
//! Source: OCI distribution specification v1.1.
//!
//! ```text
//! connection -> auth -> route -> blob | upload | manifest | list -> store
//! ```

mod auth;
mod blob;
mod error;
mod list;
mod manifest;
mod names;
mod route;
mod tls;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_chassis::Drain;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use self::auth::Users;
use self::error::Refusal;
use self::list::Subjects;
use self::names::Names;
use self::route::Route;
use self::upload::Sessions;
use crate::error::Error;
use crate::peers::Peers;
use crate::pull::Puller;

/// Connections at once.
const MOST_CONNECTIONS: usize = 512;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(30);
/// How long a body may stand still.
pub const STALL: Duration = Duration::from_secs(60);

/// The body of an answer.
pub type Body = BoxBody<Bytes, std::io::Error>;
type Answer = Result<Response<Body>, Refusal>;

/// How to serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on, such as "127.0.0.1:5000"; empty = not served.
    pub listen: String,
    /// Registry name under which pushed images are kept; empty = "gantry.local".
    pub name: String,
    /// Do not offer what the store has under other names.
    pub only_own: bool,
    /// Registries of which what is not here is fetched and kept: "docker.io".
    pub upstreams: Vec<String>,
    /// Certificate chain, PEM.
    pub tls_cert: String,
    /// Its key, PEM.
    pub tls_key: String,
    /// File of users with bcrypt hashes, as htpasswd -B makes it.
    pub htpasswd: String,
    /// Take no pushes and no deletions.
    pub read_only: bool,
}

impl Settings {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        if !self.listen.is_empty() && self.listen.parse::<SocketAddr>().is_err() {
            return Err(format!(
                "serve.listen is {:?}; write ADDRESS:PORT, such as 127.0.0.1:5000 or [::]:5000",
                self.listen
            ));
        }
        if self.tls_cert.is_empty() != self.tls_key.is_empty() {
            return Err("serve.tls_cert and serve.tls_key belong together; give both".into());
        }
        let name = &self.name;
        if !name.is_empty()
            && format!("{name}/a")
                .parse::<gantry_types::Reference>()
                .is_err()
            || name.contains('/')
        {
            return Err(format!("serve.name is {name:?}; write a host name"));
        }
        Ok(())
    }
}

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Seen {
    /// "GET".
    pub method: String,
    /// With its query.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// Who asked.
    pub from: SocketAddr,
    /// Until the head of the answer was there.
    pub took: Duration,
}

/// A registry that can serve.
pub struct Registry {
    settings: Settings,
    peers: Peers,
    puller: Arc<Puller>,
    names: Names,
    users: Option<Users>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    sessions: Sessions,
    subjects: Subjects,
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

impl Registry {
    /// Reads certificates and users; opens nothing.
    ///
    /// # Errors
    /// [`Error::Hosts`] names the file that cannot be used.
    pub fn new(settings: Settings, peers: Peers, puller: Arc<Puller>) -> Result<Arc<Self>, Error> {
        settings.validate().map_err(Error::Setting)?;
        let users = if settings.htpasswd.is_empty() {
            None
        } else {
            Some(Users::read(settings.htpasswd.as_ref())?)
        };
        let tls = if settings.tls_cert.is_empty() {
            None
        } else {
            Some(tls::acceptor(
                settings.tls_cert.as_ref(),
                settings.tls_key.as_ref(),
            )?)
        };
        Ok(Arc::new(Self {
            names: Names::new(&settings.name, !settings.only_own),
            settings,
            peers,
            puller,
            users,
            tls,
            sessions: Sessions::default(),
            subjects: Subjects::default(),
        }))
    }

    /// Listens.
    ///
    /// # Errors
    /// [`Error::Listen`] when the address is taken or is not this host's.
    pub async fn listen(&self) -> Result<TcpListener, Error> {
        let address = &self.settings.listen;
        TcpListener::bind(address)
            .await
            .map_err(|error| Error::Listen {
                address: address.clone(),
                reason: error.to_string(),
            })
    }

    /// Serves until the drain starts, or until `seen` has no reader any more (when it is given).
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        drain: Drain,
        seen: Option<mpsc::Sender<Seen>>,
    ) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let closed = async {
                match &seen {
                    Some(seen) => seen.closed().await,
                    None => std::future::pending().await,
                }
            };
            let (stream, from) = tokio::select! {
                () = drain.cancelled() => return,
                () = closed => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, say: those that are open will end.
                        tracing::warn!(%error, "accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let (registry, tell, ended) = (self.clone(), seen.clone(), drain.clone());
            drain.spawn("registry connection", async move {
                let _permit = permit;
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = registry.connection(stream, from, tell) => {}
                }
            });
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        seen: Option<mpsc::Sender<Seen>>,
    ) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request: Request<Incoming>| {
            let (registry, seen) = (self.clone(), seen.clone());
            async move {
                let began = Instant::now();
                let (method, path) = (request.method().to_string(), request.uri().to_string());
                let response = registry.answer(request).await;
                if let Some(seen) = seen {
                    // A log that nobody reads fast enough loses lines, not requests.
                    let _ = seen.try_send(Seen {
                        method,
                        path,
                        status: response.status().as_u16(),
                        from,
                        took: began.elapsed(),
                    });
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let result = match &self.tls {
            None => http.serve_connection(TokioIo::new(stream), service).await,
            Some(acceptor) => match tokio::time::timeout(HEAD, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => http.serve_connection(TokioIo::new(stream), service).await,
                _ => return,
            },
        };
        if let Err(error) = result {
            tracing::debug!(%from, %error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let mut response = match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(
            "docker-distribution-api-version",
            http::HeaderValue::from_static("registry/2.0"),
        );
        if head {
            *response.body_mut() = empty();
        }
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        if let Some(users) = &self.users {
            users.check(request.headers()).await?;
        }
        let method = request.method().clone();
        let route = Route::of(request.uri())?;
        let writes = !matches!(method, Method::GET | Method::HEAD);
        if writes && self.settings.read_only {
            return Err(Refusal::unsupported("this registry is read-only"));
        }
        match (route, method.as_str()) {
            (Route::Root, "GET" | "HEAD") => Ok(Response::new(full("{}"))),
            (Route::Catalog(page), "GET") => self.catalog(&page).await,
            (Route::Tags(repository, page), "GET") => self.tags(&repository, &page).await,
            (Route::Referrers(of), "GET") => self.referrers(&of).await,
            (Route::Manifest(of), "GET" | "HEAD") => self.manifest(&of, request.headers()).await,
            (Route::Manifest(of), "PUT") => self.put_manifest(&of, request).await,
            (Route::Manifest(of), "DELETE") => self.delete_manifest(&of).await,
            (Route::Blob(_, digest), "GET" | "HEAD") => self.blob(&digest, request.headers()).await,
            (Route::Begin(repository, query), "POST") => {
                self.begin_upload(&repository, &query, request).await
            }
            (Route::Upload(at), "GET") => self.upload_status(&at).await,
            (Route::Upload(at), "PATCH") => self.patch_upload(&at, request).await,
            (Route::Upload(at), "PUT") => self.put_upload(&at, request).await,
            (Route::Upload(at), "DELETE") => self.cancel_upload(&at).await,
            (Route::Blob(..), "DELETE") => Err(Refusal::unsupported(
                "blobs go by themselves when no manifest names them",
            )),
            _ => Err(Refusal::unsupported("no such method here")),
        }
    }
}

/// An answer without a body.
fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

/// Sets a header whose value is ours.
fn set(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = http::HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
