//! The one daemon binary. `gantryd` supervises a process a service, `gantryd store` (and so on) is one of them,
//! `gantryd --in-process` runs all as tasks of one process; the sockets are the same in every mode.
//!
//! Invariants: the order is always load, validate, bind, start; ending or killing any of these processes never
//! ends a container.

mod config;
mod explain;
mod inherit;
mod notify;
mod service;
mod supervise;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gantry_chassis::Paths;

use crate::config::Settings;
use crate::service::Service;

/// Gantry's engine: the services of a container host under one supervisor.
///
/// Without a subcommand all services run, each in a process of its own that is restarted when it fails. Containers
/// live under their own shims: they go on while gantryd, or any service, is stopped, killed or upgraded.
#[derive(Debug, Parser)]
#[command(
    name = "gantryd",
    version,
    after_help = "EXAMPLES:\n  gantryd\n  gantryd --root /srv/gantry --run /run/gantry-b --set store.gc_grace_seconds=60\n  gantryd config explain\n\nFILES:\n  /etc/gantry/gantry.toml   settings, a table a service\n\nENVIRONMENT:\n  GANTRY_LOG                    log filter, for example info or gantry_store=debug\n  OTEL_EXPORTER_OTLP_ENDPOINT   where traces go; unset = nowhere"
)]
struct Cli {
    /// Durable data.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/gantry"
    )]
    root: PathBuf,
    /// Sockets, namespaces, shim directories; gone after a reboot.
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/gantry")]
    run: PathBuf,
    /// Settings file; a missing default file is no error.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, over the file's: table.key=value. Repeatable.
    #[arg(long = "set", global = true, value_name = "TABLE.KEY=VALUE")]
    set: Vec<String>,
    /// Run all services as tasks of this one process.
    #[arg(long)]
    in_process: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Images, blobs, leases
    Store,
    /// Networks, endpoints, published ports, names
    Network,
    /// Layers, snapshots, volumes
    Snapshotter,
    /// Pulls
    Registry,
    /// Containers
    Runtime,
    /// Making images: commit and import
    Build,
    /// Settings
    Config {
        #[command(subcommand)]
        action: ConfigCommand,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigCommand {
    /// Print every value and where it came from
    Explain,
    /// Check the settings and say nothing when they are right
    Check,
}

/// Why the daemon could not do its work.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error(transparent)]
    Serve(#[from] gantry_chassis::ServeError),
    #[error(transparent)]
    Service(#[from] service::ServiceError),
    #[error("{action}: {source}")]
    Io {
        action: &'static str,
        source: std::io::Error,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantryd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Error> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| Error::Io {
            action: "resolve --root and --run",
            source,
        })
    };
    let paths = Paths {
        root: absolute(&cli.root)?,
        run: absolute(&cli.run)?,
    };
    let settings = Settings::load(cli.config.as_deref(), &cli.set)?;
    let one = match cli.command {
        Some(Command::Config {
            action: ConfigCommand::Explain,
        }) => {
            print!("{}", explain::explain(&settings)?);
            return Ok(());
        }
        Some(Command::Config {
            action: ConfigCommand::Check,
        }) => return Ok(()),
        Some(Command::Store) => Some(Service::Store),
        Some(Command::Network) => Some(Service::Network),
        Some(Command::Snapshotter) => Some(Service::Snapshotter),
        Some(Command::Registry) => Some(Service::Registry),
        Some(Command::Runtime) => Some(Service::Runtime),
        Some(Command::Build) => Some(Service::Build),
        None => None,
    };
    let mut builder = match one {
        Some(service) => service.tokio(),
        None if cli.in_process => Service::Runtime.tokio(),
        None => tokio::runtime::Builder::new_current_thread(),
    };
    let tokio = builder.enable_all().build().map_err(|source| Error::Io {
        action: "start the task scheduler",
        source,
    })?;
    let result = tokio.block_on(async {
        let _telemetry = gantry_chassis::telemetry::init(one.map_or("gantryd", Service::name));
        match one {
            Some(service) => service::run_alone(service, settings, paths).await,
            None if cli.in_process => service::run_all(settings, paths).await,
            None => supervise::run(&cli.config, &cli.set, &settings, paths).await,
        }
    });
    // A blocked file operation must not keep a drained daemon alive.
    tokio.shutdown_timeout(std::time::Duration::from_millis(500));
    result
}
