//! One pull: documents, then blobs side by side, then the name.
//!
//! Invariant: the image gets its name last, when everything that it needs is stored (and unpacked, if asked for); until then a
//! lease keeps what has arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use gantry_types::{Digest, Platform, Reference};
use tokio::sync::mpsc;

use super::{Event, Puller, Wanted};
use crate::document::{self, Descriptor, Document, Manifest};
use crate::error::Error;
use crate::fetch::Job;
use crate::peers::Staging;
use crate::progress::{Line, Phase};
use crate::remotes::Remotes;
use crate::watch::Watch;

/// How often a watcher hears.
const TICK: Duration = Duration::from_millis(100);
/// How deep an index may list indexes.
const DEEPEST: usize = 4;

/// A pull that runs.
pub struct Run<'a> {
    pub puller: &'a Puller,
    pub remotes: Arc<Remotes>,
    pub image: String,
    pub lease: String,
    pub changed: AtomicBool,
}

/// A manifest that is wanted.
struct Member {
    at: Descriptor,
    manifest: Manifest,
    /// It is for the platform that was asked for: its layers are unpacked.
    chosen: bool,
}

/// A layer that is wanted.
struct Layer {
    blob: Descriptor,
    /// `None` = it is kept as it is.
    diff_id: Option<Digest>,
    line: Arc<Line>,
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

    async fn hold(&self, digests: Vec<String>) -> Result<(), Error> {
        self.puller
            .peers
            .hold(&self.lease, digests)
            .await
            .map_err(|fault| self.peer(fault))
    }

    /// Everything; the last event, which is for the caller to send.
    pub async fn all(
        &self,
        reference: &Reference,
        platform: &Platform,
        wanted: &Wanted,
        tell: &mpsc::Sender<Event>,
    ) -> Result<Event, Error> {
        let (target, members) = self
            .resolve(reference, platform, wanted.all_platforms)
            .await?;
        let chosen = members.iter().find(|member| member.chosen);
        let shown = chosen.or(members.first());
        let name = reference.to_string();
        let mut blobs: Vec<Descriptor> = Vec::new();
        for member in &members {
            for blob in std::iter::once(&member.manifest.config).chain(&member.manifest.layers) {
                if !blobs.iter().any(|known| known.digest == blob.digest) {
                    blobs.push(blob.clone());
                }
            }
        }
        let held = members
            .iter()
            .map(|member| &member.at)
            .chain([&target])
            .chain(&blobs)
            .map(|blob| blob.digest.to_string());
        self.hold(held.collect()).await?;
        let resolved = Event::Resolved {
            name: name.clone(),
            target: target.clone(),
            manifest: shown.map_or(target.clone(), |member| member.at.clone()),
            blobs: shown.map_or(Vec::new(), |member| {
                let manifest = &member.manifest;
                std::iter::once(&manifest.config)
                    .chain(&manifest.layers)
                    .cloned()
                    .collect()
            }),
        };
        let _ = tell.send(resolved).await;
        let config = &self.puller.config;
        let job = Job {
            remotes: self.remotes.clone(),
            peers: self.puller.peers.clone(),
            image: self.image.clone(),
            attempts: config.attempts,
            ranges: config.ranges,
        };
        let explicit = wanted.platform.is_some();
        let layers = self
            .layers(&job, &members, platform, explicit, wanted.unpack)
            .await?;
        let lines: Vec<Arc<Line>> = layers.iter().map(|layer| layer.line.clone()).collect();
        let jobs: Vec<BoxFuture<'_, Result<(), Error>>> = layers
            .iter()
            .map(|layer| self.layer(&job, layer).boxed())
            .collect();
        let work = stream::iter(jobs)
            .buffer_unordered(config.parallel)
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
        let peers = &self.puller.peers;
        let before = peers
            .target_of(&name)
            .await
            .map_err(|fault| self.peer(fault))?;
        peers
            .name(&name, &target)
            .await
            .map_err(|fault| self.peer(fault))?;
        let digest = target.digest.to_string();
        let id = chosen.filter(|member| member.manifest.is_image());
        Ok(Event::Done {
            changed: before.as_ref() != Some(&target) || self.changed.load(Ordering::Relaxed),
            name,
            digest,
            id: id.map_or(String::new(), |member| {
                member.manifest.config.digest.to_string()
            }),
        })
    }

