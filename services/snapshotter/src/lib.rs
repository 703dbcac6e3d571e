//! The snapshotter: unpacked layers, snapshots on top of them, volumes. Rank 1: calls the store.
//!
//! Invariants: a layer is unpacked on its own, whole or not at all, and is what its diff_id says; nothing that an archive says
//! reaches outside its directory; a snapshot's layers and a used volume are never removed.
//!
//! Reconcilers: start-up (records and files), the trash (after every removal), layers without use (on a timer).
//!
//! ```text
//! EnsureLayer: store blob -> decompress -> hash + apply -> new/<random> -> sync -> layers/<diff_id> + record
//! Prepare:     new/<random>/{upper,work,meta} -> snapshots/<key> + record -> overlay mount for the caller to make
//! ```

mod api;
mod apply;
mod config;
mod convert;
mod copy;
mod diff;
mod error;
mod files;
mod layer;
mod meta;
mod peers;
mod schema;
mod shelf;
mod snapshot;
mod tar;
mod unpack;
mod usage;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;

use crate::layer::Layers;
use crate::shelf::{Shelf, blocking};

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
    let shelf = Arc::new(Shelf::open(&paths.data("snapshotter"))?);
    let store = peers::Store::new(&paths.socket("store"));
    let layers = Layers::new(shelf.clone(), store, &config, drain.clone());
    drain.spawn("trash", empty_trash(shelf.clone(), drain.clone()));
    drain.spawn(
        "gc",
        collect(
            layers.clone(),
            Duration::from_secs(config.gc_interval_seconds),
            drain.clone(),
        ),
    );
    gantry_chassis::serve(
        "snapshotter",
        listener,
        api::routes(shelf, layers, drain.clone()),
        &drain,
    )
    .await?;
    Ok(())
}

async fn empty_trash(shelf: Arc<Shelf>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            () = shelf.trash_soon.notified() => {}
        }
        let files = shelf.files.clone();
        if let Err(error) = blocking(move || files.empty_trash()).await {
            tracing::warn!(%error, "the trash is not empty; it is tried again after the next removal");
        }
    }
}

async fn collect(layers: Arc<Layers>, interval: Duration, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match layers.collect().await {
            Ok(removed) if !removed.is_empty() => {
                tracing::info!(layers = removed.len(), "unused layers removed");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "unused layers are not removed; it is tried again")
            }
        }
    }
}
