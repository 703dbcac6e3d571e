//! The network service: networks, the namespaces and endpoints of containers on them, published ports, names. Rank 0:
//! calls nobody. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
//!
//! Invariants: a sandbox is attached as a whole or not at all; whatever the engine has in the kernel carries its prefix,
//! its table or its folder, and what no record explains is swept at the start; other tables and interfaces are never
//! touched; an attach that finds everything warm makes one pair of interfaces and adds elements, no chain and no rule.
//!
//! Reconcilers: the start (records and kernel), the pool of namespaces.
//!
//! ```text
//! attach:  addresses, ports -> namespace (ready made) -> veth, addresses, routes -> pin -> nft elements -> record
//! detach:  record -> nft elements, ports -> unpin -> veth
//! ```

mod api;
mod choice;
mod cidr;
mod config;
mod convert;
mod dns;
mod engine;
mod error;
mod firewall;
mod ipam;
mod journal;
mod links;
mod names;
mod netlink;
mod networks;
mod pool;
mod ports;
mod publish;
mod reaper;
mod reserve;
mod resolv;
mod resync;
mod schema;
mod sysctl;

use std::sync::Arc;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;
pub use netlink::Refused;

use crate::engine::Engine;

/// Serves until the drain starts. Sandboxes stay as they are; with none left, bridges and nft table go.
///
/// # Errors
/// [`Error`] when the folders, the database, the kernel's netlink or the socket are unusable.
pub async fn run(
    config: Config,
    paths: Paths,
    listener: Listener,
    drain: Drain,
) -> Result<(), Error> {
    let ended = drain.clone();
    let opened = tokio::task::spawn_blocking(move || Engine::open(config, &paths, &ended)).await;
    let engine = Arc::new(opened.map_err(|_| Error::CutOff)??);
    engine.pool.keep_full(&drain);
    let served =
        gantry_chassis::serve("network", listener, api::routes(engine.clone()), &drain).await;
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .map_err(|_| Error::CutOff)?;
    Ok(served?)
}
