//! From what a user typed to one platform's manifest, config and layers.
//!
//! Invariants: a name wins over an id; manifests are read once and remembered, since a digest's content never changes; an
//! index inside an index is followed a bounded number of times.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_types::{Digest, Platform, Reference};

use crate::Error;
use crate::blob::Files;
use crate::index::{Records, Store, blocking};
use crate::manifest::{self, ConfigFacts, Descriptor, Document};
use crate::schema::ImageRecord;

/// Deepest nesting of indexes.
const DEEPEST: usize = 4;
/// Shortest prefix of an id.
const SHORTEST_ID: usize = 4;
/// Remembered documents; each takes a few hundred bytes a layer.
const MOST_FACTS: usize = 16_384;

/// One document, understood. Always behind an `Arc`, so the size of the larger variant costs nothing.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(crate) enum Facts {
    Index(Vec<Descriptor>),
    Manifest {
        config: Descriptor,
        layers: Vec<(Descriptor, Digest)>,
        platform: Platform,
        created: Option<String>,
        labels: HashMap<String, String>,
    },
}

/// One platform of an image.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) target: Descriptor,
    pub(crate) manifest: Descriptor,
    /// Always a manifest.
    pub(crate) facts: Arc<Facts>,
}

/// What a table of images shows.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) name: String,
    pub(crate) record: ImageRecord,
    pub(crate) resolved: Option<Resolved>,
}

fn read(files: &Files, digest: &Digest) -> Result<Facts, Error> {
    let wrong = |digest: &Digest, reason| Error::Manifest {
        digest: digest.clone(),
        reason,
    };
    let bytes = files.read(digest, manifest::LARGEST)?;
    match manifest::parse(&bytes).map_err(|reason| wrong(digest, reason))? {
        Document::Index(entries) => Ok(Facts::Index(entries)),
        Document::Manifest { config, layers } => {
            let config_json = files.read(&config.digest, manifest::LARGEST)?;
            let facts =
                ConfigFacts::parse(&config_json).map_err(|reason| wrong(&config.digest, reason))?;
            let ids = facts
                .diff_ids(layers.len())
                .map_err(|reason| wrong(&config.digest, reason))?;
            Ok(Facts::Manifest {
                platform: facts.platform(),
                labels: facts.labels(),
                created: facts.created,
                layers: layers.into_iter().zip(ids).collect(),
                config,
            })
        }
    }
}

fn target(record: &ImageRecord) -> Result<Descriptor, Error> {
    Ok(Descriptor {
        media_type: record.media_type.clone(),
        digest: record.digest.parse()?,
        size: record.size,
        platform: None,
    })
}

impl Store {
    async fn facts(&self, name: &str, digest: &Digest) -> Result<Arc<Facts>, Error> {
        if let Some(facts) = self.records.lock().await.facts.get(digest) {
            return Ok(facts.clone());
        }
        let (files, wanted) = (self.files.clone(), digest.clone());
        let facts = blocking(move || read(&files, &wanted))
            .await
            .map_err(|error| match error {
                Error::NoBlob(digest) => Error::Incomplete {
                    name: name.to_owned(),
                    digest,
                },
                other => other,
            })?;
        let facts = Arc::new(facts);
        let mut records = self.records.lock().await;
        if records.facts.len() >= MOST_FACTS {
            // Some go, whichever: a list of more images than fit must not begin anew each time.
            let mut nth = 0;
            records.facts.retain(|_, _| {
                nth += 1;
                nth % 4 != 0
            });
        }
        records.facts.insert(digest.clone(), facts.clone());
        Ok(facts)
    }

    /// Follows a target to the manifest for a platform.
    pub(crate) async fn platform(
        &self,
        name: &str,
        target: &Descriptor,
        wanted: &Platform,
    ) -> Result<Resolved, Error> {
        let mut at = target.clone();
        for _ in 0..DEEPEST {
            let facts = self.facts(name, &at.digest).await?;
            match &*facts {
                Facts::Manifest { platform, .. } => {
                    // An image that names no platform is taken as it is, as docker takes it.
                    if !platform.os.is_empty()
                        && !platform.architecture.is_empty()
                        && !wanted.matches(platform)
                    {
                        return Err(Error::NoPlatform {
                            name: name.to_owned(),
                            platform: wanted.to_string(),
                            available: platform.to_string(),
                        });
                    }
                    return Ok(Resolved {
                        name: name.to_owned(),
                        target: target.clone(),
                        manifest: at,
                        facts,
                    });
                }
                Facts::Index(entries) => {
                    let fits = |entry: &&Descriptor| {
                        entry.platform.as_ref().is_none_or(|p| wanted.matches(p))
                    };
                    let exact = |entry: &&Descriptor| entry.platform.as_ref() == Some(wanted);
                    let found = entries
                        .iter()
                        .find(exact)
                        .or_else(|| entries.iter().find(fits));
                    at = found.cloned().ok_or_else(|| {
                        let names: Vec<String> = entries
                            .iter()
                            .filter_map(|e| Some(e.platform.as_ref()?.to_string()))
                            .collect();
                        Error::NoPlatform {
                            name: name.to_owned(),
                            platform: wanted.to_string(),
                            available: names.join(", "),
                        }
                    })?;
                }
            }
        }
        Err(Error::Manifest {
            digest: at.digest,
            reason: format!("indexes nest deeper than {DEEPEST}"),
        })
    }

