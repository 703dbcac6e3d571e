//! Listening sockets that a supervisor made before us.
//!
//! The supervisor passes the gRPC socket as standard input and the metrics socket as standard output, and says so with
//! `GANTRY_SOCKETS=stdio`.
//! Invariant: an inherited socket is never unlinked.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::Command;

use gantry_chassis::{Paths, ServeError};

use crate::config::{ConfigError, SocketConfig};
use crate::service::Service;

const VARIABLE: &str = "GANTRY_SOCKETS";

/// The two sockets of a service.
#[derive(Debug)]
pub struct Sockets {
    /// gRPC.
    pub grpc: UnixListener,
    /// Prometheus text.
    pub metrics: UnixListener,
}

impl Sockets {
    /// Makes them anew.
    ///
    /// # Errors
    /// [`ServeError::Bind`] when a path cannot be bound, [`ConfigError`] for a wrong mode.
    pub fn bind(
        service: Service,
        paths: &Paths,
        config: &SocketConfig,
    ) -> Result<Sockets, crate::Error> {
        let mode = config
            .mode()
            .map_err(|error: ConfigError| crate::Error::Config(error))?;
        let metrics = paths
            .run
            .join("metrics")
            .join(format!("{}.sock", service.name()));
        Ok(Sockets {
            grpc: gantry_chassis::bind(&paths.socket(service.name()), mode)?,
            metrics: gantry_chassis::bind(&metrics, mode)?,
        })
    }

    /// Those that were passed to this process, or new ones.
    ///
    /// # Errors
    /// As [`Sockets::bind`], or [`ServeError::Listener`] when what was passed is no socket.
    pub fn take(
        service: Service,
        paths: &Paths,
        config: &SocketConfig,
    ) -> Result<Sockets, crate::Error> {
        if std::env::var_os(VARIABLE).is_some_and(|value| value == "stdio") {
            let own = |fd: std::os::fd::BorrowedFd<'_>| {
                fd.try_clone_to_owned()
                    .map(UnixListener::from)
                    .map_err(ServeError::Listener)
            };
            return Ok(Sockets {
                grpc: own(std::io::stdin().as_fd())?,
                metrics: own(std::io::stdout().as_fd())?,
            });
        }
        Self::bind(service, paths, config)
    }

    /// Passes them to a child.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pass(&self, command: &mut Command) -> std::io::Result<()> {
        command.env(VARIABLE, "stdio");
        command.stdin(std::os::fd::OwnedFd::from(self.grpc.try_clone()?));
        command.stdout(std::os::fd::OwnedFd::from(self.metrics.try_clone()?));
        Ok(())
    }
}
