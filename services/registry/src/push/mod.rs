//! A push from beginning to end.
//!
//! Invariants: a manifest is sent after everything that it names, and the tag last, so a reader never meets half an image;
//! documents go out as the bytes that the store has; what the registry has already is not sent; a lease keeps everything meanwhile.

mod tree;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gantry_types::{Platform, Reference};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::mpsc;

use self::tree::{Node, Tree};
use self::upload::{Mounts, Upload};
use crate::clients::Clients;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::document::Descriptor;
use crate::error::Error;
use crate::peers::Peers;
use crate::progress::{Line, Rate, Sum};
use crate::remote::Remote;
use crate::remotes::{Access, Remotes};

/// How often a watcher hears.
const TICK: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// As users type it.
    pub reference: String,
    /// Where to; empty = the name says.
    pub destination: String,
    /// One image of an index.
    pub platform: Option<Platform>,
    /// Fail when a member of the index is missing.
    pub all_platforms: bool,
    /// Instead of what the files say.
    pub credentials: Option<Credentials>,
    /// Without TLS.
    pub plain_http: bool,
}

/// What a watcher hears.
#[derive(Debug, Clone)]
pub enum Event {
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
        /// Repository that it was taken over from.
        from: String,
    },
    /// All together.
    Total(Sum),
    /// Something the user should know.
    Note(String),
    /// The image is there.
    Done {
        /// Normalised.
        name: String,
        /// What the tag points to.
        target: Descriptor,
    },
}

/// Pushes images.
pub struct Pusher {
    config: Config,
    peers: Peers,
    clients: Arc<Clients>,
}

impl Pusher {
    /// Nothing is connected yet.
    pub fn new(config: Config, peers: Peers, clients: Arc<Clients>) -> Arc<Self> {
        Arc::new(Self {
            config,
            peers,
            clients,
        })
    }

    /// Pushes, telling how far it is. A repeat sends only what is missing there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn push(&self, wanted: Wanted, tell: &mpsc::Sender<Event>) -> Result<(), Error> {
        let source: Reference = wanted.reference.parse()?;
        let destination: Reference = if wanted.destination.is_empty() {
            source.clone()
        } else {
            wanted.destination.parse()?
        };
        let image = source.familiar();
        let peer = |fault| Error::Peer {
            image: image.clone(),
            fault,
        };
        let found = self
            .peers
            .target_of(&source.to_string())
            .await
            .map_err(peer)?;
        let target = found.ok_or_else(|| Error::NotHere {
            image: image.clone(),
        })?;
        let lease = format!("push-{:016x}", rand::random::<u64>());
        self.peers
            .hold(&lease, vec![target.digest.to_string()])
            .await
            .map_err(peer)?;
        let access = Access {
            actions: "pull,push",
            credentials: wanted.credentials.clone(),
            plain_http: wanted.plain_http,
        };
        let result = async {
            let remotes =
                Remotes::new(&self.config, &self.clients, &destination, &access).await?;
            let tree = Tree::read(&self.peers, &image, target).await?;
            let mut last = None;
            // An insecure registry is tried with TLS and without: the first way that answers is taken.
            for remote in remotes.pushable() {
                let run = Run {
                    pusher: self,
                    remote,
                    image: &image,
                    destination: &destination,
                };
                match run.all(&tree, &wanted, tell).await {
                    Err(error) if error.is_passing() => last = Some(error),
                    other => return other,
                }
            }
            Err(last.unwrap_or_else(|| Error::Unsupported {
                image: image.clone(),
                reason: format!(
                    "the files of hosts name nothing that may be pushed to for {}; add \"push\" to capabilities",
                    destination.registry()
                ),
            }))
        }
        .await;
        if let Err(fault) = self.peers.release(&lease).await {
            tracing::debug!(%fault, "the lease ends by itself");
        }
        // Last: whoever hears it may leave, which ends this work where it is.
        let _ = tell.send(result?).await;
        Ok(())
    }
}

struct Run<'a> {
    pusher: &'a Pusher,
    remote: &'a Arc<Remote>,
    image: &'a str,
    destination: &'a Reference,
}

