//! The services by name, and running one or all of them in this process.
//!
//! Invariant: a service runs the same code alone and in-process; only who owns the tokio runtime differs.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use gantry_chassis::{Drain, Listener, Paths};

use crate::config::Settings;
use crate::inherit::Sockets;

/// How long running calls may take to end.
pub const GRACE: Duration = Duration::from_secs(8);

/// A service of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Images, blobs, leases.
    Store,
    /// Networks, endpoints, published ports, names.
    Network,
    /// Layers, snapshots, volumes.
    Snapshotter,
    /// Pulls.
    Registry,
    /// Containers.
    Runtime,
    /// Making images.
    Build,
}

/// A service ended with an error.
#[derive(Debug, thiserror::Error)]
#[error("{service}: {message}")]
pub struct ServiceError {
    service: &'static str,
    message: String,
}

type Running = Pin<Box<dyn Future<Output = Result<(), ServiceError>> + Send>>;

impl Service {
    /// Every service, lowest rank first.
    pub const ALL: [Service; 6] = [
        Service::Store,
        Service::Network,
        Service::Snapshotter,
        Service::Registry,
        Service::Runtime,
        Service::Build,
    ];

    /// Its name: subcommand, socket, folder and settings table.
    pub fn name(self) -> &'static str {
        match self {
            Service::Store => "store",
            Service::Network => "network",
            Service::Snapshotter => "snapshotter",
            Service::Registry => "registry",
            Service::Runtime => "runtime",
            Service::Build => "build",
        }
    }

    /// The scheduler it runs on.
    pub fn tokio(self) -> tokio::runtime::Builder {
        match self {
            // Their work is short; hashing and unpacking have threads of their own.
            Service::Store | Service::Snapshotter | Service::Network | Service::Build => {
                tokio::runtime::Builder::new_current_thread()
            }
            // Many streams at once.
            Service::Registry | Service::Runtime => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(2);
                builder
            }
        }
    }

    fn start(self, settings: &Settings, paths: Paths, listener: Listener, drain: Drain) -> Running {
        let tables = settings.tables.clone();
        let service = self.name();
        /// Runs one and names it in its error.
        async fn named<E: std::error::Error>(
            service: &'static str,
            running: impl Future<Output = Result<(), E>>,
        ) -> Result<(), ServiceError> {
            running.await.map_err(|error| ServiceError {
                service,
                message: error.to_string(),
            })
        }
        Box::pin(async move {
            match self {
                Service::Store => {
                    let run = gantry_store::run(tables.store, paths, listener, drain);
                    named(service, run).await
                }
                Service::Network => {
                    let run = gantry_network::run(tables.network, paths, listener, drain);
                    named(service, run).await
                }
                Service::Snapshotter => {
                    let run = gantry_snapshotter::run(tables.snapshotter, paths, listener, drain);
                    named(service, run).await
                }
                Service::Registry => {
                    let run = gantry_registry::run(tables.registry, paths, listener, drain);
                    named(service, run).await
                }
                Service::Runtime => {
                    let run = gantry_runtime::run(tables.runtime, paths, listener, drain);
                    named(service, run).await
                }
                Service::Build => {
                    let run = gantry_build::run(tables.build, paths, listener, drain);
                    named(service, run).await
                }
            }
        })
    }
}

/// Returns when SIGTERM or SIGINT arrives.
///
/// # Errors
/// When the signals cannot be watched.
pub async fn asked_to_end() -> Result<(), crate::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let watch = |kind| {
        signal(kind).map_err(|source| crate::Error::Io {
            action: "watch for signals",
            source,
        })
    };
    let mut term = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Runs one service until it is asked to end.
///
/// # Errors
/// What the service failed with.
pub async fn run_alone(
    service: Service,
    settings: Settings,
    paths: Paths,
) -> Result<(), crate::Error> {
    if let Some(parent) = std::env::var(crate::supervise::SUPERVISED)
        .ok()
        .and_then(|pid| pid.parse().ok())
    {
        // Two sets of services on one root would fight for its databases; a service does not outlive its supervisor.
        gantry_sys::process::end_with_parent(parent).map_err(|source| crate::Error::Io {
            action: "follow the supervisor",
            source,
        })?;
    }
    let sockets = Sockets::take(service, &paths, &settings.tables.socket)?;
    run_services(vec![(service, sockets)], settings, paths, false).await
}

/// Runs all services as tasks until asked to end.
///
/// # Errors
/// What the first failing service failed with.
pub async fn run_all(settings: Settings, paths: Paths) -> Result<(), crate::Error> {
    let mut bound = Vec::new();
    for service in Service::ALL {
        bound.push((
            service,
            Sockets::bind(service, &paths, &settings.tables.socket)?,
        ));
    }
    run_services(bound, settings, paths, true).await
}

/// Waits until each service answers its health check, then says so on standard output and to the service manager.
pub async fn announce(paths: &Paths) {
    for service in Service::ALL {
        let socket = paths.socket(service.name());
        while let Err(error) = gantry_chassis::check_health(&socket, Duration::from_secs(2)).await {
            tracing::debug!(service = service.name(), %error, "not ready yet");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    crate::notify::notify("READY=1");
    println!("gantryd ready");
}

/// Starts the given services, waits for the order to end or the first failure, and drains them.
async fn run_services(
    services: Vec<(Service, Sockets)>,
    settings: Settings,
    paths: Paths,
    announce_ready: bool,
) -> Result<(), crate::Error> {
    let drain = Drain::new();
    let mut running = tokio::task::JoinSet::new();
    for (service, sockets) in services {
        let listener = Listener::from(sockets.grpc).allow(&settings.tables.socket.allow_uids);
        running.spawn(service.start(&settings, paths.clone(), listener, drain.clone()));
        let metrics_drain = drain.clone();
        drain.spawn("metrics", async move {
            if let Err(error) =
                gantry_chassis::metrics::serve(sockets.metrics, &metrics_drain).await
            {
                tracing::warn!(%error, "metrics are not served");
            }
        });
    }
    let ready = async {
        if announce_ready {
            announce(&paths).await;
        }
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        asked = asked_to_end() => asked,
        () = ready => Ok(()),
        Some(ended) = running.join_next() => match ended {
            Ok(result) => result.map_err(crate::Error::from),
            Err(_) => Ok(()),
        },
    };
    drain.start();
    let rest = async {
        while let Some(ended) = running.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::error!(%error, "a service ended with an error");
            }
        }
    };
    let served = tokio::time::timeout(GRACE, rest).await.is_ok();
    if !drain
        .finish(if served { GRACE } else { Duration::ZERO })
        .await
        || !served
    {
        let tasks = drain.running();
        tracing::warn!(
            calls = !served,
            tasks,
            "some calls or tasks did not end within the grace period and were cut off"
        );
    }
    result
}
