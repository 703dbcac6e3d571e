//! Commands that speak to registries beside `pull`: `push`, `image tags`, `image referrers`.
//!
//! Invariant: what a command prints on standard output is its result alone.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::registry::{
    ListReferrersRequest, ListTagsRequest, ListTagsResponse, PushRequest,
};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::flags::misc::platform;
use crate::image::familiar;
use crate::output::{self, Row, print, text};
use crate::peers::Engine;
use crate::progress;

/// Send images to registries
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl push localhost:5000/team/app:2\n  ctl push app:2 registry.example.com/team/app:2\n  ctl push --platform linux/arm64 registry.example.com/team/app"
)]
pub struct Push {
    /// Print only the name with its digest
    #[arg(short, long)]
    quiet: bool,
    /// Every tag of the repository that is here
    #[arg(short, long, conflicts_with = "destination")]
    all_tags: bool,
    /// One image of an index, without the index
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Fail when a part of the index is not here
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Name with tag
    image: String,
    /// Where to, when the name does not say
    destination: Option<String>,
}

impl Push {
    /// Pushes it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let platform = self
            .platform
            .as_deref()
            .map(platform)
            .transpose()
            .map_err(Error::Usage)?;
        let names = if self.all_tags {
            crate::image::tags_of(engine, &self.image).await?
        } else {
            vec![self.image.clone()]
        };
        for name in names {
            let request = PushRequest {
                reference: name,
                destination: self.destination.clone().unwrap_or_default(),
                platform: platform.clone(),
                all_platforms: self.all_platforms,
                ..PushRequest::default()
            };
            let done = progress::push(engine, request, self.quiet).await?;
            if !self.quiet {
                eprintln!(
                    "{}: digest: {} size: {}",
                    familiar(&done.name),
                    done.digest,
                    done.size
                );
            }
            print(&format!("{}\n", pinned(&done.name, &done.digest)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A name by its digest instead of its tag.
pub fn pinned(name: &str, digest: &str) -> String {
    let bare = name.split('@').next().unwrap_or(name);
    let repository = match bare.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => bare,
    };
    format!("{repository}@{digest}")
}

/// Tags of a repository of a registry.
///
/// # Errors
/// What the engine says.
pub async fn tags(engine: &Engine, repository: &str) -> Result<ListTagsResponse> {
    engine
        .call(|| {
            let mut client = engine.registry();
            let request = ListTagsRequest {
                reference: repository.to_owned(),
                ..ListTagsRequest::default()
            };
            async move { client.list_tags(request).await }
        })
        .await
}

/// List the tags of a repository in its registry
#[derive(Debug, Args)]
pub struct Tags {
    /// Repository
    repository: String,
}

impl Tags {
    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let found = tags(engine, &self.repository).await?;
        let lines: String = found.tags.iter().map(|tag| format!("{tag}\n")).collect();
        print(&lines)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// List what a registry has that refers to an image: signatures, attestations, SBOMs
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl image referrers registry.example.com/app:2\n  ctl image referrers --type application/spdx+json registry.example.com/app:2"
)]
pub struct Referrers {
    /// Only of this artifact type
    #[arg(long = "type", value_name = "TYPE")]
    artifact_type: Option<String>,
    /// Only names by digest, ready to be pulled
    #[arg(short, long)]
    quiet: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name with tag or digest
    image: String,
}

impl Referrers {
    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let found = engine
            .call(|| {
                let mut client = engine.registry();
                let request = ListReferrersRequest {
                    reference: self.image.clone(),
                    artifact_type: self.artifact_type.clone().unwrap_or_default(),
                    ..ListReferrersRequest::default()
                };
                async move { client.list_referrers(request).await }
            })
            .await?;
        let mut rows: Vec<Row> = Vec::new();
        for referrer in found.referrers {
            let at = referrer.descriptor.unwrap_or_default();
            if self.quiet {
                print(&format!("{}\n", pinned(&self.image, &at.digest)))?;
                continue;
            }
            let row = json!({
                "Digest": at.digest,
                "ArtifactType": referrer.artifact_type,
                "MediaType": at.media_type,
                "Size": text::size(at.size),
                "Annotations": referrer.annotations,
                "Subject": found.digest,
            });
            if let Value::Object(row) = row {
                rows.push(row);
            }
        }
        if !self.quiet {
            let columns = [
                ("DIGEST", "Digest"),
                ("TYPE", "ArtifactType"),
                ("SIZE", "Size"),
            ];
            output::list(self.format.as_deref(), &columns, &rows)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_way_to_the_digest() {
        for (name, want) in [
            ("localhost:5000/a:1", "localhost:5000/a@d"),
            ("localhost:5000/a", "localhost:5000/a@d"),
            ("a@sha256:0", "a@d"),
        ] {
            assert_eq!(pinned(name, "d"), want);
        }
    }
}