impl Run<'_> {
    async fn all(
        &self,
        tree: &Tree,
        wanted: &Wanted,
        tell: &mpsc::Sender<Event>,
    ) -> Result<Event, Error> {
        let nodes = self.choose(tree, wanted, tell).await?;
        let Some(top) = nodes.last() else {
            return Err(self.unsupported("nothing of it is here"));
        };
        let mut blobs: Vec<Descriptor> = Vec::new();
        for blob in nodes.iter().flat_map(|node| &node.blobs) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob.clone());
            }
        }
        self.blobs(&blobs, tell).await?;
        let tag = self.destination.tag().map(str::to_owned);
        for (nth, node) in nodes.iter().enumerate() {
            let own = node.at.digest.to_string();
            let name = match &tag {
                Some(tag) if nth + 1 == nodes.len() => tag,
                _ => &own,
            };
            self.manifest(name, node).await?;
        }
        Ok(Event::Done {
            name: self.destination.to_string(),
            target: top.at.clone(),
        })
    }

    fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            image: self.image.to_owned(),
            reason: reason.into(),
        }
    }

    /// The documents to send, each after those that it names.
    async fn choose<'t>(
        &self,
        tree: &'t Tree,
        wanted: &Wanted,
        tell: &mpsc::Sender<Event>,
    ) -> Result<Vec<&'t Node>, Error> {
        if let Some(platform) = &wanted.platform {
            let node = tree.platform(platform).ok_or_else(|| Error::NoPlatform {
                image: self.image.to_owned(),
                platform: platform.to_string(),
                available: tree.platforms(),
            })?;
            return Ok(vec![node]);
        }
        let mut absent = Vec::new();
        for missing in tree.missing() {
            let path = format!("manifests/{}", missing.digest);
            let what = format!("manifest {}", missing.digest);
            if self.remote.head(&path, &what).await?.is_none() {
                absent.push(missing.digest.to_string());
            }
        }
        if absent.is_empty() {
            return Ok(tree.held().collect());
        }
        if wanted.all_platforms {
            return Err(self.unsupported(format!(
                "its index names what is not here: {}; pull it with --all-platforms",
                absent.join(", ")
            )));
        }
        let node = tree.platform(&Platform::host()).ok_or_else(|| {
            self.unsupported(format!(
                "its index names what is not here: {}, and nothing for this host is; choose one with --platform",
                absent.join(", ")
            ))
        })?;
        let note = format!(
            "only one platform of {} is here: its manifest is pushed without the index",
            self.image
        );
        let _ = tell.send(Event::Note(note)).await;
        Ok(vec![node])
    }

    async fn blobs(&self, blobs: &[Descriptor], tell: &mpsc::Sender<Event>) -> Result<(), Error> {
        let peers = &self.pusher.peers;
        let digests = blobs.iter().map(|blob| blob.digest.to_string()).collect();
        let paths = peers.paths(digests).await.map_err(|fault| Error::Peer {
            image: self.image.to_owned(),
            fault,
        })?;
        let mounts = Mounts::new(peers.clone(), self.destination.clone());
        let mut uploads = Vec::new();
        for blob in blobs {
            let path = paths
                .get(&blob.digest.to_string())
                .ok_or_else(|| self.unsupported(format!("layer {} is not here", blob.digest)))?;
            uploads.push(Upload {
                remote: self.remote,
                mounts: &mounts,
                blob,
                path,
                line: Line::new(blob.digest.to_string(), blob.size),
                attempts: self.pusher.config.attempts,
            });
        }
        let work = stream::iter(&uploads)
            .map(Ok)
            .try_for_each_concurrent(self.pusher.config.parallel, Upload::run);
        let mut work = std::pin::pin!(work);
        let mut watch = Watch {
            uploads: &uploads,
            last: vec![(u8::MAX, 0); uploads.len()],
            rate: Rate::new(0),
            tell,
        };
        loop {
            tokio::select! {
                ended = &mut work => {
                    ended?;
                    watch.look().await;
                    return Ok(());
                }
                () = tokio::time::sleep(TICK) => watch.look().await,
            }
        }
    }

    async fn manifest(&self, name: &str, node: &Node) -> Result<(), Error> {
        let what = format!("manifest {name}");
        let url = self.remote.url(&format!("manifests/{name}"));
        let mut pause = Duration::from_millis(200);
        for attempt in 1..=self.pusher.config.attempts {
            let sent = self
                .remote
                .send(Method::PUT, &url, &what, |request| {
                    request
                        .header(CONTENT_TYPE, &node.at.media_type)
                        .body(node.bytes.clone())
                })
                .await;
            let error = match sent {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => self.remote.refused(&what, response).await,
                Err(error) => error,
            };
            if !error.is_passing() || attempt == self.pusher.config.attempts {
                return Err(error.after(attempt));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        Ok(())
    }
}

/// Tells what has changed since the last look.
struct Watch<'a> {
    uploads: &'a [Upload<'a>],
    last: Vec<(u8, u64)>,
    rate: Rate,
    tell: &'a mpsc::Sender<Event>,
}

impl Watch<'_> {
    async fn look(&mut self) {
        let (mut current, mut total) = (0, 0);
        for (upload, last) in self.uploads.iter().zip(&mut self.last) {
            let now = upload.line.look();
            current += now.1;
            total += upload.line.total;
            if now != *last {
                *last = now;
                let event = Event::Layer {
                    digest: upload.line.digest.clone(),
                    phase: now.0,
                    current: now.1,
                    total: upload.line.total,
                    from: upload.line.source(),
                };
                let _ = self.tell.send(event).await;
            }
        }
        let sum = self.rate.sum(current, total);
        let _ = self.tell.send(Event::Total(sum)).await;
    }
}
