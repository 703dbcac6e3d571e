//! `store check`: records, files and digests compared, and brought together again.
//!
//! Invariants: looking changes nothing; a repair removes only what is proven wrong (a file that is not what its name says) or useless (a
//! record without a file, an upload long abandoned), so that a pull fetches it again; names are never removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, SystemTime};

use gantry_types::{Algorithm, Digest, Platform};
use tokio::sync::mpsc;

use crate::Error;
use crate::blob::hash_file;
use crate::index::{Store, blocking, now_seconds};
use crate::manifest::Descriptor;
use crate::schema::BlobRecord;
use crate::tree::walk;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A record whose file is gone.
    Lost,
    /// A file that is not what its name says.
    Corrupt,
    /// A file without a record.
    Unknown,
    /// An image that names what is not here.
    Incomplete,
    /// A staging file that nobody goes on with.
    Abandoned,
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) subject: String,
    pub(crate) problem: String,
    pub(crate) remedy: String,
    pub(crate) repaired: bool,
    pub(crate) bytes: u64,
}

/// What the bytes of a file are; `None` = the file is gone.
fn hashed(path: &std::path::Path, algorithm: Algorithm) -> std::io::Result<Option<(String, u64)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = match algorithm {
        Algorithm::Sha256 => hash_file::<sha2::Sha256>(&file),
        Algorithm::Sha512 => hash_file::<sha2::Sha512>(&file),
    };
    found.map(Some)
}

impl Store {
    /// Compares everything, telling what is wrong as it is found.
    pub(crate) async fn check(
        &self,
        repair: bool,
        quick: bool,
        tell: &mpsc::Sender<Finding>,
    ) -> Result<(), Error> {
        let known: BTreeMap<Digest, u64> = {
            let records = self.records.lock().await;
            let blobs = records.blobs.iter();
            blobs
                .map(|(digest, blob)| (digest.clone(), blob.size))
                .collect()
        };
        for (digest, size) in &known {
            if let Some(finding) = self.blob(digest, *size, repair, quick).await? {
                let _ = tell.send(finding).await;
            }
        }
        let files = self.files.clone();
        for (digest, size) in blocking(move || files.list()).await? {
            // One that came in meanwhile has a record.
            if known.contains_key(&digest) || self.stat(&digest).await.is_some() {
                continue;
            }
            let finding = self.unknown(&digest, size, repair).await?;
            let _ = tell.send(finding).await;
        }
        self.images(tell).await?;
        self.abandoned(repair, tell).await
    }

