//! The engine's services as this program calls them.
//!
//! Invariant: nothing is connected before it is called; a call that may be repeated is repeated while the engine restarts.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_chassis::{Channel, Paths, connect};
use gantry_proto::build::build_client::BuildClient;
use gantry_proto::network::network_client::NetworkClient;
use gantry_proto::registry::registry_client::RegistryClient;
use gantry_proto::runtime::runtime_client::RuntimeClient;
use gantry_proto::snapshotter::snapshotter_client::SnapshotterClient;
use gantry_proto::store::store_client::StoreClient;
use tonic::{Response, Status};

use crate::error::{Error, Result};

/// How long an engine that restarts is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The engine behind a directory of sockets.
#[derive(Debug, Clone)]
pub struct Engine {
    run: PathBuf,
}

impl Engine {
    /// From `--host`: a directory, with or without `unix://`.
    ///
    /// # Errors
    /// For another kind of address.
    pub fn new(host: &str) -> Result<Self> {
        let path = host.strip_prefix("unix://").unwrap_or(host);
        if path.contains("://") {
            return Err(Error::Usage(format!(
                "invalid value {host:?} for --host: write the engine's run directory, such as /run/gantry"
            )));
        }
        let run = std::path::absolute(path).map_err(Error::io(format!("resolve {path}")))?;
        Ok(Self { run })
    }

    fn channel(&self, service: &str) -> Channel {
        let paths = Paths {
            root: PathBuf::new(),
            run: self.run.clone(),
        };
        connect(&paths.socket(service))
    }

    /// Containers.
    pub fn runtime(&self) -> RuntimeClient<Channel> {
        RuntimeClient::new(self.channel("runtime")).max_decoding_message_size(64 << 20)
    }

    /// Images.
    pub fn store(&self) -> StoreClient<Channel> {
        StoreClient::new(self.channel("store")).max_decoding_message_size(64 << 20)
    }

    /// Pulls.
    pub fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel("registry"))
    }

    /// Volumes.
    pub fn snapshotter(&self) -> SnapshotterClient<Channel> {
        SnapshotterClient::new(self.channel("snapshotter"))
    }

    /// Making images.
    pub fn build(&self) -> BuildClient<Channel> {
        BuildClient::new(self.channel("build"))
    }

    /// Networks.
    pub fn network(&self) -> NetworkClient<Channel> {
        NetworkClient::new(self.channel("network"))
    }

    /// Nobody is there at all, as opposed to one service that restarts.
    fn away(&self, cause: &Error) -> Error {
        match std::os::unix::net::UnixStream::connect(self.run.join("runtime.sock")) {
            Ok(_) => Error::Engine(gantry_chassis::Fault {
                kind: gantry_types::ErrorKind::Unavailable,
                message: cause.to_string(),
                resource: None,
            }),
            Err(error) => Error::Away {
                path: self.run.display().to_string(),
                cause: error.to_string(),
            },
        }
    }

    /// Calls until the engine answers; one that is not there at all is not waited for.
    ///
    /// # Errors
    /// What the engine says, or that it is away.
    pub async fn call<T, F>(&self, make: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        loop {
            let error = match make().await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => Error::from(status),
            };
            if !error.is_away() {
                return Err(error);
            }
            let away = self.away(&error);
            if matches!(away, Error::Away { .. }) || began.elapsed() > PATIENCE {
                return Err(away);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// An error of a call that was made once, with the reason when nobody is there.
    pub fn explain(&self, status: Status) -> Error {
        let error = Error::from(status);
        if error.is_away() {
            self.away(&error)
        } else {
            error
        }
    }

    /// The directory.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }
}
