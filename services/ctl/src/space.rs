//! Commands about space on disk: `gc`, and what prunes have in common.
//!
//! Invariant: nothing is removed that `--dry-run` would not have shown.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::snapshotter;
use gantry_proto::store::{CollectGarbageRequest, CollectGarbageResponse};

use crate::error::Result;
use crate::output::{print, text};
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
