//! Commands about space on disk: `system df`, `store check`, `gc`, and what prunes have in common.
//!
//! Invariant: nothing is removed that `--dry-run` would not have shown.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use gantry_proto::runtime::{ListRequest, Status};
use gantry_proto::snapshotter;
use gantry_proto::store::{
    CheckRequest, CollectGarbageRequest, CollectGarbageResponse, Finding, FindingKind,
    GetUsageRequest,
};
use serde_json::{Value, json};

use crate::error::Result;
use crate::output::{self, Row, print, text};
use crate::peers::Engine;

async fn collect(engine: &Engine, dry_run: bool, now: bool) -> Result<CollectGarbageResponse> {
    engine
        .call(|| {
            let mut client = engine.store();
            let request = CollectGarbageRequest { dry_run, now };
            async move { client.collect_garbage(request).await }
        })
        .await
}

/// Removes blobs and unpacked layers that nobody needs; the bytes of the blobs.
///
/// # Errors
/// What the engine says.
pub async fn reclaim(engine: &Engine) -> Result<i64> {
    let collected = collect(engine, false, true).await?;
    engine
        .call(|| {
            let mut client = engine.snapshotter();
            async move {
                client
                    .collect_garbage(snapshotter::CollectGarbageRequest {})
                    .await
            }
        })
        .await?;
    Ok(collected.bytes)
}

/// Remove what no image, container or pull needs
#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    /// Collects.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let found = collect(engine, true, true).await?;
        for blob in &found.removed {
            print(&format!(
                "{} {:>9}  no image and no lease reaches it\n",
                blob.digest,
                text::size(blob.size)
            ))?;
        }
        let bytes = if self.dry_run {
            found.bytes
        } else {
            reclaim(engine).await?
        };
        let verb = if self.dry_run {
            "Reclaimable"
        } else {
            "Total reclaimed"
        };
        print(&format!("{verb} space: {}\n", text::size(bytes)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Commands on the store of images
#[derive(Debug, Subcommand)]
pub enum Store {
    /// Compare records, files and digests
    #[command(
        after_help = "Without --repair nothing is changed: what is printed is the plan. The exit code is 0 when all is well or was\nrepaired, else 1."
    )]
    Check {
        /// Do what the plan says
        #[arg(long)]
        repair: bool,
        /// Compare sizes instead of reading every blob
        #[arg(long)]
        quick: bool,
    },
}

