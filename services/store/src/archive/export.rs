//! Images out as one tar stream.
//!
//! Invariants: blobs come in the order of their digests, after the documents that say what they are; a lease keeps them while they
//! are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use gantry_chassis::pipe::Writer;
use gantry_types::{Digest, Platform, Reference};
use tokio::sync::mpsc;

use super::layout::{self, DockerImage, Named};
use super::{DANGLING, OWN_LEASES};
use crate::Error;
use crate::blob::Files;
use crate::index::{Store, blocking};
use crate::tree::{Member, walk};

/// Seconds that a stream may take.
const LEASE_SECONDS: i64 = 86_400;

/// What is written.
#[derive(Debug, Default)]
struct Plan {
    images: Vec<Named>,
    docker: BTreeMap<String, DockerImage>,
    blobs: BTreeSet<Digest>,
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

impl Plan {
    fn add(
        &mut self,
        image: Named,
        members: &[Member],
        platforms: &[Platform],
    ) -> Result<(), Error> {
        let name = image
            .name
            .clone()
            .unwrap_or_else(|| image.target.digest.to_string());
        let mut images = vec![image.clone()];
        let mut wanted: Vec<&Member> = members
            .iter()
            .filter(|member| member.index || member.held)
            .collect();
        if !platforms.is_empty() {
            images.clear();
            wanted.clear();
            for platform in platforms {
                let found = members.iter().find(|member| member.runs_on(platform));
                let found = found.ok_or_else(|| Error::NoPlatform {
                    name: name.clone(),
                    platform: platform.to_string(),
                    available: available(members),
                })?;
                wanted.push(found);
                images.push(Named {
                    name: image.name.clone(),
                    target: found.at.clone(),
                });
            }
        }
        let whole = wanted.iter().filter(|member| !member.index);
        if whole.clone().next().is_none() {
            return Err(Error::Incomplete {
                name,
                digest: image.target.digest,
            });
        }
        for member in &wanted {
            self.blobs.insert(member.at.digest.clone());
            self.blobs
                .extend(member.blobs().map(|blob| blob.digest.clone()));
        }
        // What docker takes is one image a name: this host's, else the first.
        let host = Platform::host();
        let image_of = |member: &&&Member| !member.attestation && member.artifact_type.is_empty();
        let mut candidates = whole.filter(image_of);
        let shown = candidates
            .clone()
            .find(|member| member.runs_on(&host))
            .or_else(|| candidates.next());
        if let Some(member) = shown
            && let Some(config) = &member.config
        {
            let entry = self
                .docker
                .entry(member.at.digest.to_string())
                .or_insert_with(|| DockerImage {
                    config: path(&config.digest),
                    repo_tags: None,
                    layers: member
                        .layers
                        .iter()
                        .map(|(layer, _)| path(&layer.digest))
                        .collect(),
                });
            let familiar = image
                .name
                .as_ref()
                .and_then(|name| name.parse::<Reference>().ok())
                .filter(|reference| reference.tag().is_some())
                .map(|reference| reference.familiar());
            if let Some(familiar) = familiar {
                let tags = entry.repo_tags.get_or_insert_default();
                if !tags.contains(&familiar) {
                    tags.push(familiar);
                    tags.sort();
                }
            }
        }
        for image in images {
            let known =
                |old: &Named| old.name == image.name && old.target.digest == image.target.digest;
            if !self.images.iter().any(known) {
                self.images.push(image);
            }
        }
        Ok(())
    }

