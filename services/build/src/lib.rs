//! The build service: everything that makes an image. Rank 3: calls store, snapshotter and runtime; needs no privileges and touches
//! no root file system itself.
//!
//! Invariants: an image gets its name last, when its blobs are stored; until then a lease keeps them; what is made from the same
//! things differs only in times.
//!
//! Reconcilers: none; at start the leases of what was cut off are dropped.
//!
//! ```text
//! Commit: container -> (freeze) snapshotter.Commit -> layer -> config + manifest -> name
//! Import: tar stream -> blob + diff_id -> config + manifest -> name
//! ```

mod api;
mod change;
mod commit;
mod config;
mod document;
mod error;
mod import;
mod peers;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;

use crate::peers::Peers;

/// Serves until the drain starts.
///
/// # Errors
/// [`Error`] when the socket is unusable.
pub async fn run(
    _config: Config,
    paths: Paths,
    listener: Listener,
    drain: Drain,
) -> Result<(), Error> {
    let peers = Peers::new(&paths, &drain);
    let sweeper = peers.clone();
    drain.spawn("old leases", async move {
        if let Err(error) = sweeper.drop_old_leases().await {
            tracing::info!(%error, "the leases of earlier work end by themselves");
        }
    });
    gantry_chassis::serve("build", listener, api::routes(peers), &drain).await?;
    Ok(())
}
