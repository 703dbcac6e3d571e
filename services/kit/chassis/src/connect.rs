//! Clients: one lazy, self-healing connection a peer socket, carrying the trace context.
//!
//! Invariant: connecting never fails here; a peer that is away shows as `Unavailable` on the call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use crate::{Fault, telemetry};

type Inject = fn(tonic::Request<()>) -> Result<tonic::Request<()>, Status>;

/// The connection that generated clients are made with.
pub type Channel = InterceptedService<tonic::transport::Channel, Inject>;

fn inject(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
    telemetry::inject(request.metadata_mut());
    Ok(request)
}

/// A channel to the service behind a Unix socket. Must be called inside a tokio runtime.
pub fn connect(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    // The URI is never resolved; it only gives requests their authority.
    let endpoint = Endpoint::from_static("http://gantry")
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(&path)
                .await
                .map_err(|error| {
                    std::io::Error::new(
                        error.kind(),
                        format!("connect {}: {error}", path.display()),
                    )
                })?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    }));
    InterceptedService::new(channel, inject as Inject)
}

/// Asks the service behind a socket for its health (gRPC health checking protocol), waiting at most `deadline`.
///
/// # Errors
/// [`Fault`] when it cannot be reached or does not serve.
pub async fn check_health(path: &Path, deadline: Duration) -> Result<(), Fault> {
    let mut client = tonic_health::pb::health_client::HealthClient::new(connect(path));
    let call = client.check(tonic_health::pb::HealthCheckRequest {
        service: String::new(),
    });
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(reply)) if reply.get_ref().status == tonic_health::ServingStatus::Serving as i32 => {
            Ok(())
        }
        Ok(Ok(_)) => Err(Status::unavailable("the service does not serve yet").into()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer on {}", path.display())).into()),
    }
}
