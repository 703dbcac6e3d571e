//! The registry service: moves images between registries and the store. Rank 2: calls store and snapshotter; needs no
//! privileges; faces the internet.
//!
//! Invariants: nothing that a registry sends is believed before its digest was checked; every buffer has a bound; every wait has an
//! end; one blob is fetched once, however many ask for it.
//!
//! Reconcilers: none; at start the leases of pulls that were cut off are dropped.
//!
//! ```text
//! Serve: HTTP -> the store, under names of our own registry
//! Push: name -> index, manifests -> blobs side by side: there? mount, else upload -> manifests -> tag
//! Pull: tag -> (index ->) manifest -> config -> layers side by side: fetch -> store -> unpack -> name
//! ```

mod api;
mod auth;
mod clients;
mod config;
mod credentials;
mod document;
mod error;
mod fetch;
mod hosts;
mod peers;
mod progress;
mod pull;
mod push;
mod query;
mod remote;
mod remotes;
mod serve;
mod watch;

use std::sync::Arc;

use gantry_chassis::{Drain, Listener, Paths};

pub use config::Config;
pub use error::Error;

use crate::clients::Clients;
use crate::peers::Peers;
use crate::pull::Puller;
use crate::push::Pusher;
use crate::query::Asker;
use crate::serve::Registry;

/// Serves until the drain starts.
///
/// # Errors
/// [`Error`] when the socket is unusable.
pub async fn run(
    config: Config,
    paths: Paths,
    listener: Listener,
    drain: Drain,
) -> Result<(), Error> {
    let peers = Peers::new(&paths, &drain);
    let sweeper = peers.clone();
    drain.spawn("old leases", async move {
        if let Err(fault) = sweeper.drop_old_leases().await {
            tracing::info!(%fault, "the leases of earlier pulls end by themselves");
        }
    });
    let clients = Arc::<Clients>::default();
    let puller = Puller::new(config.clone(), peers.clone(), clients.clone());
    if !config.serve.listen.is_empty() {
        let own = Registry::new(config.serve.clone(), peers.clone(), puller.clone())?;
        let socket = own.listen().await?;
        drain.spawn("own registry", own.serve(socket, drain.clone(), None));
    }
    let parts = api::Parts {
        puller,
        pusher: Pusher::new(config.clone(), peers.clone(), clients.clone()),
        asker: Asker::new(config, clients),
        peers,
        drain: drain.clone(),
    };
    gantry_chassis::serve("registry", listener, api::routes(parts), &drain)
        .await
        .map_err(|error| Error::Serve(error.to_string()))
}
