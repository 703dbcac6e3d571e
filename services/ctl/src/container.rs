//! Commands on containers that are there: `ps`, `stop`, `kill`, `restart`, `wait`, `rm`.
//!
//! Invariant: of several containers each is tried; what failed is told on standard error and makes the exit code 1.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::network::{PortMapping, Protocol};
use gantry_proto::runtime::{
    Container, KillRequest, ListRequest, RemoveRequest, Status, StopRequest, WaitRequest,
};
use gantry_types::{Classify as _, ErrorKind};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::output::text::{self, cut, short_id};
use crate::output::{self, Row, print};
use crate::peers::Engine;

/// Does something to each, and reports what fails.
///
/// # Errors
/// Only when nobody reads the output or the engine is not there at all.
pub async fn each(names: &[String], act: impl AsyncFn(&str) -> Result<()>) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match act(name).await {
            Ok(()) => {}
            Err(error @ (Error::Closed | Error::Away { .. })) => return Err(error),
            Err(error) => {
                eprintln!("ctl: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// List containers
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl ps -a\n  ctl ps -q --filter label=tier=web\n  ctl ps --format '{{.Names}}\\t{{.Status}}'"
)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// status=, name=, id=, label=, ancestor=, exited=, network=, volume=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// The last N, whatever they do
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// The last one
    #[arg(short, long)]
    latest: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// "0.0.0.0:8080->80/tcp".
fn ports(ports: &[PortMapping]) -> String {
    let mut all: Vec<String> = Vec::new();
    for port in ports {
        let protocol = protocol(port);
        let both = ["0.0.0.0".to_owned(), "[::]".to_owned()];
        let hosts = if port.host_ip.is_empty() {
            both.to_vec()
        } else if port.host_ip.contains(':') {
            vec![format!("[{}]", port.host_ip)]
        } else {
            vec![port.host_ip.clone()]
        };
        for host in hosts {
            all.push(format!(
                "{host}:{}->{}/{protocol}",
                port.host_port, port.container_port
            ));
        }
    }
    all.dedup();
    all.join(", ")
}

/// "tcp" or "udp".
pub fn protocol(port: &PortMapping) -> &'static str {
    match port.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// "running", "exited", ... as docker names states.
pub fn state(container: &Container) -> &'static str {
    match container.status() {
        Status::Unspecified => "unknown",
        Status::Created => "created",
        Status::Starting => "starting",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopping => "stopping",
        Status::Exited => "exited",
        Status::Removing => "removing",
    }
}

fn status(container: &Container) -> String {
    let up = || {
        container.started_at.as_ref().map_or_else(
            || "Up".into(),
            |at| format!("Up {}", text::duration(text::seconds_since(at))),
        )
    };
    match container.status() {
        Status::Created | Status::Starting => "Created".into(),
        Status::Running | Status::Stopping => up(),
        Status::Paused => format!("{} (Paused)", up()),
        Status::Exited => format!(
            "Exited ({}) {}",
            container.exit_code,
            text::ago(container.finished_at.as_ref())
        ),
        Status::Removing => "Removal In Progress".into(),
        Status::Unspecified => String::new(),
    }
}

fn row(container: &Container, whole: bool) -> Row {
    let config = container.config.clone().unwrap_or_default();
    let command = format!("\"{}\"", container.args.join(" "));
    let created = container.created_at.as_ref();
    let networks: Vec<String> = if container.endpoints.is_empty() {
        let wanted = config.network.iter().flat_map(|network| &network.endpoints);
        wanted.map(|endpoint| endpoint.network.clone()).collect()
    } else {
        let joined = container.endpoints.iter();
        joined.map(|endpoint| endpoint.network.clone()).collect()
    };
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| mount.source.clone())
        .filter(|source| !source.is_empty())
        .collect();
    let row = json!({
        "ID": if whole { container.id.clone() } else { short_id(&container.id) },
        "Image": config.image,
        "Command": if whole { command } else { format!("\"{}\"", cut(&container.args.join(" "), 20)) },
        "CreatedAt": text::rfc3339(created),
        "RunningFor": text::ago(created),
        "Ports": ports(&container.ports),
        "State": state(container),
        "Status": status(container),
        "Names": container.name,
        "Labels": text::pairs(&config.labels),
        "Mounts": mounts.join(","),
        "Networks": networks.join(","),
        "LocalVolumes": mounts.len().to_string(),
        "Size": "0B",
        "Platform": "linux",
    });
    match row {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

impl Ps {
    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let most = if self.latest { Some(1) } else { self.last };
        let request = ListRequest {
            all: self.all || most.is_some(),
            filters: self.filter.clone(),
        };
        let mut listed = engine
            .call(|| {
                let (mut client, request) = (engine.runtime(), request.clone());
                async move { client.list(request).await }
            })
            .await?
            .containers;
        listed.truncate(most.unwrap_or(usize::MAX));
        if self.quiet && self.format.is_none() {
            let id = |container: &Container| {
                if self.no_trunc {
                    format!("{}\n", container.id)
                } else {
                    format!("{}\n", short_id(&container.id))
                }
            };
            print(&listed.iter().map(id).collect::<String>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = listed.iter().map(|one| row(one, self.no_trunc)).collect();
        let columns = [
            ("CONTAINER ID", "ID"),
            ("IMAGE", "Image"),
            ("COMMAND", "Command"),
            ("CREATED", "RunningFor"),
            ("STATUS", "Status"),
            ("PORTS", "Ports"),
            ("NAMES", "Names"),
        ];
        output::list(self.format.as_deref(), &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// End containers: their stop signal, a grace, then a kill
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds of grace; -1 = for ever
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    time: Option<i64>,
    /// Signal instead of the container's own
    #[arg(short, long)]
    signal: Option<String>,
    /// Ids or names
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Stop {
    fn request(&self, name: &str) -> StopRequest {
        StopRequest {
            id: name.to_owned(),
            timeout_seconds: self.time,
            signal: self.signal.clone().unwrap_or_default(),
        }
    }

    /// Stops them.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.containers, async |name| {
            engine
                .call(|| {
                    let (mut client, request) = (engine.runtime(), self.request(name));
                    async move { client.stop(request).await }
                })
                .await?;
            print(&format!("{name}\n"))
        })
        .await
    }

    /// Stops and starts them.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn restart(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.containers, async |name| {
            engine
                .call(|| {
                    let (mut client, request) = (engine.runtime(), self.request(name));
                    async move { client.restart(request).await }
                })
                .await?;
            print(&format!("{name}\n"))
        })
        .await
    }
}

