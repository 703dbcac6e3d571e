//! The store: blobs by digest, image names, leases, garbage collection. Rank 0: calls nobody, needs no privileges.
//!
//! Invariants: a blob is visible under a digest only after its bytes were hashed to it and are on disk; what an image or a
//! live lease reaches is never collected, and neither is what was committed within the grace period; the index in memory
//! and the database change together, under one lock, the database first.
//!
//! Reconcilers: garbage collection (on a timer and after an image is deleted), start-up reconciliation of files and records.
//!
//! ```text
//! BeginIngest -> ingest/<key> --writer--> CommitIngest: hash, fsync, rename -> blobs/<alg>/<hex> + record
//! ```

mod api;
mod archive;
mod blob;
mod check;
mod config;
mod convert;
mod error;
mod gc;
mod index;
mod manifest;
mod resolve;
mod schema;
mod tree;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;

use crate::index::Store;

/// Serves until the drain starts.
///
/// # Errors
/// [`Error`] when the folder, the database or the socket is unusable.
pub async fn run(
    config: Config,
    paths: Paths,
    listener: Listener,
    drain: Drain,
) -> Result<(), Error> {
    let interval = Duration::from_secs(config.gc_interval_seconds);
    let store = Arc::new(Store::open(&paths.data("store"), &config)?);
    let (collector, ended) = (store.clone(), drain.clone());
    drain.spawn("gc", async move {
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
                () = collector.collect_soon.notified() => {}
            }
            match collector.collect(false, false).await {
                Ok(removed) if !removed.is_empty() => {
                    tracing::info!(blobs = removed.len(), "garbage collected")
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "garbage collection failed; it is tried again")
                }
            }
        }
    });
    store
        .sync_leases(archive::OWN_LEASES, &HashSet::new())
        .await?;
    gantry_chassis::serve("store", listener, api::routes(store, drain.clone()), &drain).await?;
    Ok(())
}
