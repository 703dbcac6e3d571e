//! Manifests and indexes: out by tag and digest, in with everything that they name, away.
//!
//! Invariants: documents are kept and given as the bytes that came; a tag moves only after the document is held by its digest;
//! removing a digest removes its tags. Source: distribution specification v1.1, "Pulling manifests", "Pushing Manifests", "Content
//! Management".

use bytes::Bytes;
use gantry_types::{Digest, Reference};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Request, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::error::Refusal;
use super::route::Of;
use super::{Answer, Registry, STALL, full, plain, set};
use crate::document::{self, Descriptor};
use crate::pull::{Policy, Wanted};
use crate::remote::MOST_DOCUMENT;

/// Label of names that only hold a pushed manifest by its digest; lists for people leave them out.
const HELD_LABEL: &str = "gantry.registry.held";

/// What a manifest says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Of itself.
    #[serde(default)]
    pub media_type: String,
    /// Of an artifact.
    #[serde(default)]
    pub artifact_type: String,
    /// What it refers to.
    pub subject: Option<Named>,
    /// Of a manifest.
    pub config: Option<Named>,
    /// Of a manifest.
    #[serde(default)]
    pub layers: Vec<Named>,
    /// Of an index.
    pub manifests: Option<Vec<Named>>,
    /// The maker's.
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A descriptor in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Which.
    #[serde(deserialize_with = "digest")]
    pub digest: Digest,
}

fn digest<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
    String::deserialize(from)?
        .parse()
        .map_err(serde::de::Error::custom)
}

impl Named {
    /// Layers that registries do not distribute are not asked for.
    fn is_foreign(&self) -> bool {
        self.media_type.contains("foreign") || self.media_type.contains("nondistributable")
    }
}

/// A manifest that was found.
pub struct Found {
    /// Under what it is stored.
    pub at: Descriptor,
    /// As it came.
    pub bytes: Bytes,
}

impl Registry {
    /// What a client means, when it is here.
    pub(super) async fn find(&self, of: &Of) -> Result<Option<Found>, Refusal> {
        for name in self.names.candidates(&of.repository, &of.namespace) {
            let found = match of.digest() {
                Some(digest) => self.pinned(&name, &digest).await?,
                None => {
                    let tagged = format!("{name}:{}", of.reference);
                    if tagged.parse::<Reference>().is_err() {
                        return Ok(None);
                    }
                    self.peers.target_of(&tagged).await?
                }
            };
            if let Some(at) = found {
                let bytes = match self.peers.read(&at.digest).await {
                    Ok(bytes) => bytes,
                    Err(fault) if fault.kind == gantry_types::ErrorKind::NotFound => continue,
                    Err(fault) => return Err(fault.into()),
                };
                return Ok(Some(Found {
                    at,
                    bytes: bytes.into(),
                }));
            }
        }
        Ok(None)
    }

    /// A digest of a repository: held by its own name, or part of an image of another registry.
    async fn pinned(&self, name: &str, digest: &Digest) -> Result<Option<Descriptor>, Refusal> {
        if let Some(at) = self.peers.target_of(&format!("{name}@{digest}")).await? {
            return Ok(Some(at));
        }
        if *name
            == self
                .names
                .own(name.split_once('/').map_or("", |(_, rest)| rest))
        {
            return Ok(None);
        }
        let same = |stored: &str| {
            stored
                .parse::<Reference>()
                .is_ok_and(|known| known.name() == *name)
        };
        let images = self.peers.images().await?;
        if !images.iter().any(|(stored, _)| same(stored)) {
            return Ok(None);
        }
        let Ok(bytes) = self.peers.read(digest).await else {
            return Ok(None);
        };
        let Ok(facts) = serde_json::from_slice::<Facts>(&bytes) else {
            return Ok(None);
        };
        Ok(Some(Descriptor {
            media_type: media_type(&facts).to_owned(),
            digest: digest.clone(),
            size: bytes.len() as u64,
        }))
    }

    /// Fetches what is not here from an upstream, when it is one of the settings.
    async fn fetch(&self, of: &Of) -> Result<(), Refusal> {
        let Some((registry, reference)) = self.names.upstream(of) else {
            return Ok(());
        };
        if !self.settings.upstreams.contains(&registry) {
            return Ok(());
        }
        let wanted = Wanted {
            reference,
            // A tag may have moved; a digest has not.
            policy: Policy::Newer,
            all_platforms: false,
            ..Wanted::default()
        };
        let (tell, mut told) = mpsc::channel(16);
        let heard = async move { while told.recv().await.is_some() {} };
        let work = async {
            let result = self.puller.pull(wanted, &tell).await;
            drop(tell);
            result
        };
        let (result, ()) = futures_util::future::join(work, heard).await;
        match result {
            Ok(()) | Err(crate::Error::NoImage { .. }) => Ok(()),
            Err(error) => Err(Refusal::server(error.to_string())),
        }
    }

