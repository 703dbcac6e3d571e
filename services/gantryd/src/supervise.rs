//! The supervisor: one child process a service, restarted with back-off, ended in order.
//!
//! Invariants: sockets are bound here once and outlive every restart of a service, so a restart is a pause for its
//! callers and never a refused connection; children end with the supervisor; shims are nobody's children here, so
//! no order to end reaches a container.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use gantry_chassis::{Drain, Paths};
use tokio::process::Child;

use crate::config::Settings;
use crate::inherit::Sockets;
use crate::service::{self, GRACE, Service};

/// Our pid in a child's environment, so that it ends with us.
pub const SUPERVISED: &str = "GANTRY_SUPERVISED";

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A child that lived this long starts again at the shortest delay.
const SETTLED: Duration = Duration::from_secs(10);

struct Supervised {
    service: Service,
    sockets: Sockets,
    arguments: Vec<std::ffi::OsString>,
}

impl Supervised {
    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&self.arguments)
            .env(SUPERVISED, std::process::id().to_string());
        self.sockets.pass(&mut command)?;
        tokio::process::Command::from(command).spawn()
    }

    /// Keeps one child alive until the drain starts, then ends it.
    async fn keep(self, drain: Drain) {
        let name = self.service.name();
        let mut delay = FIRST_DELAY;
        while !drain.is_started() {
            let started = Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    let status = tokio::select! {
                        status = child.wait() => status,
                        () = drain.cancelled() => {
                            end(name, child).await;
                            return;
                        }
                    };
                    tracing::warn!(service = name, status = %describe(status), "a service ended; starting it again");
                }
                Err(error) => {
                    tracing::error!(service = name, %error, "a service cannot be started; trying again")
                }
            }
            if started.elapsed() >= SETTLED {
                delay = FIRST_DELAY;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = drain.cancelled() => return,
            }
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn end(name: &'static str, mut child: Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid
        && let Err(error) = gantry_sys::process::kill(pid, gantry_sys::process::SIGTERM)
    {
        tracing::debug!(service = name, %error, "already gone");
    }
    // The child has its own grace; the extra second lets it say so.
    if tokio::time::timeout(GRACE + Duration::from_secs(1), child.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            service = name,
            "did not end within its grace period and is killed"
        );
        if let Err(error) = child.kill().await {
            tracing::error!(service = name, %error, "cannot be killed");
        }
    }
}

/// Binds every socket, starts every service, says ready, and keeps them until asked to end.
///
/// # Errors
/// When a socket cannot be bound or signals cannot be watched.
pub async fn run(
    config: &Option<PathBuf>,
    sets: &[String],
    settings: &Settings,
    paths: Paths,
) -> Result<(), crate::Error> {
    let mut common: Vec<std::ffi::OsString> = vec![
        "--root".into(),
        paths.root.clone().into(),
        "--run".into(),
        paths.run.clone().into(),
    ];
    if let Some(config) = config {
        common.extend(["--config".into(), config.clone().into()]);
    }
    for set in sets {
        common.extend(["--set".into(), set.into()]);
    }
    let mut bound = Vec::new();
    for service in Service::ALL {
        bound.push((
            service,
            Sockets::bind(service, &paths, &settings.tables.socket)?,
        ));
    }
    // A drain a service, so that they end from the top rank down and an upper one can still call a lower one.
    let mut kept = Vec::new();
    for (service, sockets) in bound {
        let mut arguments: Vec<std::ffi::OsString> = vec![service.name().into()];
        arguments.extend(common.iter().cloned());
        let drain = Drain::new();
        drain.spawn(
            "keep",
            Supervised {
                service,
                sockets,
                arguments,
            }
            .keep(drain.clone()),
        );
        kept.push((service, drain));
    }
    let ready = async {
        service::announce(&paths).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        asked = service::asked_to_end() => asked?,
        () = ready => {}
    }
    crate::notify::notify("STOPPING=1");
    for (service, drain) in kept.iter().rev() {
        if !drain.finish(GRACE + Duration::from_secs(2)).await {
            tracing::error!(service = service.name(), "could not be ended");
        }
    }
    for service in Service::ALL {
        // The paths are ours; leaving them would make callers wait on a socket nobody accepts on.
        let _ = std::fs::remove_file(paths.socket(service.name()));
        let _ = std::fs::remove_file(
            paths
                .run
                .join("metrics")
                .join(format!("{}.sock", service.name())),
        );
    }
    Ok(())
}