    /// Writes everything. Blocks.
    fn write(mut self, files: &Files, out: Writer) -> Result<(), Error> {
        self.images.sort_by(|a, b| {
            (&a.name, a.target.digest.to_string()).cmp(&(&b.name, b.target.digest.to_string()))
        });
        let docker: Vec<DockerImage> = self.docker.into_values().collect();
        let docker = serde_json::to_vec(&docker).unwrap_or_default();
        let mut tar = tar::Builder::new(out);
        let gone = |_| Error::Gone;
        for (name, bytes) in [
            ("oci-layout", layout::marker()),
            ("index.json", layout::index(&self.images)),
            ("manifest.json", docker),
        ] {
            let mut header = header(bytes.len() as u64, tar::EntryType::Regular, 0o644);
            tar.append_data(&mut header, name, bytes.as_slice())
                .map_err(gone)?;
        }
        let mut folders = vec!["blobs/".to_owned()];
        let algorithms: BTreeSet<&str> = self
            .blobs
            .iter()
            .map(|digest| digest.algorithm().as_str())
            .collect();
        folders.extend(algorithms.iter().map(|name| format!("blobs/{name}/")));
        for folder in folders {
            let mut header = header(0, tar::EntryType::Directory, 0o755);
            tar.append_data(&mut header, &folder, std::io::empty())
                .map_err(gone)?;
        }
        for digest in &self.blobs {
            let at = files.blob(digest);
            let file = File::open(&at).map_err(Error::io("open", &at))?;
            let size = file.metadata().map_err(Error::io("read", &at))?.len();
            let mut header = header(size, tar::EntryType::Regular, 0o644);
            tar.append_data(&mut header, path(digest), file)
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::BrokenPipe => Error::Gone,
                    _ => Error::io("read", &at)(error),
                })?;
        }
        let mut out = tar.into_inner().map_err(gone)?;
        out.flush().map_err(gone)
    }
}

fn available(members: &[Member]) -> String {
    let held: Vec<String> = members
        .iter()
        .filter(|member| member.held && !member.index && !member.attestation)
        .filter_map(|member| Some(member.at.platform.as_ref()?.to_string()))
        .collect();
    if held.is_empty() {
        "none whole".into()
    } else {
        held.join(", ")
    }
}

fn header(size: u64, kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

impl Store {
    /// Names behind what a user typed: a repository without a tag means all its tags, as docker's.
    async fn named(&self, text: &str) -> Result<Vec<String>, Error> {
        let reference = text.parse::<Reference>();
        let typed_tag = text.contains('@')
            || text
                .rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':'));
        let (Ok(reference), false) = (&reference, typed_tag) else {
            return Ok(vec![text.to_owned()]);
        };
        let records = self.records.lock().await;
        let names: Vec<String> = records
            .images
            .keys()
            .filter(|name| {
                name.parse::<Reference>()
                    .is_ok_and(|known| known.name() == reference.name() && known.tag().is_some())
            })
            .cloned()
            .collect();
        // Else it may be an id.
        Ok(if names.is_empty() {
            vec![text.to_owned()]
        } else {
            names
        })
    }

    /// Writes images into a channel, to its end.
    pub(crate) async fn export(
        self: &Arc<Self>,
        references: &[String],
        platforms: &[Platform],
        to: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Error> {
        if references.is_empty() {
            return Err(Error::Field {
                field: "references",
                reason: "is empty; name at least one image".into(),
            });
        }
        let lease = format!("save-{:016x}", rand::random::<u64>());
        let result = async {
            let plan = self.plan(references, platforms, &lease).await?;
            let files = self.files.clone();
            blocking(move || plan.write(&files, Writer::new(to))).await
        }
        .await;
        self.delete_lease(&lease).await?;
        result
    }

    async fn plan(
        &self,
        references: &[String],
        platforms: &[Platform],
        lease: &str,
    ) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        for text in references {
            for name in self.named(text).await? {
                let (found, target) = self.find(&name, &Platform::host()).await?;
                // An id names an image, not one of its names.
                let by_name = name
                    .parse::<Reference>()
                    .is_ok_and(|reference| reference.to_string() == found);
                let named = by_name && !found.starts_with(DANGLING);
                let digest = std::slice::from_ref(&target.digest);
                self.put_lease(lease, OWN_LEASES, digest, LEASE_SECONDS)
                    .await?;
                let (files, top) = (self.files.clone(), target.clone());
                let members = blocking(move || walk(&files, &top)).await?;
                let image = Named {
                    name: named.then_some(found),
                    target,
                };
                plan.add(image, &members, platforms)?;
            }
        }
        Ok(plan)
    }
}