    /// Finds an image by name, digest or id, and one platform of it, with its config as it is stored. A lease that is named
    /// gets all of it.
    pub(crate) async fn resolve(
        &self,
        text: &str,
        wanted: &Platform,
        lease: &str,
    ) -> Result<(Resolved, Vec<u8>), Error> {
        let (name, target) = self.find(text, wanted).await?;
        let resolved = self.platform(&name, &target, wanted).await?;
        if let Facts::Manifest { config, layers, .. } = &*resolved.facts {
            let mut digests = vec![
                resolved.target.digest.clone(),
                resolved.manifest.digest.clone(),
                config.digest.clone(),
            ];
            digests.extend(layers.iter().map(|(layer, _)| layer.digest.clone()));
            let mut records = self.records.lock().await;
            if let Some(missing) = digests
                .iter()
                .find(|digest| !records.blobs.contains_key(digest))
            {
                return Err(Error::Incomplete {
                    name: resolved.name,
                    digest: missing.clone(),
                });
            }
            self.lease_found(&mut records, lease, &digests).await?;
            drop(records);
            // Not among what is remembered: configs are what is large.
            let (files, config) = (self.files.clone(), config.digest.clone());
            let json = blocking(move || files.read(&config, manifest::LARGEST)).await?;
            return Ok((resolved, json));
        }
        Ok((resolved, Vec::new()))
    }

    /// What a user means: a name and what it points to.
    pub(crate) async fn find(
        &self,
        text: &str,
        wanted: &Platform,
    ) -> Result<(String, Descriptor), Error> {
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference
            && let Some(found) = by_name(&*self.records.lock().await, reference)?
        {
            return Ok(found);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = prefix.len() >= SHORTEST_ID
            && prefix.len() <= 64
            && prefix.bytes().all(|b| b.is_ascii_hexdigit());
        if is_id && let Some(found) = self.by_id(&prefix.to_ascii_lowercase(), wanted).await? {
            return Ok(found);
        }
        Err(Error::NoImage(reference?.familiar()))
    }

    async fn by_id(
        &self,
        prefix: &str,
        wanted: &Platform,
    ) -> Result<Option<(String, Descriptor)>, Error> {
        let mut found: Option<(String, Descriptor, Digest)> = None;
        for summary in self.list(wanted).await? {
            let Some(Resolved {
                facts,
                manifest,
                target,
                ..
            }) = summary.resolved
            else {
                continue;
            };
            let Facts::Manifest { config, .. } = &*facts else {
                continue;
            };
            let names = [&config.digest, &manifest.digest, &target.digest];
            if !names.iter().any(|digest| digest.hex().starts_with(prefix)) {
                continue;
            }
            match &found {
                Some((.., id)) if *id != config.digest => {
                    return Err(Error::Ambiguous(prefix.to_owned()));
                }
                Some(_) => {}
                None => found = Some((summary.name, target, config.digest.clone())),
            }
        }
        Ok(found.map(|(name, target, _)| (name, target)))
    }

    /// Every image, with its parts for a platform where they are held.
    pub(crate) async fn list(&self, wanted: &Platform) -> Result<Vec<Summary>, Error> {
        let images: Vec<(String, ImageRecord)> = self
            .records
            .lock()
            .await
            .images
            .iter()
            .map(|(name, image)| (name.clone(), image.clone()))
            .collect();
        let mut list = Vec::with_capacity(images.len());
        for (name, record) in images {
            let resolved = match target(&record) {
                Ok(target) => self.platform(&name, &target, wanted).await.ok(),
                Err(_) => None,
            };
            list.push(Summary {
                name,
                record,
                resolved,
            });
        }
        Ok(list)
    }

    /// One name's record.
    pub(crate) async fn image(&self, name: &str) -> Result<(String, ImageRecord), Error> {
        let reference: Reference = name.parse()?;
        let name = reference.to_string();
        let records = self.records.lock().await;
        records
            .images
            .get(&name)
            .map(|image| (name, image.clone()))
            .ok_or_else(|| Error::NoImage(reference.familiar()))
    }
}

fn by_name(
    records: &Records,
    reference: &Reference,
) -> Result<Option<(String, Descriptor)>, Error> {
    let name = reference.to_string();
    if let Some(record) = records.images.get(&name) {
        return Ok(Some((name, target(record)?)));
    }
    let Some(digest) = reference.digest() else {
        return Ok(None);
    };
    // name@digest: another name of that repository points to it, or its blob is held from an index of it.
    let repository = reference.name();
    let same = |name: &str| {
        name.parse::<Reference>()
            .is_ok_and(|known| known.name() == repository)
    };
    let text = digest.to_string();
    if let Some((name, record)) = records
        .images
        .iter()
        .find(|(name, image)| image.digest == text && same(name))
    {
        return Ok(Some((name.clone(), target(record)?)));
    }
    let held = records
        .blobs
        .get(digest)
        .filter(|_| records.images.keys().any(|name| same(name)));
    Ok(held.map(|blob| {
        let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
        (
            name,
            Descriptor {
                media_type: String::new(),
                digest: digest.clone(),
                size,
                platform: None,
            },
        )
    }))
}