    /// From the reference to the manifests that are wanted; every document on the way is stored.
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        all: bool,
    ) -> Result<(Descriptor, Vec<Member>), Error> {
        let pinned = reference.digest().map(Digest::to_string);
        let asked = pinned
            .as_deref()
            .or(reference.tag())
            .unwrap_or("latest")
            .to_owned();
        let (target, document) = self.document(&asked, reference.digest(), None).await?;
        let entries = match document {
            Document::Manifest(manifest) => {
                let at = target.clone();
                return Ok((
                    target,
                    vec![Member {
                        at,
                        manifest,
                        chosen: true,
                    }],
                ));
            }
            Document::Index(entries) => entries,
        };
        let chosen = document::choose(&entries, platform);
        if chosen.is_none() && !all {
            return Err(Error::NoPlatform {
                image: self.image.clone(),
                platform: platform.to_string(),
                available: document::platforms(&entries),
            });
        }
        let mut members: Vec<Member> = Vec::new();
        let mut open: Vec<(Descriptor, usize)> = entries
            .iter()
            .map(|(entry, _)| entry)
            .filter(|entry| all || Some(*entry) == chosen)
            .map(|entry| (entry.clone(), 1))
            .collect();
        while let Some((entry, depth)) = open.pop() {
            let digest = &entry.digest;
            if members.iter().any(|member| member.at.digest == *digest) {
                continue;
            }
            let text = digest.to_string();
            let (found, document) = self.document(&text, Some(digest), Some(entry.size)).await?;
            match document {
                Document::Manifest(manifest) => members.push(Member {
                    chosen: chosen.is_some_and(|chosen| chosen.digest == found.digest),
                    at: found,
                    manifest,
                }),
                Document::Index(more) if all && depth < DEEPEST => {
                    open.extend(more.into_iter().map(|(entry, _)| (entry, depth + 1)));
                }
                Document::Index(_) => {
                    return Err(Error::Unsupported {
                        image: self.image.clone(),
                        reason: format!(
                            "index {} lists another index; pull it with --all-platforms, or that one by its digest {text}",
                            target.digest
                        ),
                    });
                }
            }
        }
        Ok((target, members))
    }

    /// The layers of the members, each once; configs are fetched and checked on the way.
    async fn layers(
        &self,
        job: &Job,
        members: &[Member],
        platform: &Platform,
        explicit: bool,
        unpack: bool,
    ) -> Result<Vec<Layer>, Error> {
        let mut layers: Vec<Layer> = Vec::new();
        for member in members {
            let manifest = &member.manifest;
            let wanted = member.chosen && manifest.is_image();
            let diff_ids = if wanted {
                self.config(job, manifest, platform, explicit)
                    .await?
                    .diff_ids
            } else {
                let fetched = self.puller.fetcher.fetch(job, &manifest.config);
                let fetched = fetched.ended.await?;
                self.changed.fetch_or(fetched, Ordering::Relaxed);
                Vec::new()
            };
            for (nth, blob) in manifest.layers.iter().enumerate() {
                let diff_id = diff_ids.get(nth).filter(|_| unpack).cloned();
                match layers
                    .iter_mut()
                    .find(|known| known.blob.digest == blob.digest)
                {
                    Some(known) => known.diff_id = known.diff_id.take().or(diff_id),
                    None => layers.push(Layer {
                        blob: blob.clone(),
                        diff_id,
                        line: Line::new(blob.digest.to_string(), blob.size),
                    }),
                }
            }
        }
        Ok(layers)
    }

    async fn document(
        &self,
        asked: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Descriptor, Document), Error> {
        let what = || format!("manifest {asked}");
        let found = self.remotes.document(asked).await?;
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
        self.hold(vec![descriptor.digest.to_string()]).await?;
        self.keep(&descriptor, &found.bytes).await?;
        Ok((descriptor, document))
    }

    /// Stores a document.
    async fn keep(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
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

    async fn layer(&self, job: &Job, layer: &Layer) -> Result<(), Error> {
        let flight = self.puller.fetcher.fetch(job, &layer.blob);
        layer.line.follow(flight.count.clone());
        let fetched = flight.ended.await?;
        self.changed.fetch_or(fetched, Ordering::Relaxed);
        if let Some(diff_id) = &layer.diff_id {
            layer.line.enter(Phase::Unpacking);
            self.puller
                .peers
                .unpack(&diff_id.to_string(), &layer.blob.digest)
                .await
                .map_err(|fault| self.peer(fault))?;
        }
        layer
            .line
            .enter(if fetched { Phase::Done } else { Phase::Exists });
        Ok(())
    }
}