impl Store {
    /// Does it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let Store::Check { repair, quick } = self;
        let plan = findings(engine, false, quick).await?;
        for finding in &plan {
            print(&line(finding))?;
        }
        if plan.is_empty() {
            print("The store is clean\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        if !repair {
            return Ok(ExitCode::FAILURE);
        }
        let done = findings(engine, true, quick).await?;
        let repaired = done.iter().filter(|finding| finding.repaired).count();
        let left = done.len() - repaired;
        let bytes: i64 = done.iter().map(|finding| finding.bytes).sum();
        print(&format!(
            "{repaired} repaired, {left} for you to do, {} freed\n",
            text::size(bytes)
        ))?;
        Ok(if left == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

async fn findings(engine: &Engine, repair: bool, quick: bool) -> Result<Vec<Finding>> {
    let mut stream = engine
        .call(|| {
            let mut client = engine.store();
            async move { client.check(CheckRequest { repair, quick }).await }
        })
        .await?;
    let mut all = Vec::new();
    while let Some(finding) = stream
        .message()
        .await
        .map_err(|status| engine.explain(status))?
    {
        all.push(finding);
    }
    Ok(all)
}

fn line(finding: &Finding) -> String {
    let kind = match finding.kind() {
        FindingKind::Lost => "lost",
        FindingKind::Corrupt => "corrupt",
        FindingKind::Unknown => "unknown",
        FindingKind::Incomplete => "incomplete",
        FindingKind::Abandoned => "abandoned",
        FindingKind::Unspecified => "other",
    };
    format!(
        "{kind}: {}: {}; remedy: {}\n",
        finding.subject, finding.problem, finding.remedy
    )
}

/// Commands on the whole engine
#[derive(Debug, Subcommand)]
pub enum System {
    /// Show what is used on disk
    Df(Df),
}

impl System {
    /// Does it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let System::Df(df) = self;
        df.go(engine).await
    }
}

/// Show what is used on disk
#[derive(Debug, Args)]
pub struct Df {
    /// Each image, container and volume
    #[arg(short, long)]
    verbose: bool,
    /// json, a template, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
}

fn row(value: Value) -> Row {
    match value {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

/// A kind of thing: how many, how many in use, bytes, bytes that could go.
fn kind(name: &str, total: usize, active: usize, bytes: i64, idle: i64) -> Row {
    let share = if bytes > 0 { idle * 100 / bytes } else { 0 };
    row(json!({
        "Type": name,
        "TotalCount": total.to_string(),
        "Active": active.to_string(),
        "Size": text::size(bytes),
        "Reclaimable": if bytes > 0 { format!("{} ({share}%)", text::size(idle)) } else { text::size(idle) },
    }))
}

impl Df {
    async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let images = engine
            .call(|| {
                let mut client = engine.store();
                async move { client.get_usage(GetUsageRequest {}).await }
            })
            .await?;
        let trees = engine
            .call(|| {
                let mut client = engine.snapshotter();
                async move { client.get_usage(snapshotter::GetUsageRequest {}).await }
            })
            .await?;
        let volumes = engine
            .call(|| {
                let mut client = engine.snapshotter();
                async move {
                    client
                        .list_volumes(snapshotter::ListVolumesRequest {})
                        .await
                }
            })
            .await?;
        let containers = engine
            .call(|| {
                let mut client = engine.runtime();
                let request = ListRequest {
                    all: true,
                    filters: Vec::new(),
                };
                async move { client.list(request).await }
            })
            .await?
            .containers;
        let used = |id: &str| {
            containers
                .iter()
                .any(|one| !id.is_empty() && one.image_id == id)
        };
        let runs = |id: &str| {
            containers.iter().any(|one| {
                one.id == id && matches!(one.status(), Status::Running | Status::Stopping)
            })
        };
        let has_users = |name: &str| {
            volumes
                .volumes
                .iter()
                .any(|one| one.name == name && !one.users.is_empty())
        };
        if self.verbose {
            return verbose(&images.images, &trees, &containers, used);
        }
        let sum =
            |all: &[snapshotter::TreeUsage], kept: &dyn Fn(&str) -> bool| -> (usize, i64, i64) {
                let active = all.iter().filter(|one| kept(&one.name)).count();
                let bytes = all.iter().map(|one| one.bytes).sum();
                let idle = all
                    .iter()
                    .filter(|one| !kept(&one.name))
                    .map(|one| one.bytes)
                    .sum();
                (active, bytes, idle)
            };
        let idle: i64 = images
            .images
            .iter()
            .filter(|image| !used(&image.id))
            .map(|image| image.unique_bytes)
            .sum();
        let active = images.images.iter().filter(|image| used(&image.id)).count();
        let layers: i64 = trees.layers.iter().map(|layer| layer.size).sum();
        let (running, own, stopped) = sum(&trees.snapshots, &runs);
        let (mounted, kept, loose) = sum(&trees.volumes, &has_users);
        let rows = [
            kind(
                "Images",
                images.images.len(),
                active,
                images.total_bytes,
                idle + images.unreachable_bytes,
            ),
            kind(
                "Unpacked layers",
                trees.layers.len(),
                trees.layers.len(),
                layers,
                0,
            ),
            kind("Containers", trees.snapshots.len(), running, own, stopped),
            kind("Local Volumes", trees.volumes.len(), mounted, kept, loose),
        ];
        let columns = [
            ("TYPE", "Type"),
            ("TOTAL", "TotalCount"),
            ("ACTIVE", "Active"),
            ("SIZE", "Size"),
            ("RECLAIMABLE", "Reclaimable"),
        ];
        output::list(self.format.as_deref(), &columns, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn verbose(
    images: &[gantry_proto::store::ImageUsage],
    trees: &snapshotter::Usage,
    containers: &[gantry_proto::runtime::Container],
    used: impl Fn(&str) -> bool,
) -> Result<ExitCode> {
    let rows: Vec<Row> = images
        .iter()
        .map(|image| {
            row(json!({
                "Name": crate::image::familiar(&image.name),
                "ID": text::short_id(&image.id),
                "Size": image.total_bytes.to_string(),
                "SharedSize": (image.total_bytes - image.unique_bytes).to_string(),
                "UniqueSize": image.unique_bytes.to_string(),
                "Used": used(&image.id).to_string(),
            }))
        })
        .collect();
    print("Images (bytes):\n")?;
    let columns = [
        ("NAME", "Name"),
        ("IMAGE ID", "ID"),
        ("SIZE", "Size"),
        ("SHARED SIZE", "SharedSize"),
        ("UNIQUE SIZE", "UniqueSize"),
        ("USED", "Used"),
    ];
    output::list(None, &columns, &rows)?;
    let named = |id: &str| {
        let found = containers.iter().find(|one| one.id == id);
        found.map_or_else(|| text::short_id(id), |one| one.name.clone())
    };
    let tree = |usage: &snapshotter::TreeUsage, name: String| {
        row(json!({
            "Name": name,
            "Size": usage.bytes.to_string(),
            "Files": usage.inodes.to_string(),
        }))
    };
    let columns = [("NAME", "Name"), ("SIZE", "Size"), ("FILES", "Files")];
    print("\nContainers' own changes (bytes):\n")?;
    let rows: Vec<Row> = trees
        .snapshots
        .iter()
        .map(|usage| tree(usage, named(&usage.name)))
        .collect();
    output::list(None, &columns, &rows)?;
    print("\nVolumes (bytes):\n")?;
    let rows: Vec<Row> = trees
        .volumes
        .iter()
        .map(|usage| tree(usage, usage.name.clone()))
        .collect();
    output::list(None, &columns, &rows)?;
    Ok(ExitCode::SUCCESS)
}
