//! Commands on volumes: `volume create`, `ls`, `inspect`, `rm`.
//!
//! Invariant: the engine decides what is possible; nothing is checked twice.

use std::process::ExitCode;

use clap::Subcommand;
use gantry_proto::snapshotter::{CreateVolumeRequest, ListVolumesRequest, RemoveVolumeRequest};
use serde_json::{Value, json};

use crate::container::each;
use crate::error::{Error, Result};
use crate::flags::env::labels;
use crate::output::{self, Row, print, text};
use crate::peers::Engine;

/// Storage that outlives containers
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    Create {
        /// Label: KEY=VALUE
        #[arg(long, value_name = "LABEL")]
        label: Vec<String>,
        /// Name; made up when left out
        name: Option<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Only names
        #[arg(short, long)]
        quiet: bool,
        /// json, a template, or `table TEMPLATE`
        #[arg(long, value_name = "FORMAT")]
        format: Option<String>,
    },
    /// Show everything about volumes
    Inspect {
        /// A template, or json
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<String>,
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove volumes that nobody uses, with what is in them
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

impl Volume {
    /// Does it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        match self {
            Volume::Create { label, name } => {
                let request = CreateVolumeRequest {
                    name: name.unwrap_or_default(),
                    labels: labels(&[], &label).map_err(Error::Usage)?,
                    snapshot_key: String::new(),
                };
                let made = engine
                    .call(|| {
                        let (mut client, request) = (engine.snapshotter(), request.clone());
                        async move { client.create_volume(request).await }
                    })
                    .await?;
                print(&format!("{}\n", made.name))?;
                Ok(ExitCode::SUCCESS)
            }
            Volume::Ls { quiet, format } => list(engine, quiet, format.as_deref()).await,
            Volume::Inspect { format, names } => {
                crate::inspect::show(engine, &names, "volume", format.as_deref()).await
            }
            Volume::Rm { names } => {
                each(&names, async |name| {
                    engine
                        .call(|| {
                            let mut client = engine.snapshotter();
                            let request = RemoveVolumeRequest {
                                name: name.to_owned(),
                            };
                            async move { client.remove_volume(request).await }
                        })
                        .await?;
                    print(&format!("{name}\n"))
                })
                .await
            }
        }
    }
}

async fn list(engine: &Engine, quiet: bool, format: Option<&str>) -> Result<ExitCode> {
    let listed = engine
        .call(|| {
            let mut client = engine.snapshotter();
            async move { client.list_volumes(ListVolumesRequest {}).await }
        })
        .await?;
    let mut rows = Vec::new();
    for volume in &listed.volumes {
        let row = json!({
            "Name": volume.name, "Driver": "local", "Scope": "local", "Mountpoint": volume.path,
            "Labels": text::pairs(&volume.labels),
        });
        if let Value::Object(row) = row {
            rows.push(row);
        }
    }
    if quiet && format.is_none() {
        let name = |row: &Row| format!("{}\n", row["Name"].as_str().unwrap_or_default());
        print(&rows.iter().map(name).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    output::list(
        format,
        &[("DRIVER", "Driver"), ("VOLUME NAME", "Name")],
        &rows,
    )?;
    Ok(ExitCode::SUCCESS)
}
