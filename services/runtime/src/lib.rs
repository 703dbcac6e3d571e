//! The runtime service: containers, their execs and their shims. Rank 2: calls store, snapshotter, network and its shims.
//!
//! Invariants: a container never depends on this service being there: it runs under its shim, which keeps its output and its end
//! until they are taken; what was acknowledged survives; an operation goes on when its caller leaves.
//!
//! Reconcilers: recovery at start (shims, cut-off removals and restarts, what the peers hold for containers that are gone).
//!
//! ```text
//! Create: reserve name -> image -> snapshot + lease + volumes -> one commit
//! Start:  shim -> network -> launch plan -> running        exit: shim -> commit -> acknowledge -> network -> restart or remove
//! ```

mod api;
mod config;
mod container;
mod convert;
mod error;
mod events;
mod exec;
mod filter;
mod hub;
mod launch;
mod logs;
mod names;
mod network;
mod peers;
mod schema;
mod seccomp;
mod shim;
mod signal;
mod spec;
mod state;
mod stream;
mod top;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;

use crate::hub::Hub;

/// Serves until the drain starts.
///
/// # Errors
/// [`Error`] when the folder, the database, the control groups or the socket are unusable.
pub async fn run(
    config: Config,
    paths: Paths,
    listener: Listener,
    drain: Drain,
) -> Result<(), Error> {
    let hub = Hub::open(config, paths, drain.clone())?;
    hub.recover().await;
    drain.spawn("sync", hub.clone().sync());
    let served = gantry_chassis::serve("runtime", listener, api::routes(hub.clone()), &drain).await;
    hub.host.layout.release_parent(&hub.host.cgroup_parent);
    Ok(served?)
}
