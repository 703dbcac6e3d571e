//! Commands on images: `pull`, `images`, `rmi`, `tag`, `image prune`.
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
use crate::filter;
use crate::flags::misc::platform;
use crate::history;
use crate::output::text::{self, short_id};
use crate::output::{self, Row, print};
use crate::peers::Engine;
use crate::progress;

/// A stored name as users type it.
pub fn familiar(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Repository of images that have no name of their own.
const DANGLING: &str = "localhost/dangling@";

/// Whether a stored name only keeps an image that has none.
pub fn is_dangling(name: &str) -> bool {
    name.starts_with(DANGLING)
}

/// Whether a name only holds what was pushed to our registry, beside its tags.
fn is_held(summary: &ImageSummary) -> bool {
    summary
        .image
        .as_ref()
        .is_some_and(|image| image.labels.contains_key("gantry.registry.held"))
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
    /// reference=PATTERN, dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE, digest=DIGEST
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Show what each image is made of: platforms and layers
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    tree: bool,
    /// Also manifests that our registry holds by their digest
    #[arg(short, long)]
    all: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only this repository
    repository: Option<String>,
}

fn row(summary: &ImageSummary, whole: bool) -> Row {
    let image = summary.image.clone().unwrap_or_default();
    let reference = image.name.parse::<Reference>().ok();
    let (repository, tag) = match &reference {
        Some(_) if is_dangling(&image.name) => ("<none>".into(), "<none>".into()),
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

/// Every name in the store.
///
/// # Errors
/// What the engine says.
pub async fn all(engine: &Engine) -> Result<Vec<ImageSummary>> {
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
    /// Lists them.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let summaries = all(engine).await?;
        let mut filters = filter::parse(&self.filter, &summaries)?;
        filters.extend(self.repository.clone().map(filter::Filter::Reference));
        let kept: Vec<&ImageSummary> = summaries
            .iter()
            .filter(|summary| self.all || !is_held(summary))
            .filter(|summary| filters.iter().all(|filter| filter.keeps(summary)))
            .collect();
        if self.tree {
            for summary in kept {
                let name = summary.image.clone().unwrap_or_default().name;
                let tree = history::describe(engine, &name).await?;
                print(&history::tree(&familiar(&name), &tree))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = kept
            .into_iter()
            .map(|summary| row(summary, self.no_trunc))
            .collect();
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
            delete(engine, &stored).await?;
            if is_dangling(&stored) {
                print(&format!("Deleted: {}\n", summary.id))?;
            } else {
                print(&format!("Untagged: {}\n", familiar(&stored)))?;
            }
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

/// Remove images that nobody uses
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  ctl image prune -f\n  ctl image prune -a --filter until=240h")]
pub struct Prune {
    /// Not only those without a name: all that no container uses
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=TIME or AGE (24h), label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    /// Removes them, and what nobody needs any more.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let question = if self.all {
            "This removes all images that no container uses"
        } else {
            "This removes all images without a name"
        };
        if !self.force && !crate::tty::confirmed(question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let summaries = all(engine).await?;
        let filters = filter::parse(&self.filter, &summaries)?;
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
        let mut removed = Vec::new();
        for summary in &summaries {
            let name = summary.image.clone().unwrap_or_default().name;
            let used = listed
                .containers
                .iter()
                .any(|container| !summary.id.is_empty() && container.image_id == summary.id);
            let wanted = (self.all || is_dangling(&name)) && !used;
            if !wanted || !filters.iter().all(|filter| filter.keeps(summary)) {
                continue;
            }
            delete(engine, &name).await?;
            removed.push(if is_dangling(&name) {
                format!("deleted: {}", summary.id)
            } else {
                format!("untagged: {}", familiar(&name))
            });
        }
        let bytes = crate::space::reclaim(engine).await?;
        if !removed.is_empty() {
            print(&format!("Deleted Images:\n{}\n\n", removed.join("\n")))?;
        }
        print(&format!("Total reclaimed space: {}\n", text::size(bytes)))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn delete(engine: &Engine, stored: &str) -> Result<()> {
    engine
        .call(|| {
            let mut client = engine.store();
            let request = DeleteImageRequest {
                name: stored.to_owned(),
            };
            async move { client.delete_image(request).await }
        })
        .await
        .map(drop)
}
