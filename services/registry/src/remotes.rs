//! All ways to one repository: mirrors first, the registry itself last.
//!
//! Invariants: what one way does not have, or cannot give, the next is asked for; the error that users see is the registry's own,
//! not a mirror's; the way that answered for the document is asked first for the blobs. Documents are tried again when a registry
//! is away for a moment, as blobs are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gantry_types::{Digest, Reference};

use crate::clients::Clients;
use crate::config::Config;
use crate::credentials::{self, Credentials};
use crate::error::Error;
use crate::hosts;
use crate::remote::{Document, Remote};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Access {
    /// "pull" or "pull,push".
    pub actions: &'static str,
    /// Instead of what the files say.
    pub credentials: Option<Credentials>,
    /// The registry itself is spoken to without TLS.
    pub plain_http: bool,
}

/// The ways, in their order.
pub struct Remotes {
    all: Vec<Arc<Remote>>,
    /// The one that answered last.
    good: AtomicUsize,
    attempts: u32,
}

impl Remotes {
    /// Reads the files and opens nothing.
    ///
    /// # Errors
    /// When a file of hosts or credentials is broken.
    pub async fn new(
        config: &Config,
        clients: &Clients,
        reference: &Reference,
        access: &Access,
    ) -> Result<Self, Error> {
        let stall = Duration::from_secs(config.stall_timeout_seconds);
        let mut all = Vec::new();
        for endpoint in hosts::route(config, reference, access.plain_http)? {
            let credentials = match &access.credentials {
                // What the user gave is for the registry, not for whoever mirrors it.
                Some(given) if endpoint.namespace.is_none() => given.clone(),
                _ => credentials::find(&endpoint.registry, &endpoint.repository).await?,
            };
            let http = clients.get(endpoint.tls.as_ref())?;
            let image = reference.familiar();
            all.push(Arc::new(Remote::new(
                http,
                endpoint,
                &image,
                access.actions,
                credentials,
                stall,
            )));
        }
        Ok(Self {
            all,
            good: AtomicUsize::new(0),
            attempts: config.attempts,
        })
    }

    /// The ways that may be pushed to.
    pub fn pushable(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.all.iter().filter(|remote| remote.endpoint().can.push)
    }

    /// Names in messages.
    pub fn registry(&self) -> &str {
        self.all.last().map_or("", |remote| remote.registry())
    }

    /// The way for the nth try at a blob: first nodes nearby, then the one that had the document, then the others in turn.
    pub fn at(&self, nth: usize) -> Option<&Arc<Remote>> {
        let good = self.good.load(Ordering::Relaxed);
        let mut able: Vec<(bool, bool, &Arc<Remote>)> = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, remote)| remote.endpoint().can.pull)
            // One nearby is a short cut, not to be waited for twice.
            .filter(|(_, remote)| !(remote.endpoint().near && remote.was_away()))
            .map(|(at, remote)| (!remote.endpoint().near, at != good, remote))
            .collect();
        able.sort_by_key(|(far, other, _)| (*far, *other));
        able.get(nth % able.len().max(1))
            .map(|(.., remote)| *remote)
    }

    /// How many ways there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// The registry's own.
    pub async fn document(&self, asked: &str) -> Result<Document, Error> {
        let pinned = asked.parse::<Digest>().is_ok();
        self.read(
            pinned,
            &format!("manifests/{asked}"),
            &format!("manifest {asked}"),
        )
        .await
    }

    /// Asks each way until one answers. With `pinned`, any that may give content; else one that may say what a tag means.
    ///
    /// # Errors
    /// The last way's.
    pub async fn read(&self, pinned: bool, path: &str, what: &str) -> Result<Document, Error> {
        let mut last = None;
        for (at, remote) in self.all.iter().enumerate() {
            let can = remote.endpoint().can;
            if !(if pinned { can.pull } else { can.resolve }) {
                continue;
            }
            let itself = at + 1 == self.all.len();
            // A mirror that is away is not waited for: the next way is.
            let attempts = if itself { self.attempts } else { 1 };
            let mut pause = Duration::from_millis(200);
            for attempt in 1..=attempts {
                match remote.read_document(path, what).await {
                    Ok(found) => {
                        self.good.store(at, Ordering::Relaxed);
                        return Ok(found);
                    }
                    Err(error) => {
                        let again = error.is_passing() && attempt < attempts;
                        tracing::debug!(registry = remote.registry(), %error, again, "asking failed");
                        last = Some(error.after(attempt));
                        if !again {
                            break;
                        }
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
        Err(last.unwrap_or_else(|| Error::Unsupported {
            image: self.registry().to_owned(),
            reason: "no host of its hosts.toml may be asked for this; add \"resolve\" and \"pull\" to capabilities"
                .into(),
        }))
    }
}
