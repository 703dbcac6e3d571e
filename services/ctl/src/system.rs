//! Commands on the engine itself: `events`, `info`, `version`.
//!
//! Invariant: `version` and `--help` need no engine.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::runtime::{Event, EventsRequest, InfoRequest, InfoResponse};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::flags::time::moment;
use crate::output::template::Template;
use crate::output::{print, text, unescape};
use crate::peers::Engine;

/// Print what happens to containers, as it happens
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl events --filter event=die\n  ctl events --since 10m --until 0s"
)]
pub struct Events {
    /// From this time on, as far as it is kept: 10m (ago), 2026-01-02T15:04:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// container=, event=, image=, label=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// json or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

fn value(event: &Event) -> Value {
    let nanos = event.time.as_ref().map_or(0, |time| {
        time.seconds * 1_000_000_000 + i64::from(time.nanos)
    });
    json!({
        "Type": event.r#type, "Action": event.action, "status": event.action, "id": event.id, "ID": event.id,
        "from": event.attributes.get("image"), "scope": "local",
        "Actor": {"ID": event.id, "Attributes": text::object(&event.attributes)},
        "time": nanos / 1_000_000_000, "timeNano": nanos, "sequence": event.sequence,
    })
}

impl Events {
    /// Prints them until the user has enough.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let time = |flag: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => moment(flag, text).map(Some).map_err(Error::Usage),
        };
        let template = match self.format.as_deref() {
            None | Some("json") => None,
            Some(format) => Some(Template::parse(&unescape(format))?),
        };
        let mut request = EventsRequest {
            since: time("--since", &self.since)?,
            until: time("--until", &self.until)?,
            filters: self.filter.clone(),
            from_sequence: 0,
        };
        loop {
            let mut events = engine
                .call(|| {
                    let (mut client, request) = (engine.runtime(), request.clone());
                    async move { client.events(request).await }
                })
                .await?;
            loop {
                let event = match events.message().await {
                    Ok(Some(event)) => event,
                    Ok(None) if self.until.is_some() => return Ok(ExitCode::SUCCESS),
                    // The engine restarts, or we were too slow: on from where we were.
                    Ok(None) => break,
                    Err(status) => {
                        let error = engine.explain(status);
                        if error.is_away() {
                            break;
                        }
                        return Err(error);
                    }
                };
                if event.gap {
                    eprintln!("ctl: some events before this one are no longer kept");
                }
                request.from_sequence = event.sequence + 1;
                request.since = None;
                let line = match (&template, self.format.as_deref()) {
                    (Some(template), _) => template.render(&value(&event))?,
                    (None, Some(_)) => value(&event).to_string(),
                    (None, None) => format!(
                        "{} {} {} {} ({})",
                        text::rfc3339(event.time.as_ref()),
                        event.r#type,
                        event.action,
                        event.id,
                        text::pairs(&event.attributes).replace(',', ", ")
                    ),
                };
                print(&format!("{line}\n"))?;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// Tell about the engine and its host
#[derive(Debug, Args)]
pub struct Info {
    /// json or a template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

async fn information(engine: &Engine) -> Result<InfoResponse> {
    engine
        .call(|| {
            let mut client = engine.runtime();
            async move { client.info(InfoRequest {}).await }
        })
        .await
}

fn info_value(info: &InfoResponse) -> Value {
    json!({
        "Containers": info.containers, "ContainersRunning": info.running, "ContainersStopped": info.exited,
        "CgroupVersion": info.cgroup_version, "KernelVersion": info.kernel_version,
        "OperatingSystem": info.operating_system, "OSType": "linux", "Architecture": info.architecture,
        "NCPU": info.cpus, "MemTotal": info.memory, "RootDir": info.root, "ServerVersion": info.version,
        "Warnings": info.warnings,
    })
}

impl Info {
    /// Prints it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let info = information(engine).await?;
        let text = match self.format.as_deref() {
            Some("json") => format!("{}\n", info_value(&info)),
            Some(format) => {
                let template = Template::parse(&unescape(format))?;
                format!("{}\n", template.render(&info_value(&info))?)
            }
            None => format!(
                "Client:\n Version: {}\n\nServer:\n Version: {}\n Containers: {}\n  Running: {}\n  Exited: {}\n \
                 Operating System: {}\n Kernel Version: {}\n Architecture: {}\n CPUs: {}\n Total Memory: {:.2} GiB\n \
                 Cgroup Version: {}\n Root Dir: {}\n Run Dir: {}\n",
                env!("CARGO_PKG_VERSION"),
                info.version,
                info.containers,
                info.running,
                info.exited,
                info.operating_system,
                info.kernel_version,
                info.architecture,
                info.cpus,
                info.memory as f64 / f64::from(1 << 30),
                info.cgroup_version,
                info.root,
                engine.run_dir().display(),
            ),
        };
        print(&text)?;
        for warning in &info.warnings {
            eprintln!("WARNING: {warning}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the versions of this program and of the engine
#[derive(Debug, Args)]
pub struct Version {
    /// json or a template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Version {
    /// Prints them; without an engine, the own one alone.
    ///
    /// # Errors
    /// For a template that is wrong.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let server = information(engine).await;
        let own = env!("CARGO_PKG_VERSION");
        let value = json!({
            "Client": {"Version": own, "Os": "linux", "Arch": std::env::consts::ARCH},
            "Server": server.as_ref().ok().map(|info| json!({"Version": info.version, "KernelVersion": info.kernel_version, "Os": "linux", "Arch": info.architecture})),
        });
        let text = match self.format.as_deref() {
            Some("json") => format!("{value}\n"),
            Some(format) => format!("{}\n", Template::parse(&unescape(format))?.render(&value)?),
            None => {
                let client = format!(
                    "Client:\n Version: {own}\n OS/Arch: linux/{}\n",
                    std::env::consts::ARCH
                );
                match &server {
                    Ok(info) => format!(
                        "{client}\nServer:\n Version: {}\n OS/Arch: linux/{}\n Kernel: {}\n",
                        info.version, info.architecture, info.kernel_version
                    ),
                    Err(_) => client,
                }
            }
        };
        print(&text)?;
        match server {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(error),
        }
    }
}
