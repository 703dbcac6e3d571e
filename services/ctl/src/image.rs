//! Commands on images: `pull`, `images`, `rmi`, `tag`.
//!
//! Invariant: names are shown as users type them, and understood in either form.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::registry::{PullPolicy, PullRequest};
use gantry_proto::runtime::ListRequest;
use gantry_proto::store::{
    DeleteImageRequest, ImageSummary, ListImagesRequest, PutImageRequest, ResolveImageRequest,
};
use gantry_types::Reference;
use serde_json::{Value, json};

use crate::container::each;
use crate::error::{Error, Result};
use crate::flags::misc::platform;
use crate::output::text::{self, short_id};
use crate::output::{self, Row, print};
use crate::peers::Engine;
use crate::progress;

/// A stored name as users type it.
pub fn familiar(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Fetch images from registries
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl pull debian\n  ctl pull localhost:5000/team/app:2\n  ctl pull --platform linux/arm64 debian"
)]
pub struct Pull {
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    /// Platform, such as linux/arm64; the host's when left out
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Every image of an index, to keep and push it whole
    #[arg(long)]
    all_platforms: bool,
    /// Every tag of the repositories
    #[arg(short, long)]
    all_tags: bool,
    /// When to ask the registry: always, missing, newer (always, if it can be asked), never
    #[arg(long, value_name = "POLICY", default_value = "always", value_parser = ["always", "missing", "newer", "never"])]
    policy: String,
    /// Names with tag or digest
    #[arg(required = true)]
    images: Vec<String>,
}

impl Pull {
    /// Pulls them.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let platform = self
            .platform
            .as_deref()
            .map(platform)
            .transpose()
            .map_err(Error::Usage)?;
        let policy = match self.policy.as_str() {
            "missing" => PullPolicy::Missing,
            "newer" => PullPolicy::Newer,
            "never" => PullPolicy::Never,
            _ => PullPolicy::Always,
        };
        let mut images = Vec::new();
        for name in &self.images {
            if self.all_tags {
                let tags = crate::remote::tags(engine, name).await?;
                images.extend(tags.tags.iter().map(|tag| format!("{}:{tag}", tags.name)));
            } else {
                images.push(name.clone());
            }
        }
        each(&images, async |name| {
            let request = PullRequest {
                reference: name.to_owned(),
                platform: platform.clone(),
                policy: policy.into(),
                unpack: true,
                all_platforms: self.all_platforms,
                ..PullRequest::default()
            };
            let done = progress::pull(engine, request, self.quiet).await?;
            if !self.quiet {
                let what = if done.changed {
                    "Downloaded newer image for"
                } else {
                    "Image is up to date for"
                };
                eprintln!(
                    "Digest: {}\nStatus: {what} {}",
                    done.digest,
                    familiar(&done.name)
                );
            }
            print(&format!("{}\n", done.name))
        })
        .await
    }
}

/// List images
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl images\n  ctl images -q\n  ctl images --format '{{.Repository}}:{{.Tag}} {{.Size}}'"
)]
pub struct Images {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// reference=PATTERN
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only this repository
    repository: Option<String>,
}

/// Whether a name fits a pattern with `*` (which stops at a slash).
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .take_while(|at| !rest[..*at].contains('/'))
                .any(|at| fits(after, &rest[at..]))
        }),
    }
}

