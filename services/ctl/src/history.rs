//! `history` and `images --tree`: what an image is made of.
//!
//! Invariant: columns are docker's.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::store::{DescribeImageRequest, ImageTree, ResolveImageRequest};
use serde_json::{Value, json};

use crate::error::Result;
use crate::flags::misc::platform;
use crate::output::{self, Row, print, text};
use crate::peers::Engine;

/// Show the steps that made an image
#[derive(Debug, Args)]
pub struct History {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut commands
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and times in people's words
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    human: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Platform, such as linux/arm64; the host's when left out
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Name or id
    image: String,
}

impl History {
    /// Shows it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let platform = self
            .platform
            .as_deref()
            .map(platform)
            .transpose()
            .map_err(crate::error::Error::Usage)?;
        let found = engine
            .call(|| {
                let mut client = engine.store();
                let request = ResolveImageRequest {
                    reference: self.image.clone(),
                    platform: platform.clone(),
                    ..ResolveImageRequest::default()
                };
                async move { client.resolve_image(request).await }
            })
            .await?;
        let config: Value = serde_json::from_slice(&found.config_json).unwrap_or_default();
        let id = found.config.unwrap_or_default().digest;
        let sizes: Vec<i64> = found
            .layers
            .iter()
            .map(|layer| layer.blob.clone().unwrap_or_default().size)
            .collect();
        let mut rows = steps(&config, &sizes, self.human, self.no_trunc);
        if let Some(last) = rows.first_mut() {
            let shown = if self.no_trunc {
                id
            } else {
                text::short_id(&id)
            };
            last.insert("ID".into(), json!(shown));
        }
        if self.quiet {
            let ids: String = rows
                .iter()
                .filter_map(|row| Some(format!("{}\n", row["ID"].as_str()?)))
                .collect();
            print(&ids)?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns = [
            ("IMAGE", "ID"),
            (
                "CREATED",
                if self.human {
                    "CreatedSince"
                } else {
                    "CreatedAt"
                },
            ),
            ("CREATED BY", "CreatedBy"),
            ("SIZE", "Size"),
            ("COMMENT", "Comment"),
        ];
        output::list(self.format.as_deref(), &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The steps, newest first. Sizes go to the steps that made a layer, in their order.
fn steps(config: &Value, sizes: &[i64], human: bool, whole: bool) -> Vec<Row> {
    let mut layers = sizes.iter();
    let none = Vec::new();
    let mut rows: Vec<Row> = config["history"]
        .as_array()
        .unwrap_or(&none)
        .iter()
        .filter_map(|step| {
            let empty = step["empty_layer"].as_bool().unwrap_or(false);
            let size = if empty {
                0
            } else {
                layers.next().copied().unwrap_or(0)
            };
            let made: Option<prost_types::Timestamp> =
                step["created"].as_str().and_then(|text| text.parse().ok());
            let by = step["created_by"].as_str().unwrap_or_default();
            let row = json!({
                "ID": "<missing>",
                "CreatedSince": text::ago(made.as_ref()),
                "CreatedAt": text::rfc3339(made.as_ref()),
                "CreatedBy": if whole { by.to_owned() } else { text::cut(by, 45) },
                "Size": if human { text::size(size) } else { size.to_string() },
                "Comment": step["comment"].as_str().unwrap_or_default(),
            });
            match row {
                Value::Object(row) => Some(row),
                _ => None,
            }
        })
        .collect();
    rows.reverse();
    rows
}

/// Everything below a name.
///
/// # Errors
/// What the engine says.
pub async fn describe(engine: &Engine, name: &str) -> Result<ImageTree> {
    engine
        .call(|| {
            let mut client = engine.store();
            let request = DescribeImageRequest {
                reference: name.to_owned(),
            };
            async move { client.describe_image(request).await }
        })
        .await
}

/// The lines of an image in `images --tree`.
pub fn tree(name: &str, tree: &ImageTree) -> String {
    let mut lines = String::new();
    let mut put = |depth: usize, what: &str, digest: &str, size: i64, note: &str| {
        let indent = "  ".repeat(depth);
        lines.push_str(&format!(
            "{:<50} {:<14} {:>9}  {note}\n",
            format!("{indent}{what}"),
            text::short_id(digest),
            text::size(size)
        ));
    };
    let target = tree
        .image
        .clone()
        .unwrap_or_default()
        .target
        .unwrap_or_default();
    let total = tree.members.iter().map(|member| member.held_bytes).sum();
    put(0, name, &target.digest, total, "");
    for member in &tree.members {
        if member.index {
            continue;
        }
        let at = member.descriptor.clone().unwrap_or_default();
        let platform = at.platform.clone().unwrap_or_default();
        let what = if member.attestation {
            "attestation".into()
        } else if !member.artifact_type.is_empty() {
            member.artifact_type.clone()
        } else if platform.architecture.is_empty() {
            "image".into()
        } else {
            let variant = if platform.variant.is_empty() {
                String::new()
            } else {
                format!("/{}", platform.variant)
            };
            format!("{}/{}{variant}", platform.os, platform.architecture)
        };
        let note = if member.held { "" } else { "not here" };
        put(1, &what, &at.digest, member.held_bytes, note);
        if !member.held {
            continue;
        }
        for layer in &member.layers {
            let blob = layer.blob.clone().unwrap_or_default();
            let kind = blob
                .media_type
                .rsplit(['.', '/'])
                .next()
                .unwrap_or_default();
            put(2, &format!("layer {kind}"), &blob.digest, blob.size, "");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_to_steps_with_layers() {
        let config = json!({"history": [
            {"created_by": "ADD", "created": "2026-01-02T03:04:05Z"},
            {"created_by": "ENV", "empty_layer": true},
            {"created_by": "RUN", "comment": "c"},
        ]});
        let rows = steps(&config, &[1000, 7], true, false);
        let sizes: Vec<&str> = rows.iter().filter_map(|row| row["Size"].as_str()).collect();
        assert_eq!(sizes, ["7B", "0B", "1kB"]);
        assert_eq!(rows[0]["Comment"], "c");
    }
}
