//! Prometheus metrics: calls served by method, and whatever a service registers; text on a Unix socket.
//!
//! Invariant: counting a call costs an atomic addition; the text is made only when somebody asks.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Drain, ServeError};

type Labels = Vec<(String, String)>;

struct State {
    registry: Mutex<Registry>,
    calls: Family<Labels, Counter>,
}

static STATE: LazyLock<State> = LazyLock::new(|| {
    let mut registry = Registry::with_prefix("gantry");
    let calls = Family::<Labels, Counter>::default();
    registry.register("rpc_calls", "gRPC calls received, by method", calls.clone());
    State {
        registry: Mutex::new(registry),
        calls,
    }
});

/// Adds a service's own metric. Names are without the prefix `gantry_` and the unit suffix.
pub fn register(name: &str, help: &str, metric: impl Metric) {
    STATE
        .registry
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .register(name, help, metric);
}

/// Everything in the Prometheus text format (OpenMetrics 1.0).
pub fn text() -> String {
    let mut out = String::new();
    let registry = STATE
        .registry
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = encode(&mut out, &registry) {
        tracing::warn!(%error, "metrics could not be written");
    }
    out
}

/// Serves [`text`] over HTTP/1.1 on a Unix socket until the drain starts. Any path answers.
///
/// # Errors
/// [`ServeError::Listener`] when the socket is unusable.
pub async fn serve(listener: StdListener, drain: &Drain) -> Result<(), ServeError> {
    listener
        .set_nonblocking(true)
        .map_err(ServeError::Listener)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServeError::Listener)?;
    loop {
        let mut stream = tokio::select! {
            () = drain.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a metrics connection was lost");
                    continue;
                }
            },
        };
        drain.spawn("metrics", async move {
            let mut head = [0u8; 2048];
            let read = tokio::time::timeout(std::time::Duration::from_secs(2), stream.read(&mut head)).await;
            if !matches!(read, Ok(Ok(n)) if n > 0) {
                return;
            }
            let body = text();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            // The reader may be gone; there is nobody to tell.
            let _ = stream.write_all(reply.as_bytes()).await;
        });
    }
}

/// Counts each call by its method.
#[derive(Debug, Clone)]
pub(crate) struct Count<S>(S);

impl<S> Count<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S, B> tower::Service<http::Request<B>> for Count<S>
where
    S: tower::Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        // Only known paths become labels, or a caller could fill our memory with names.
        let path = request.uri().path();
        let method = if path.starts_with("/gantry.") && path.len() < 80 {
            path
        } else {
            "other"
        };
        STATE
            .calls
            .get_or_create(&vec![("method".to_owned(), method.to_owned())])
            .inc();
        self.0.call(request)
    }
}
