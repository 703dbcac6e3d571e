//! What a name in the store leads to: indexes and manifests, as far as they are held.
//!
//! Invariant: children come before those that name them.

use std::collections::HashSet;

use bytes::Bytes;
use gantry_types::{ErrorKind, Platform};

use crate::document::{self, Descriptor, Document};
use crate::error::Error;
use crate::peers::Peers;

/// Most documents that are looked at.
const MOST: usize = 2000;

/// One document that is held.
#[derive(Debug)]
pub struct Node {
    /// Under what it is stored.
    pub at: Descriptor,
    /// As it is stored.
    pub bytes: Bytes,
    /// Config and layers; nothing for an index.
    pub blobs: Vec<Descriptor>,
    /// What the index says of it.
    pub platform: Option<Platform>,
    /// An index.
    index: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Tree {
    held: Vec<Node>,
    missing: Vec<Descriptor>,
    /// Platforms whose manifest is not whole.
    known: Vec<Platform>,
}

enum Step {
    Open(Descriptor, Option<Platform>),
    Close(Node),
}

impl Tree {
    /// Reads the documents, and asks which blobs are held.
    ///
    /// # Errors
    /// When the store fails or a document is none.
    pub async fn read(peers: &Peers, image: &str, top: Descriptor) -> Result<Self, Error> {
        let mut tree = Tree {
            held: Vec::new(),
            missing: Vec::new(),
            known: Vec::new(),
        };
        let mut seen = HashSet::new();
        let mut open = vec![Step::Open(top, None)];
        while let Some(step) = open.pop() {
            let (at, platform) = match step {
                Step::Close(node) => {
                    tree.held.push(node);
                    continue;
                }
                Step::Open(at, platform) => (at, platform),
            };
            if seen.len() >= MOST || !seen.insert(at.digest.clone()) {
                continue;
            }
            tree.known.extend(platform.clone());
            let bytes = match peers.read(&at.digest).await {
                Ok(bytes) => bytes,
                Err(fault) if fault.kind == ErrorKind::NotFound => {
                    tree.missing.push(at);
                    continue;
                }
                Err(fault) => {
                    return Err(Error::Peer {
                        image: image.to_owned(),
                        fault,
                    });
                }
            };
            let parsed = document::parse(&bytes).map_err(|reason| Error::Wrong {
                image: image.to_owned(),
                what: format!("manifest {}", at.digest),
                reason,
            })?;
            let node = |blobs, index| Node {
                at: at.clone(),
                bytes: bytes.clone().into(),
                blobs,
                platform: platform.clone(),
                index,
            };
            match parsed {
                Document::Index(entries) => {
                    open.push(Step::Close(node(Vec::new(), true)));
                    // Taken from the end: the first entry is sent first.
                    for (entry, platform) in entries.into_iter().rev() {
                        open.push(Step::Open(entry, platform));
                    }
                }
                Document::Manifest(manifest) => {
                    let blobs: Vec<Descriptor> = std::iter::once(manifest.config)
                        .chain(manifest.layers)
                        .collect();
                    let digests: HashSet<String> =
                        blobs.iter().map(|blob| blob.digest.to_string()).collect();
                    let wanted = digests.iter().cloned().collect();
                    let held = peers.paths(wanted).await.map_err(|fault| Error::Peer {
                        image: image.to_owned(),
                        fault,
                    })?;
                    if held.len() == digests.len() {
                        tree.held.push(node(blobs, false));
                    } else {
                        tree.missing.push(at.clone());
                    }
                }
            }
        }
        Ok(tree)
    }

    /// What is held, children first.
    pub fn held(&self) -> impl Iterator<Item = &Node> {
        self.held.iter()
    }

    /// What is named and not held, or not whole.
    pub fn missing(&self) -> &[Descriptor] {
        &self.missing
    }

    /// The held manifest for a platform; a single manifest is for all.
    pub fn platform(&self, wanted: &Platform) -> Option<&Node> {
        self.held.iter().find(|node| {
            !node.index
                && node
                    .platform
                    .as_ref()
                    .map_or(self.held.len() == 1, |platform| wanted.matches(platform))
        })
    }

    /// The platforms that it names, for a message.
    pub fn platforms(&self) -> String {
        let known: Vec<String> = self.known.iter().map(ToString::to_string).collect();
        if known.is_empty() {
            "one image that names no platform".into()
        } else {
            known.join(", ")
        }
    }
}