    /// GET and HEAD.
    pub(super) async fn manifest(&self, of: &Of, _headers: &HeaderMap) -> Answer {
        let caches = !self.settings.upstreams.is_empty();
        let mut found = self.find(of).await?;
        if caches && (found.is_none() || of.digest().is_none()) {
            self.fetch(of).await?;
            found = self.find(of).await?;
        }
        let found = found
            .ok_or_else(|| Refusal::no_manifest(&format!("{}:{}", of.repository, of.reference)))?;
        let media_type = if found.at.media_type.is_empty() {
            serde_json::from_slice::<Facts>(&found.bytes)
                .map_or(String::new(), |facts| media_type(&facts).to_owned())
        } else {
            found.at.media_type.clone()
        };
        let length = found.bytes.len();
        let mut response = Response::new(full(found.bytes));
        set(&mut response, "content-type", &media_type);
        set(&mut response, "content-length", &length.to_string());
        set(
            &mut response,
            "docker-content-digest",
            &found.at.digest.to_string(),
        );
        Ok(response)
    }

    /// PUT.
    pub(super) async fn put_manifest(&self, of: &Of, request: Request<Incoming>) -> Answer {
        let kind = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = Limited::new(request.into_body(), MOST_DOCUMENT);
        let bytes = tokio::time::timeout(STALL, body.collect())
            .await
            .map_err(|_| Refusal::manifest("the body stands still"))?
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    Refusal::too_large(MOST_DOCUMENT)
                } else {
                    Refusal::manifest(error.to_string())
                }
            })?
            .to_bytes();
        let facts: Facts =
            serde_json::from_slice(&bytes).map_err(|error| Refusal::manifest(error.to_string()))?;
        if facts.config.is_none() && facts.manifests.is_none() {
            return Err(Refusal::manifest("neither a manifest nor an index"));
        }
        if !facts.media_type.is_empty() && !kind.is_empty() && facts.media_type != kind {
            return Err(Refusal::manifest(format!(
                "Content-Type says {kind}, the document {}",
                facts.media_type
            )));
        }
        let pinned = of.digest();
        let digest = match &pinned {
            Some(digest) if document::has_digest(&bytes, digest) => digest.clone(),
            Some(digest) => {
                return Err(Refusal::digest(format!("the document is not {digest}")));
            }
            None => document::digest_of(&bytes)
                .parse()
                .map_err(|error| Refusal::digest(format!("{error}")))?,
        };
        let tag = self.names.tag(&of.repository, &of.reference);
        if pinned.is_none() && tag.parse::<Reference>().is_err() {
            return Err(Refusal::manifest(format!("{:?} is no tag", of.reference)));
        }
        self.complete(&facts).await?;
        let at = Descriptor {
            media_type: if kind.is_empty() {
                media_type(&facts).to_owned()
            } else {
                kind
            },
            digest: digest.clone(),
            size: bytes.len() as u64,
        };
        let lease = format!("serve/{}/{digest}", of.repository);
        self.peers
            .hold_for(&lease, vec![digest.to_string()], 3600)
            .await?;
        self.peers.keep(&digest, &bytes).await?;
        let own = self.names.pinned(&of.repository, &digest);
        let labels = std::collections::HashMap::from([(HELD_LABEL.into(), "true".into())]);
        self.peers.name_with(&own, &at, labels).await?;
        if pinned.is_none() {
            self.peers.name(&tag, &at).await?;
        }
        self.peers.release(&lease).await?;
        let mut response = plain(StatusCode::CREATED);
        let location = format!("/v2/{}/manifests/{digest}", of.repository);
        set(&mut response, "location", &location);
        set(&mut response, "docker-content-digest", &digest.to_string());
        set(&mut response, "content-length", "0");
        if let Some(subject) = &facts.subject {
            set(&mut response, "oci-subject", &subject.digest.to_string());
        }
        Ok(response)
    }

    /// Everything that a document names is here; its subject need not be.
    async fn complete(&self, facts: &Facts) -> Result<(), Refusal> {
        let named = facts
            .config
            .iter()
            .chain(&facts.layers)
            .chain(facts.manifests.iter().flatten())
            .filter(|named| !named.is_foreign());
        let wanted: Vec<String> = named.map(|named| named.digest.to_string()).collect();
        let held = self.peers.paths(wanted.clone()).await?;
        match wanted.iter().find(|digest| !held.contains_key(*digest)) {
            Some(missing) => Err(Refusal::incomplete(missing)),
            None => Ok(()),
        }
    }

    /// DELETE of a tag, or of a digest with its tags.
    pub(super) async fn delete_manifest(&self, of: &Of) -> Answer {
        let unknown = || Refusal::no_manifest(&format!("{}:{}", of.repository, of.reference));
        let Some(digest) = of.digest() else {
            let tag = self.names.tag(&of.repository, &of.reference);
            if tag.parse::<Reference>().is_err() || !self.peers.unname(&tag).await? {
                return Err(unknown());
            }
            return Ok(plain(StatusCode::ACCEPTED));
        };
        let own = self.names.own(&of.repository);
        let mut existed = false;
        for (name, target) in self.peers.images().await? {
            let same = name
                .parse::<Reference>()
                .is_ok_and(|reference| reference.name() == own);
            if same && target.digest == digest {
                existed |= self.peers.unname(&name).await?;
            }
        }
        if !existed {
            return Err(unknown());
        }
        self.subjects.forget(&digest);
        Ok(plain(StatusCode::ACCEPTED))
    }
}

/// What a document is, when nothing else says it.
fn media_type(facts: &Facts) -> &str {
    use oci_distribution::manifest;
    if !facts.media_type.is_empty() {
        &facts.media_type
    } else if facts.manifests.is_some() {
        manifest::OCI_IMAGE_INDEX_MEDIA_TYPE
    } else {
        manifest::OCI_IMAGE_MEDIA_TYPE
    }
}
