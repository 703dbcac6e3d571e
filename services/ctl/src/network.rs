//! Commands on networks: `network create`, `ls`, `inspect`, `rm`.
//!
//! Invariant: the engine decides what is possible; nothing is checked twice.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use gantry_proto::network::{CreateNetworkRequest, ListNetworksRequest, RemoveNetworkRequest};
use serde_json::{Value, json};

use crate::container::each;
use crate::error::{Error, Result};
use crate::flags::env::labels;
use crate::output::text::short_id;
use crate::output::{self, Row, print};
use crate::peers::Engine;

/// Networks of containers
#[derive(Debug, Subcommand)]
pub enum Network {
    /// Make a network; containers on it find each other by name
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect {
        /// A template, or json
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove networks that nobody uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// How it is to be.
#[derive(Debug, Args)]
pub struct Create {
    /// bridge
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Addresses, such as 10.1.0.0/24; chosen when left out
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<String>,
    /// Address of the host on it
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// No way out
    #[arg(long)]
    internal: bool,
    /// IPv6 too (the default)
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// Largest packet, bytes
    #[arg(long, default_value = "0", hide_default_value = true)]
    mtu: u32,
    /// Label: KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Name
    name: String,
}

/// What to list.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Network {
    /// Does it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        match self {
            Network::Create(create) => create.go(engine).await,
            Network::Ls(list) => list.go(engine).await,
            Network::Inspect { format, names } => {
                crate::inspect::show(engine, &names, "network", format.as_deref()).await
            }
            Network::Rm { names } => {
                each(&names, async |name| {
                    engine
                        .call(|| {
                            let mut client = engine.network();
                            let request = RemoveNetworkRequest {
                                name: name.to_owned(),
                            };
                            async move { client.remove_network(request).await }
                        })
                        .await?;
                    print(&format!("{name}\n"))
                })
                .await
            }
        }
    }
}

impl Create {
    async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let request = CreateNetworkRequest {
            name: self.name,
            driver: self.driver,
            subnets: self.subnet,
            gateways: self.gateway,
            internal: self.internal,
            mtu: self.mtu,
            labels: labels(&[], &self.label).map_err(Error::Usage)?,
            disable_ipv6: !self.ipv6,
        };
        let made = engine
            .call(|| {
                let (mut client, request) = (engine.network(), request.clone());
                async move { client.create_network(request).await }
            })
            .await?;
        print(&format!("{}\n", made.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Ls {
    async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let listed = engine
            .call(|| {
                let mut client = engine.network();
                async move { client.list_networks(ListNetworksRequest {}).await }
            })
            .await?;
        let mut rows = Vec::new();
        for network in &listed.networks {
            let row = json!({
                "ID": if self.no_trunc { network.id.clone() } else { short_id(&network.id) },
                "Name": network.name, "Driver": network.driver, "Scope": "local",
                "Internal": network.internal.to_string(), "Subnets": network.subnets.join(", "),
                "Labels": crate::output::text::pairs(&network.labels),
            });
            if let Value::Object(row) = row {
                rows.push(row);
            }
        }
        if self.quiet && self.format.is_none() {
            let id = |row: &Row| format!("{}\n", row["ID"].as_str().unwrap_or_default());
            print(&rows.iter().map(id).collect::<String>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns = [
            ("NETWORK ID", "ID"),
            ("NAME", "Name"),
            ("DRIVER", "Driver"),
            ("SUBNETS", "Subnets"),
        ];
        output::list(self.format.as_deref(), &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}
