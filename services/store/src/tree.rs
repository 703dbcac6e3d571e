//! Everything below a name: indexes, manifests, attestations, and what of them is held.
//!
//! Invariants: a member comes after the index that names it; the number of members is bounded; what is held is what has a file.

use std::collections::HashSet;

use gantry_types::{Digest, Platform};

use crate::Error;
use crate::blob::Files;
use crate::index::{Store, blocking};
use crate::manifest::{self, ConfigFacts, Descriptor, Whole};

/// Most members that are looked at.
const MOST: usize = 4096;

/// One document below a name.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) at: Descriptor,
    /// The index that names it.
    pub(crate) parent: Option<Digest>,
    pub(crate) index: bool,
    pub(crate) attestation: bool,
    /// The document and, of a manifest, everything that it names.
    pub(crate) held: bool,
    pub(crate) artifact_type: String,
    pub(crate) config: Option<Descriptor>,
    /// With diff_ids where it is an image whose config is held.
    pub(crate) layers: Vec<(Descriptor, Option<Digest>)>,
    pub(crate) held_bytes: u64,
}

impl Member {
    /// The blobs that it names beside other documents.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config
            .iter()
            .chain(self.layers.iter().map(|(layer, _)| layer))
    }

    /// Whether it is a whole image for a platform.
    pub(crate) fn runs_on(&self, wanted: &Platform) -> bool {
        let fits = |platform: &Platform| {
            platform.os.is_empty() || platform.architecture.is_empty() || wanted.matches(platform)
        };
        !self.index && !self.attestation && self.held && self.at.platform.as_ref().is_none_or(fits)
    }
}

/// Reads what is below a document. Blocks.
pub(crate) fn walk(files: &Files, top: &Descriptor) -> Result<Vec<Member>, Error> {
    let mut members = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![(top.clone(), None, false)];
    while let Some((at, parent, attestation)) = open.pop() {
        if members.len() >= MOST || !seen.insert(at.digest.clone()) {
            continue;
        }
        let mut member = Member {
            at,
            parent,
            index: false,
            attestation,
            held: false,
            artifact_type: String::new(),
            config: None,
            layers: Vec::new(),
            held_bytes: 0,
        };
        let digest = member.at.digest.clone();
        let bytes = match files.read(&digest, manifest::LARGEST) {
            Ok(bytes) => bytes,
            Err(Error::NoBlob(_)) => {
                members.push(member);
                continue;
            }
            Err(error) => return Err(error),
        };
        let whole = manifest::parse_whole(&bytes).map_err(|reason| Error::Manifest {
            digest: digest.clone(),
            reason,
        })?;
        match whole {
            Whole::Index(entries) => {
                member.index = true;
                member.held = true;
                // Taken from the end: the first entry comes first.
                open.extend(
                    entries
                        .into_iter()
                        .rev()
                        .map(|entry| (entry.at, Some(digest.clone()), entry.attestation)),
                );
            }
            Whole::Manifest {
                config,
                layers,
                artifact_type,
            } => {
                let facts = files
                    .read(&config.digest, manifest::LARGEST)
                    .ok()
                    .and_then(|bytes| ConfigFacts::parse(&bytes).ok());
                let ids = facts
                    .as_ref()
                    .and_then(|facts| facts.diff_ids(layers.len()).ok());
                if let Some(facts) = &facts
                    && member.at.platform.is_none()
                {
                    member.at.platform =
                        Some(facts.platform()).filter(|platform| !platform.os.is_empty());
                }
                member.layers = layers
                    .into_iter()
                    .enumerate()
                    .map(|(nth, layer)| {
                        let id = ids.as_ref().and_then(|ids| ids.get(nth)).cloned();
                        (layer, id)
                    })
                    .collect();
                member.config = Some(config);
                member.artifact_type = artifact_type;
                let sizes: Vec<Option<u64>> = member
                    .blobs()
                    .map(|blob| files.size(&blob.digest))
                    .collect();
                member.held = sizes.iter().all(Option::is_some);
                member.held_bytes = sizes.into_iter().flatten().sum();
            }
        }
        members.push(member);
    }
    Ok(members)
}

impl Store {
    /// What is below a name, digest or id: the name, the target, the members.
    pub(crate) async fn tree(
        &self,
        text: &str,
    ) -> Result<(String, Descriptor, Vec<Member>), Error> {
        let (name, target) = self.find(text, &Platform::host()).await?;
        let (files, top) = (self.files.clone(), target.clone());
        let members = blocking(move || walk(&files, &top)).await?;
        Ok((name, target, members))
    }
}
