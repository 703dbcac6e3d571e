//! A pull from beginning to end.
//!
//! Invariants: the image gets its name last, when everything that it needs is stored (and unpacked, if asked for); until then a
//! lease keeps what has arrived; layers are fetched and unpacked side by side, each as soon as it can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use gantry_types::{Digest, Platform, Reference};
use tokio::sync::{Mutex, OnceCell, mpsc};

use crate::config::Config;
use crate::credentials::{self, Credentials};
use crate::document::{self, Descriptor, Document, Manifest};
use crate::error::Error;
use crate::fetch::{Fetcher, Job};
use crate::peers::Peers;
use crate::progress::{Line, Phase, Sum};
use crate::remote::{self, Remote};
use crate::watch::Watch;

/// How often a watcher hears.
const TICK: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// As users type it.
    pub reference: String,
    /// `None` = the host's.
    pub platform: Option<Platform>,
    /// Ask the registry only when the store does not have the image.
    pub only_if_missing: bool,
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
    /// The image is there.
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
    secure: OnceCell<reqwest::Client>,
    plain: OnceCell<reqwest::Client>,
    /// Held while a document is written: two pulls of one image have the same staging file for it.
    documents: Mutex<()>,
}

/// A pull that runs.
struct Run<'a> {
    puller: &'a Puller,
    remote: Arc<Remote>,
    image: String,
    lease: String,
    changed: AtomicBool,
}

impl Puller {
    /// Nothing is connected yet.
    pub fn new(config: Config, peers: Peers) -> Arc<Self> {
        Arc::new(Self {
            config,
            peers,
            fetcher: Fetcher::default(),
            secure: OnceCell::new(),
            plain: OnceCell::new(),
            documents: Mutex::default(),
        })
    }

    /// Pulls, telling how far it is. Dropping the future stops it; a repeat goes on from there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pull(&self, wanted: Wanted, tell: &mpsc::Sender<Event>) -> Result<(), Error> {
        let reference: Reference = wanted.reference.parse()?;
        let image = reference.familiar();
        let platform = wanted.platform.clone().unwrap_or_else(Platform::host);
        let peer = |fault| Error::Peer {
            image: image.clone(),
            fault,
        };
        if wanted.only_if_missing {
            let held = self
                .peers
                .held(&wanted.reference, &platform)
                .await
                .map_err(peer)?;
            if let Some(held) = held {
                if wanted.unpack {
                    let each = held
                        .layers
                        .iter()
                        .map(|(id, blob)| self.peers.unpack(id, blob));
                    futures_util::future::try_join_all(each)
                        .await
                        .map_err(peer)?;
                }
                let done = Event::Done {
                    name: held.name,
                    digest: held.digest,
                    id: held.id,
                    changed: false,
                };
                let _ = tell.send(done).await;
                return Ok(());
            }
        }
        let credentials = match wanted.credentials {
            Some(credentials) => credentials,
            None => credentials::find(reference.registry(), reference.repository()).await?,
        };
        let plain = wanted.plain_http
            || reference.is_loopback()
            || self
                .config
                .plain_http
                .iter()
                .any(|host| host == reference.registry());
        let client = if plain { &self.plain } else { &self.secure };
        let http = client
            .get_or_try_init(|| async { remote::http(plain) })
            .await?
            .clone();
        let stall = Duration::from_secs(self.config.stall_timeout_seconds);
        let run = Run {
            puller: self,
            remote: Arc::new(Remote::new(http, &reference, plain, credentials, stall)),
            image: image.clone(),
            lease: format!("pull-{:016x}", rand::random::<u64>()),
            changed: AtomicBool::default(),
        };
        let explicit = wanted.platform.is_some();
        let result = run
            .all(&reference, &platform, explicit, wanted.unpack, tell)
            .await;
        // What has arrived stays for a repeat as an unfinished download or for the grace period of the store.
        if let Err(fault) = self.peers.release(&run.lease).await {
            tracing::debug!(%fault, "the lease ends by itself");
        }
        result
    }
}

