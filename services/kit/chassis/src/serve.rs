//! Servers: one gRPC server on a Unix socket, with health, reflection, peer check and spans.
//!
//! Invariants: only root and the configured group's members get past the socket; a listener that was passed in is
//! never unlinked, since its owner (the supervisor) keeps it across our restarts.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tonic::service::Routes;
use tonic::transport::Server;

use crate::{Drain, metrics, telemetry};

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    inner: StdListener,
    /// Users besides root who may call: those for whom the socket's mode already lets them connect.
    allowed_uids: Vec<u32>,
}

impl From<StdListener> for Listener {
    fn from(inner: StdListener) -> Self {
        Self {
            inner,
            allowed_uids: Vec::new(),
        }
    }
}

impl Listener {
    /// Lets these users call, besides root.
    pub fn allow(mut self, uids: &[u32]) -> Self {
        self.allowed_uids.extend_from_slice(uids);
        self
    }
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be made.
    #[error("bind {path}: {source}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The inherited socket is not usable.
    #[error("use the listening socket: {0}")]
    Listener(std::io::Error),
    /// The server broke.
    #[error("serve: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptor set is damaged.
    #[error("offer reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Binds a socket with the given mode, replacing what a dead process left.
///
/// # Errors
/// [`ServeError::Bind`] when the directory or the socket cannot be made.
pub fn bind(path: &Path, mode: u32) -> Result<StdListener, ServeError> {
    let fail = |source| ServeError::Bind {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = StdListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail)?;
    Ok(listener)
}

/// Accepts connections of allowed users.
struct Incoming {
    listener: UnixListener,
    allowed: Vec<u32>,
}

impl Stream for Incoming {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match self.listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, _))) => {
                    let peer = stream.peer_cred().map(|cred| cred.uid());
                    match peer {
                        Ok(uid) if uid == 0 || self.allowed.contains(&uid) => {
                            Poll::Ready(Some(Ok(stream)))
                        }
                        Ok(uid) => {
                            tracing::warn!(
                                uid,
                                "refused a connection: only root and allowed users may call"
                            );
                            continue;
                        }
                        Err(error) => {
                            tracing::debug!(%error, "a caller left before it could be checked");
                            continue;
                        }
                    }
                }
                // Out of descriptors and the like: the connection is lost, the server is not.
                Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                Poll::Pending => Poll::Pending,
            };
        }
    }
}

/// Serves `routes` until the drain starts, then lets running calls end.
/// Adds gRPC health (all services SERVING) and reflection.
///
/// # Errors
/// [`ServeError`] when the socket is unusable or the transport breaks.
pub async fn serve(
    name: &'static str,
    listener: impl Into<Listener>,
    routes: Routes,
    drain: &Drain,
) -> Result<(), ServeError> {
    let Listener {
        inner,
        allowed_uids,
    } = listener.into();
    inner.set_nonblocking(true).map_err(ServeError::Listener)?;
    let listener = UnixListener::from_std(inner).map_err(ServeError::Listener)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(gantry_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let routes = routes.add_service(health_service).add_service(reflection);
    tracing::info!(service = name, "serving");
    let ended = drain.clone();
    Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .layer(tower::layer::layer_fn(metrics::Count::new))
        .trace_fn(move |request| telemetry::server_span(name, request))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            Incoming {
                listener,
                allowed: allowed_uids,
            },
            async move {
                ended.cancelled().await;
            },
        )
        .await?;
    Ok(())
}