    async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        repair: bool,
        quick: bool,
    ) -> Result<Option<Finding>, Error> {
        let path = self.files.blob(digest);
        let (at, algorithm) = (path.clone(), digest.algorithm());
        let found = if quick {
            self.files.size(digest).map(|size| (None, size))
        } else {
            let hashed = blocking(move || hashed(&at, algorithm).map_err(Error::io("read", &at)));
            hashed.await?.map(|(hex, size)| (Some(hex), size))
        };
        let (kind, problem, bytes) = match found {
            None => (Kind::Lost, "its file is gone".to_owned(), 0),
            Some((_, got)) if got != size => (
                Kind::Corrupt,
                format!("its file has {got} bytes instead of {size}"),
                got,
            ),
            Some((Some(hex), got)) if hex != digest.hex() => (
                Kind::Corrupt,
                format!(
                    "its bytes hash to {algorithm}:{hex}",
                    algorithm = algorithm.as_str()
                ),
                got,
            ),
            Some(_) => return Ok(None),
        };
        if repair {
            self.forget(digest).await?;
        }
        Ok(Some(Finding {
            kind,
            subject: digest.to_string(),
            problem,
            remedy: "forget it, so that the next pull of its image fetches it again".into(),
            repaired: repair,
            bytes,
        }))
    }

    /// Drops a blob's record and file, in this order: a crash in between leaves a file, which the next check finds.
    async fn forget(&self, digest: &Digest) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        let mut batch = self.db.batch();
        self.blobs.delete(&mut batch, digest.to_string().as_bytes());
        self.db.commit(batch).await?;
        records.blobs.remove(digest);
        // A document may be remembered by whoever names it as its config.
        records.facts.clear();
        let (files, digest) = (self.files.clone(), digest.clone());
        blocking(move || files.remove(&digest)).await
    }

    async fn unknown(&self, digest: &Digest, size: u64, repair: bool) -> Result<Finding, Error> {
        let path = self.files.blob(digest);
        let algorithm = digest.algorithm();
        let found = blocking(move || hashed(&path, algorithm).map_err(Error::io("read", &path)));
        let right = found.await?.is_some_and(|(hex, _)| hex == digest.hex());
        if repair && right {
            let record = BlobRecord {
                size,
                committed_at: now_seconds(),
            };
            let mut records = self.records.lock().await;
            let mut batch = self.db.batch();
            self.blobs
                .put(&mut batch, digest.to_string().as_bytes(), &record);
            self.db.commit(batch).await?;
            records.blobs.insert(digest.clone(), record);
        } else if repair {
            self.forget(digest).await?;
        }
        Ok(Finding {
            kind: Kind::Unknown,
            subject: digest.to_string(),
            problem: if right {
                "a file without a record".into()
            } else {
                "a file without a record, and not what its name says".into()
            },
            remedy: if right { "take it in" } else { "remove it" }.into(),
            repaired: repair,
            bytes: if right { 0 } else { size },
        })
    }

    /// Images of which something is missing; a part of an index that was never pulled is nothing missing.
    async fn images(&self, tell: &mpsc::Sender<Finding>) -> Result<(), Error> {
        let images: Vec<(String, Descriptor)> = {
            let records = self.records.lock().await;
            let images = records.images.iter().filter_map(|(name, record)| {
                let target = Descriptor {
                    media_type: record.media_type.clone(),
                    digest: record.digest.parse().ok()?,
                    size: record.size,
                    platform: None,
                };
                Some((name.clone(), target))
            });
            images.collect()
        };
        for (name, target) in images {
            let files = self.files.clone();
            let (walked, missing) = blocking(move || {
                let members = match walk(&files, &target) {
                    Ok(members) => members,
                    Err(error) => return Ok((Some(error.to_string()), Vec::new())),
                };
                let whole = members.iter().any(|member| !member.index && member.held);
                let missing: Vec<String> = members
                    .iter()
                    .flat_map(|member| member.blobs())
                    .filter(|blob| files.size(&blob.digest).is_none())
                    .map(|blob| blob.digest.to_string())
                    .collect();
                let absent = files.size(&target.digest).is_none();
                Ok((
                    (absent || !whole && missing.is_empty()).then(|| {
                        format!("{} is missing or names nothing that is here", target.digest)
                    }),
                    missing,
                ))
            })
            .await?;
            let problem = match (walked, missing.first()) {
                (Some(problem), _) => problem,
                (None, Some(first)) if missing.len() == 1 => format!("blob {first} is missing"),
                (None, Some(first)) => {
                    format!("blob {first} and {} others are missing", missing.len() - 1)
                }
                (None, None) => continue,
            };
            let remedy = name.parse::<gantry_types::Reference>().map_or_else(
                |_| "remove the name".to_owned(),
                |reference| format!("ctl pull {}", reference.familiar()),
            );
            let _ = tell
                .send(Finding {
                    kind: Kind::Incomplete,
                    subject: name,
                    problem,
                    remedy,
                    repaired: false,
                    bytes: 0,
                })
                .await;
        }
        Ok(())
    }

    async fn abandoned(&self, repair: bool, tell: &mpsc::Sender<Finding>) -> Result<(), Error> {
        let idle = Duration::from_secs(self.config.ingest_idle_seconds);
        let files = self.files.clone();
        let found = blocking(move || files.idle_ingests(idle)).await?;
        for (path, meta) in found {
            if repair {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
            let hours = meta
                .modified()
                .ok()
                .and_then(|at| SystemTime::now().duration_since(at).ok())
                .map_or(0, |age| age.as_secs() / 3600);
            let _ = tell
                .send(Finding {
                    kind: Kind::Abandoned,
                    subject: path.display().to_string(),
                    problem: format!(
                        "an upload or download that nobody has gone on with for {hours} hours"
                    ),
                    remedy: "remove it".into(),
                    repaired: repair,
                    bytes: meta.len(),
                })
                .await;
        }
        Ok(())
    }

    /// What each image takes, alone and with others.
    pub(crate) async fn usage(&self) -> Result<Usage, Error> {
        let host = Platform::host();
        let mut images = Vec::new();
        // Targets that reach a blob: names of one target share everything.
        let mut reached: BTreeMap<Digest, BTreeMap<String, u64>> = BTreeMap::new();
        for summary in self.list(&host).await? {
            let Ok(digest) = summary.record.digest.parse::<Digest>() else {
                continue;
            };
            let target = Descriptor {
                media_type: String::new(),
                digest: digest.clone(),
                size: summary.record.size,
                platform: None,
            };
            if !reached.contains_key(&digest) {
                let files = self.files.clone();
                let all = blocking(move || {
                    let mut all = BTreeMap::new();
                    for member in walk(&files, &target).unwrap_or_default() {
                        for blob in member.blobs().chain([&member.at]) {
                            if let Some(size) = files.size(&blob.digest) {
                                all.insert(blob.digest.to_string(), size);
                            }
                        }
                    }
                    Ok(all)
                });
                reached.insert(digest.clone(), all.await?);
            }
            let id = summary
                .resolved
                .and_then(|resolved| match &*resolved.facts {
                    crate::resolve::Facts::Manifest { config, .. } => {
                        Some(config.digest.to_string())
                    }
                    crate::resolve::Facts::Index(_) => None,
                });
            images.push((summary.name, id.unwrap_or_default(), digest));
        }
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for blob in reached.values().flat_map(BTreeMap::keys) {
            *count.entry(blob.as_str()).or_default() += 1;
        }
        let images = images
            .into_iter()
            .map(|(name, id, digest)| {
                let blobs = &reached[&digest];
                ImageUsage {
                    name,
                    id,
                    total: blobs.values().sum(),
                    unique: blobs
                        .iter()
                        .filter(|(blob, _)| count[blob.as_str()] == 1)
                        .map(|(_, size)| size)
                        .sum(),
                }
            })
            .collect();
        let (total, blobs) = {
            let records = self.records.lock().await;
            let total = records.blobs.values().map(|blob| blob.size).sum();
            (total, records.blobs.len())
        };
        let dead = self.collect(true, true).await?;
        Ok(Usage {
            images,
            total,
            blobs,
            unreachable: dead.iter().map(|blob| blob.size).sum(),
        })
    }
}

/// What images take on disk, bytes.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) images: Vec<ImageUsage>,
    /// Every blob.
    pub(crate) total: u64,
    pub(crate) blobs: usize,
    /// What no image and no lease reaches.
    pub(crate) unreachable: u64,
}

/// One name.
#[derive(Debug)]
pub(crate) struct ImageUsage {
    pub(crate) name: String,
    /// Of this host's config.
    pub(crate) id: String,
    pub(crate) total: u64,
    /// What no other target reaches.
    pub(crate) unique: u64,
}
