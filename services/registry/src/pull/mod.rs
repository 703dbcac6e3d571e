//! A pull from beginning to end.
//!
//! Invariants: the image gets its name last, when everything that it needs is stored (and unpacked, if asked for); until then a
//! lease keeps what has arrived; layers are fetched and unpacked side by side, each as soon as it can be.

mod run;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gantry_types::{Platform, Reference};
use tokio::sync::{Mutex, mpsc};

use self::run::Run;
use crate::clients::Clients;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::document::Descriptor;
use crate::error::Error;
use crate::fetch::Fetcher;
use crate::hosts;
use crate::peers::{Held, Peers};
use crate::progress::Sum;
use crate::remotes::{Access, Remotes};

/// When the registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each time.
    #[default]
    Always,
    /// Only when the store does not have the image.
    Missing,
    /// Each time, but an image that the store has will do when the registry cannot be asked.
    Newer,
    /// Not at all.
    Never,
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// As users type it.
    pub reference: String,
    /// `None` = the host's.
    pub platform: Option<Platform>,
    /// When the registry is asked.
    pub policy: Policy,
    /// Every image of an index, not one platform's alone.
    pub all_platforms: bool,
    /// Unpack the layers too.
    pub unpack: bool,
    /// Instead of what the files say.
    pub credentials: Option<Credentials>,
    /// Without TLS.
    pub plain_http: bool,
}

/// What a watcher hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// What the reference means.
    Resolved {
        /// Normalised.
        name: String,
        /// Of the index or manifest.
        target: Descriptor,
        /// Of the platform's manifest.
        manifest: Descriptor,
        /// Config and layers.
        blobs: Vec<Descriptor>,
    },
    /// One blob moved on.
    Layer {
        /// Which.
        digest: String,
        /// As on the wire.
        phase: u8,
        /// Bytes that are there.
        current: u64,
        /// Bytes of it.
        total: u64,
    },
    /// All together.
    Total(Sum),
    /// The image is there. Of an artifact, `id` is empty.
    Done {
        /// Normalised.
        name: String,
        /// What the name points to.
        digest: String,
        /// Digest of the config.
        id: String,
        /// Something is new.
        changed: bool,
    },
}

/// Pulls images.
pub struct Puller {
    config: Config,
    peers: Peers,
    fetcher: Fetcher,
    clients: Arc<Clients>,
    /// Held while a document is written: two pulls of one image have the same staging file for it.
    documents: Mutex<()>,
}

impl Puller {
    /// Nothing is connected yet.
    pub fn new(config: Config, peers: Peers, clients: Arc<Clients>) -> Arc<Self> {
        Arc::new(Self {
            config,
            peers,
            fetcher: Fetcher::default(),
            clients,
            documents: Mutex::default(),
        })
    }

    /// Pulls, telling how far it is. Dropping the future stops it; a repeat goes on from there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pull(&self, wanted: Wanted, tell: &mpsc::Sender<Event>) -> Result<(), Error> {
        let typed = hosts::alias(&self.config, &wanted.reference)?;
        let typed = typed.as_deref().unwrap_or(&wanted.reference);
        let reference: Reference = typed.parse()?;
        let image = reference.familiar();
        let platform = wanted.platform.clone().unwrap_or_else(Platform::host);
        let peer = |fault| Error::Peer {
            image: image.clone(),
            fault,
        };
        let asked_first = matches!(wanted.policy, Policy::Missing | Policy::Never);
        if asked_first {
            let held = self.peers.held(typed, &platform).await.map_err(peer)?;
            if let Some(held) = held {
                return self.already(&image, held, wanted.unpack, tell).await;
            }
            if wanted.policy == Policy::Never {
                return Err(Error::NotHere { image });
            }
        }
        let result = self.fetch(&reference, &platform, &wanted, tell).await;
        match result {
            Err(error) if wanted.policy == Policy::Newer && error.is_passing() => {
                match self.peers.held(typed, &platform).await.map_err(peer)? {
                    Some(held) => {
                        tracing::info!(image, %error, "the registry cannot be asked; what is here is used");
                        self.already(&image, held, wanted.unpack, tell).await
                    }
                    None => Err(error),
                }
            }
            other => other,
        }
    }

    async fn fetch(
        &self,
        reference: &Reference,
        platform: &Platform,
        wanted: &Wanted,
        tell: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        let access = Access {
            actions: "pull",
            credentials: wanted.credentials.clone(),
            plain_http: wanted.plain_http,
        };
        let remotes = Remotes::new(&self.config, &self.clients, reference, &access).await?;
        let run = Run {
            puller: self,
            remotes: Arc::new(remotes),
            image: reference.familiar(),
            lease: format!("pull-{:016x}", rand::random::<u64>()),
            changed: AtomicBool::default(),
        };
        let result = run.all(reference, platform, wanted, tell).await;
        // What has arrived stays for a repeat as an unfinished download or for the grace period of the store.
        if let Err(fault) = self.peers.release(&run.lease).await {
            tracing::debug!(%fault, "the lease ends by itself");
        }
        // Last: whoever hears it may leave, which ends this work where it is.
        let _ = tell.send(result?).await;
        Ok(())
    }

    /// The image is here: unpacks it, if asked for.
    async fn already(
        &self,
        image: &str,
        held: Held,
        unpack: bool,
        tell: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        if unpack {
            let each = held
                .layers
                .iter()
                .map(|(id, blob)| self.peers.unpack(id, blob));
            futures_util::future::try_join_all(each)
                .await
                .map_err(|fault| Error::Peer {
                    image: image.to_owned(),
                    fault,
                })?;
        }
        let done = Event::Done {
            name: held.name,
            digest: held.digest,
            id: held.id,
            changed: false,
        };
        let _ = tell.send(done).await;
        Ok(())
    }
}