/// Send a signal to containers' first processes
#[derive(Debug, Args)]
pub struct Kill {
    /// Name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Ids or names
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Kill {
    /// Sends it.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.containers, async |name| {
            engine
                .call(|| {
                    let mut client = engine.runtime();
                    let request = KillRequest {
                        id: name.to_owned(),
                        signal: self.signal.clone(),
                    };
                    async move { client.kill(request).await }
                })
                .await?;
            print(&format!("{name}\n"))
        })
        .await
    }
}

/// Wait until containers have ended and print their exit codes
#[derive(Debug, Args)]
pub struct Wait {
    /// Ids or names
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Wait {
    /// Waits.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.containers, async |name| {
            let ended = engine
                .call(|| {
                    let mut client = engine.runtime();
                    let request = WaitRequest {
                        id: name.to_owned(),
                        removed: false,
                    };
                    async move { client.wait(request).await }
                })
                .await?;
            print(&format!("{}\n", ended.exit_code))
        })
        .await
    }
}

/// Remove containers
#[derive(Debug, Args)]
pub struct Rm {
    /// End them first if they run; those that are gone already are fine
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Ids or names
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Rm {
    /// Removes them.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.containers, async |name| {
            let removed = engine
                .call(|| {
                    let mut client = engine.runtime();
                    let request = RemoveRequest {
                        id: name.to_owned(),
                        force: self.force,
                        volumes: self.volumes,
                    };
                    async move { client.remove(request).await }
                })
                .await;
            match removed {
                Err(error) if self.force && error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(_) => print(&format!("{name}\n")),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_docker_prints_them() {
        let port = |ip: &str, protocol: Protocol| PortMapping {
            host_ip: ip.into(),
            host_port: 8080,
            container_port: 80,
            protocol: protocol.into(),
        };
        assert_eq!(
            ports(&[port("", Protocol::Tcp), port("127.0.0.1", Protocol::Udp)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 127.0.0.1:8080->80/udp"
        );
    }
}