impl Run<'_> {
    fn peer(&self, fault: gantry_chassis::Fault) -> Error {
        Error::Peer {
            image: self.image.clone(),
            fault,
        }
    }

    fn wrong(&self, what: String, reason: impl Into<String>) -> Error {
        Error::Wrong {
            image: self.image.clone(),
            what,
            reason: reason.into(),
        }
    }

    async fn all(
        &self,
        reference: &Reference,
        platform: &Platform,
        explicit: bool,
        unpack: bool,
        tell: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        let (target, manifest_at, manifest) = self.resolve(reference, platform).await?;
        let blobs: Vec<Descriptor> = std::iter::once(&manifest.config)
            .chain(&manifest.layers)
            .cloned()
            .collect();
        let held = [&target, &manifest_at]
            .into_iter()
            .chain(&blobs)
            .map(|blob| blob.digest.to_string());
        self.puller
            .peers
            .hold(&self.lease, held.collect())
            .await
            .map_err(|fault| self.peer(fault))?;
        let name = reference.to_string();
        let resolved = Event::Resolved {
            name: name.clone(),
            target: target.clone(),
            manifest: manifest_at.clone(),
            blobs: blobs.clone(),
        };
        let _ = tell.send(resolved).await;
        let job = Job {
            remote: self.remote.clone(),
            peers: self.puller.peers.clone(),
            image: self.image.clone(),
            attempts: self.puller.config.attempts,
        };
        let config = self.config(&job, &manifest, platform, explicit).await?;
        let lines: Vec<Arc<Line>> = manifest
            .layers
            .iter()
            .map(|layer| Line::new(layer.digest.to_string(), layer.size))
            .collect();
        let each = manifest.layers.iter().zip(&config.diff_ids).zip(&lines);
        let jobs: Vec<BoxFuture<'_, Result<(), Error>>> = each
            .map(|((layer, diff_id), line)| self.layer(&job, layer, diff_id, line, unpack).boxed())
            .collect();
        let work = stream::iter(jobs)
            .buffer_unordered(self.puller.config.parallel)
            .try_collect::<()>();
        {
            let mut work = std::pin::pin!(work);
            let mut watch = Watch::new(&lines, tell);
            loop {
                tokio::select! {
                    ended = &mut work => {
                        ended?;
                        watch.look().await;
                        break;
                    }
                    () = tokio::time::sleep(TICK) => watch.look().await,
                }
            }
        }
        let before = self
            .puller
            .peers
            .target(&name)
            .await
            .map_err(|fault| self.peer(fault))?;
        self.puller
            .peers
            .name(&name, &target)
            .await
            .map_err(|fault| self.peer(fault))?;
        let digest = target.digest.to_string();
        let done = Event::Done {
            changed: before.as_ref() != Some(&digest) || self.changed.load(Ordering::Relaxed),
            name,
            digest,
            id: manifest.config.digest.to_string(),
        };
        let _ = tell.send(done).await;
        Ok(())
    }

    /// From the reference to the platform's manifest; every document on the way is stored.
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Descriptor, Descriptor, Manifest), Error> {
        let pinned = reference.digest().map(Digest::to_string);
        let asked = pinned
            .as_deref()
            .or(reference.tag())
            .unwrap_or("latest")
            .to_owned();
        let (target, document) = self.document(&asked, reference.digest(), None).await?;
        let entries = match document {
            Document::Manifest(manifest) => return Ok((target.clone(), target, manifest)),
            Document::Index(entries) => entries,
        };
        let chosen = document::choose(&entries, platform).ok_or_else(|| Error::NoPlatform {
            image: self.image.clone(),
            platform: platform.to_string(),
            available: document::platforms(&entries),
        })?;
        let (found, document) = self
            .document(
                &chosen.digest.to_string(),
                Some(&chosen.digest),
                Some(chosen.size),
            )
            .await?;
        match document {
            Document::Manifest(manifest) => Ok((target, found, manifest)),
            Document::Index(_) => Err(Error::Unsupported {
                image: self.image.clone(),
                reason: format!("index {} lists another index", target.digest),
            }),
        }
    }

    async fn document(
        &self,
        asked: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Descriptor, Document), Error> {
        let what = || format!("manifest {asked}");
        let found = self.remote.document(asked).await?;
        if let Some(digest) = digest
            && !document::has_digest(&found.bytes, digest)
        {
            return Err(self.wrong(what(), "the registry sends something with another digest"));
        }
        if let Some(size) = size
            && size != found.bytes.len() as u64
        {
            return Err(self.wrong(what(), "the registry sends something of another size"));
        }
        let document =
            document::parse(&found.bytes).map_err(|reason| self.wrong(what(), reason))?;
        let digest = match digest {
            Some(digest) => digest.clone(),
            None => document::digest_of(&found.bytes)
                .parse()
                .map_err(|source| Error::Digest {
                    document: what(),
                    source,
                })?,
        };
        let descriptor = Descriptor {
            media_type: found.media_type,
            digest,
            size: found.bytes.len() as u64,
        };
        // Held before it is stored, so that no collection comes in between.
        self.puller
            .peers
            .hold(&self.lease, vec![descriptor.digest.to_string()])
            .await
            .map_err(|fault| self.peer(fault))?;
        self.keep(&descriptor, &found.bytes).await?;
        Ok((descriptor, document))
    }

    /// Stores a document.
    async fn keep(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
        use crate::peers::Staging;
        let peers = &self.puller.peers;
        let _turn = self.puller.documents.lock().await;
        let begun = peers.begin(&descriptor.digest, descriptor.size).await;
        match begun.map_err(|fault| self.peer(fault))? {
            Staging::Exists => Ok(()),
            Staging::File(path, _) => {
                // Whatever an earlier attempt left is written over.
                std::fs::write(&path, bytes).map_err(|error| Error::Write {
                    digest: descriptor.digest.clone(),
                    full: error.kind() == std::io::ErrorKind::StorageFull,
                    path,
                    reason: error.to_string(),
                })?;
                peers
                    .commit(&descriptor.digest, descriptor.size)
                    .await
                    .map_err(|fault| self.peer(fault))
            }
        }
    }

    async fn config(
        &self,
        job: &Job,
        manifest: &Manifest,
        platform: &Platform,
        explicit: bool,
    ) -> Result<document::Config, Error> {
        let digest = &manifest.config.digest;
        let what = || format!("config {digest}");
        let fetched = self
            .puller
            .fetcher
            .fetch(job, &manifest.config)
            .ended
            .await?;
        self.changed.fetch_or(fetched, Ordering::Relaxed);
        let bytes = self
            .puller
            .peers
            .read(digest)
            .await
            .map_err(|fault| self.peer(fault))?;
        let config = document::config(&bytes).map_err(|reason| self.wrong(what(), reason))?;
        if config.diff_ids.len() != manifest.layers.len() {
            let reason = format!(
                "it names {} layers, the manifest {}",
                config.diff_ids.len(),
                manifest.layers.len()
            );
            return Err(self.wrong(what(), reason));
        }
        if explicit
            && !config.platform.architecture.is_empty()
            && !platform.matches(&config.platform)
        {
            return Err(Error::NoPlatform {
                image: self.image.clone(),
                platform: platform.to_string(),
                available: config.platform.to_string(),
            });
        }
        Ok(config)
    }

    async fn layer(
        &self,
        job: &Job,
        layer: &Descriptor,
        diff_id: &Digest,
        line: &Line,
        unpack: bool,
    ) -> Result<(), Error> {
        let flight = self.puller.fetcher.fetch(job, layer);
        line.follow(flight.count.clone());
        let fetched = flight.ended.await?;
        self.changed.fetch_or(fetched, Ordering::Relaxed);
        if unpack {
            line.enter(Phase::Unpacking);
            self.puller
                .peers
                .unpack(&diff_id.to_string(), &layer.digest)
                .await
                .map_err(|fault| self.peer(fault))?;
        }
        line.enter(if fetched { Phase::Done } else { Phase::Exists });
        Ok(())
    }
}