fn row(summary: &ImageSummary, whole: bool) -> Row {
    let image = summary.image.clone().unwrap_or_default();
    let reference = image.name.parse::<Reference>().ok();
    let (repository, tag) = match &reference {
        Some(reference) => {
            let familiar = reference.familiar();
            let tag = reference.tag().unwrap_or("<none>").to_owned();
            let bare = familiar.split('@').next().unwrap_or_default();
            let repository = bare.strip_suffix(&format!(":{tag}")).unwrap_or(bare);
            (repository.to_owned(), tag)
        }
        None => (image.name.clone(), "<none>".into()),
    };
    let target = image.target.unwrap_or_default();
    let id = if summary.id.is_empty() {
        &target.digest
    } else {
        &summary.id
    };
    let platform = summary.platform.clone().unwrap_or_default();
    let row = json!({
        "Repository": repository,
        "Tag": tag,
        "ID": if whole { id.clone() } else { short_id(id) },
        "Digest": target.digest,
        "CreatedAt": text::rfc3339(summary.built_at.as_ref()),
        "CreatedSince": text::ago(summary.built_at.as_ref()),
        "Size": text::size(summary.size),
        "Platform": format!("{}/{}", platform.os, platform.architecture),
        "Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A", "VirtualSize": text::size(summary.size),
    });
    match row {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

async fn all(engine: &Engine) -> Result<Vec<ImageSummary>> {
    let listed = engine
        .call(|| {
            let mut client = engine.store();
            async move { client.list_images(ListImagesRequest {}).await }
        })
        .await?;
    Ok(listed.images)
}

/// The stored names of a repository.
///
/// # Errors
/// When there is none.
pub async fn tags_of(engine: &Engine, repository: &str) -> Result<Vec<String>> {
    let wanted = repository
        .parse::<Reference>()
        .map_err(|error| Error::Usage(error.to_string()))?
        .name();
    let names: Vec<String> = all(engine)
        .await?
        .into_iter()
        .filter_map(|summary| Some(summary.image?.name))
        .filter(|name| {
            name.parse::<Reference>()
                .is_ok_and(|reference| reference.name() == wanted && reference.tag().is_some())
        })
        .collect();
    if names.is_empty() {
        return Err(Error::Usage(format!("no image here is of {repository}")));
    }
    Ok(names)
}

impl Images {
    fn wanted(&self, name: &str) -> Result<bool> {
        let familiar = familiar(name);
        let bare = familiar.split(['@']).next().unwrap_or_default();
        let repository =
            bare.rsplit_once(':').map_or(
                bare,
                |(repository, tag)| {
                    if tag.contains('/') { bare } else { repository }
                },
            );
        let matches = |pattern: &str| fits(pattern, bare) || fits(pattern, repository);
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("reference", pattern)) if !matches(pattern) => return Ok(false),
                Some(("reference" | "dangling", _)) => {}
                _ => {
                    return Err(Error::Usage(crate::flags::bad(
                        "--filter",
                        filter,
                        "write reference=PATTERN",
                    )));
                }
            }
        }
        Ok(self.repository.as_deref().is_none_or(matches))
    }

    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let mut rows = Vec::new();
        for summary in all(engine).await? {
            let name = summary.image.as_ref().map(|image| image.name.clone());
            if self.wanted(&name.unwrap_or_default())? {
                rows.push(row(&summary, self.no_trunc));
            }
        }
        if self.quiet && self.format.is_none() {
            let mut ids: Vec<&str> = rows.iter().filter_map(|row| row["ID"].as_str()).collect();
            ids.dedup();
            print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut columns = vec![
            ("REPOSITORY", "Repository"),
            ("TAG", "Tag"),
            ("IMAGE ID", "ID"),
            ("CREATED", "CreatedSince"),
            ("SIZE", "Size"),
        ];
        if self.digests {
            columns.insert(2, ("DIGEST", "Digest"));
        }
        output::list(self.format.as_deref(), &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove images
#[derive(Debug, Args)]
pub struct Rmi {
    /// Also when containers were made from them
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
}

impl Rmi {
    /// Removes them.
    ///
    /// # Errors
    /// When the engine is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        each(&self.images, async |name| self.one(engine, name).await).await
    }

    async fn one(&self, engine: &Engine, name: &str) -> Result<()> {
        let normal = name
            .parse::<Reference>()
            .map(|reference| reference.to_string());
        let summaries = all(engine).await?;
        let named = |summary: &&ImageSummary| {
            let image = summary.image.as_ref().map(|image| image.name.as_str());
            normal.as_deref().is_ok_and(|normal| image == Some(normal))
        };
        let mut found: Vec<&ImageSummary> = summaries.iter().filter(named).collect();
        if found.is_empty() {
            let bare = name.strip_prefix("sha256:").unwrap_or(name);
            let by_id = |summary: &&ImageSummary| {
                let hex = summary.id.strip_prefix("sha256:").unwrap_or(&summary.id);
                bare.len() >= 2 && hex.starts_with(bare)
            };
            found = summaries.iter().filter(by_id).collect();
        }
        let Some(first) = found.first() else {
            return Err(Error::Usage(format!("no such image: {name}")));
        };
        let remaining = summaries.iter().filter(|one| one.id == first.id).count();
        if !self.force && remaining == found.len() && !first.id.is_empty() {
            self.check_unused(engine, name, &first.id).await?;
        }
        if found.len() > 1 && !self.force {
            return Err(Error::Usage(format!(
                "image {name} has several names; remove them one by one, or all with -f"
            )));
        }
        for summary in found {
            let stored = summary.image.clone().unwrap_or_default().name;
            engine
                .call(|| {
                    let mut client = engine.store();
                    let request = DeleteImageRequest {
                        name: stored.clone(),
                    };
                    async move { client.delete_image(request).await }
                })
                .await?;
            print(&format!("Untagged: {}\n", familiar(&stored)))?;
        }
        Ok(())
    }

    async fn check_unused(&self, engine: &Engine, name: &str, id: &str) -> Result<()> {
        let listed = engine
            .call(|| {
                let mut client = engine.runtime();
                let request = ListRequest {
                    all: true,
                    filters: Vec::new(),
                };
                async move { client.list(request).await }
            })
            .await?;
        match listed.containers.iter().find(|one| one.image_id == id) {
            Some(user) => Err(Error::Usage(format!(
                "image {name} is used by container {}; remove that first, or the image with -f",
                user.name
            ))),
            None => Ok(()),
        }
    }
}

/// Give an image a further name
#[derive(Debug, Args)]
pub struct Tag {
    /// Name or id
    source: String,
    /// New name
    target: String,
}

impl Tag {
    /// Names it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let found = engine
            .call(|| {
                let mut client = engine.store();
                let request = ResolveImageRequest {
                    reference: self.source.clone(),
                    ..ResolveImageRequest::default()
                };
                async move { client.resolve_image(request).await }
            })
            .await?;
        engine
            .call(|| {
                let mut client = engine.store();
                let request = PutImageRequest {
                    name: self.target.clone(),
                    target: found.target.clone(),
                    ..PutImageRequest::default()
                };
                async move { client.put_image(request).await }
            })
            .await?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        for (pattern, name, yes) in [
            ("deb*", "debian", true),
            ("deb*", "debian/x", false),
            ("*/app", "team/app", true),
            ("a*c*", "abcd", true),
            ("x", "y", false),
        ] {
            assert_eq!(fits(pattern, name), yes, "{pattern} {name}");
        }
    }
}
