//! Looking at what a container does: `logs`, `top`.
//!
//! Invariant: what the container wrote to standard error goes to ours.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::runtime::{LogsRequest, TopRequest};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::flags::time::moment;
use crate::output::{self, Row, text};
use crate::peers::Engine;

/// Print what a container has written
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    tail: String,
    /// From this time on: 10m (ago), 2026-01-02T15:04:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Write the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Id or name
    container: String,
}

impl Logs {
    /// Prints it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        use std::io::Write as _;
        let tail = match self.tail.as_str() {
            "all" | "-1" => -1,
            number => number
                .parse::<i64>()
                .ok()
                .filter(|n| *n >= 0)
                .ok_or_else(|| {
                    Error::Usage(crate::flags::bad("--tail", number, "write a number or all"))
                })?,
        };
        let time = |flag: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => moment(flag, text).map(Some).map_err(Error::Usage),
        };
        let request = LogsRequest {
            id: self.container.clone(),
            follow: self.follow,
            tail,
            since: time("--since", &self.since)?,
            until: time("--until", &self.until)?,
        };
        let mut entries = engine
            .call(|| {
                let (mut client, request) = (engine.runtime(), request.clone());
                async move { client.logs(request).await }
            })
            .await?;
        loop {
            let entry = match entries.message().await {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(ExitCode::SUCCESS),
                Err(status) => return Err(engine.explain(status)),
            };
            let mut line = Vec::new();
            if self.timestamps {
                line.extend(text::rfc3339(entry.time.as_ref()).into_bytes());
                line.push(b' ');
            }
            line.extend(&entry.data);
            let written = if entry.stderr {
                std::io::stderr().write_all(&line)
            } else {
                let mut out = std::io::stdout().lock();
                out.write_all(&line).and_then(|()| out.flush())
            };
            if written.is_err() {
                return Err(Error::Closed);
            }
        }
    }
}

/// List the processes of a container
#[derive(Debug, Args)]
pub struct Top {
    /// Id or name
    container: String,
}

impl Top {
    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let top = engine
            .call(|| {
                let mut client = engine.runtime();
                let request = TopRequest {
                    id: self.container.clone(),
                };
                async move { client.top(request).await }
            })
            .await?;
        let columns: Vec<(&str, &str)> = top
            .titles
            .iter()
            .map(|title| (title.as_str(), title.as_str()))
            .collect();
        let rows: Vec<Row> = top
            .rows
            .iter()
            .map(|row| {
                let cells = top.titles.iter().cloned().zip(&row.values);
                cells
                    .map(|(key, value)| (key, Value::from(value.clone())))
                    .collect()
            })
            .collect();
        output::list(None, &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}
