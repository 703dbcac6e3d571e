//! The records in memory and in the database, and every change of them.
//!
//! Invariants: one tokio mutex orders changes; reads clone what they need under it and do no IO while holding it; a change
//! is in memory only after the database has it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_meta::{Db, Table};
use gantry_types::{Digest, Reference};
use tokio::sync::{Mutex, Notify};

use crate::blob::Files;
use crate::manifest::Descriptor;
use crate::resolve::Facts;
use crate::schema::{self, BlobRecord, ImageRecord, LeaseRecord};
use crate::{Config, Error};

/// What is held, in memory.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) blobs: BTreeMap<Digest, BlobRecord>,
    pub(crate) images: BTreeMap<String, ImageRecord>,
    pub(crate) leases: BTreeMap<String, LeaseRecord>,
    /// Manifests that were read; a digest's content never changes.
    pub(crate) facts: HashMap<Digest, Arc<Facts>>,
}

/// The store of one engine.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) files: Files,
    pub(crate) records: Mutex<Records>,
    pub(crate) db: Db,
    pub(crate) blobs: Table<BlobRecord>,
    pub(crate) images: Table<ImageRecord>,
    pub(crate) leases: Table<LeaseRecord>,
    pub(crate) config: Config,
    /// Wakes the collector.
    pub(crate) collect_soon: Notify,
}

/// A stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// What BeginIngest answers.
#[derive(Debug)]
pub(crate) enum Begun {
    Exists,
    Staged {
        path: std::path::PathBuf,
        offset: u64,
    },
}

pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(crate) fn now_seconds() -> i64 {
    i64::try_from(now().as_secs()).unwrap_or(i64::MAX)
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::CutOff)?
}

fn utf8(key: Vec<u8>) -> String {
    String::from_utf8(key).unwrap_or_default()
}

impl Store {
    /// Opens the folder, and brings files and records together: a file whose record was lost is taken in again (its name
    /// was true when it got it), a record whose file is gone is dropped.
    pub(crate) fn open(root: &Path, config: &Config) -> Result<Store, Error> {
        let files = Files::open(root)?;
        let db = Db::open(&root.join("db"), schema::VERSION, &[])?;
        let blobs: Table<BlobRecord> = Table::new(&db, schema::BLOBS);
        let images = Table::new(&db, schema::IMAGES);
        let leases = Table::new(&db, schema::LEASES);
        let mut records = Records {
            images: images
                .scan()?
                .into_iter()
                .map(|(key, image)| (utf8(key), image))
                .collect(),
            leases: leases
                .scan()?
                .into_iter()
                .map(|(key, lease)| (utf8(key), lease))
                .collect(),
            ..Records::default()
        };
        let mut known: BTreeMap<Digest, BlobRecord> = blobs
            .scan()?
            .into_iter()
            .filter_map(|(key, blob)| Some((utf8(key).parse().ok()?, blob)))
            .collect();
        let mut batch = db.batch();
        for (digest, size) in files.list()? {
            let record = known.remove(&digest).unwrap_or_else(|| {
                tracing::info!(%digest, "took in a blob whose record was not written");
                let record = BlobRecord {
                    size,
                    committed_at: now_seconds(),
                };
                blobs.put(&mut batch, digest.to_string().as_bytes(), &record);
                record
            });
            records.blobs.insert(digest, record);
        }
        for digest in known.keys() {
            tracing::warn!(%digest, "a blob's file is gone; its record is dropped");
            blobs.delete(&mut batch, digest.to_string().as_bytes());
        }
        db.commit_lazy(batch)?;
        files.sweep_ingests(Duration::from_secs(config.ingest_idle_seconds))?;
        Ok(Store {
            files,
            records: Mutex::new(records),
            db,
            blobs,
            images,
            leases,
            config: config.clone(),
            collect_soon: Notify::new(),
        })
    }

    pub(crate) async fn begin(
        &self,
        key: String,
        digest: Option<Digest>,
        lease: &str,
    ) -> Result<Begun, Error> {
        if key.is_empty() {
            return Err(Error::Field {
                field: "key",
                reason: "is empty; choose a key, for a known digest the digest".into(),
            });
        }
        if let Some(digest) = digest {
            let mut records = self.records.lock().await;
            if records.blobs.contains_key(&digest) {
                self.extend_lease(&mut records, lease, &[digest]).await?;
                return Ok(Begun::Exists);
            }
        }
        let files = self.files.clone();
        let (path, offset) = blocking(move || files.begin(&key)).await?;
        Ok(Begun::Staged { path, offset })
    }

    pub(crate) async fn commit(
        &self,
        key: String,
        digest: Option<Digest>,
        size: u64,
        lease: &str,
    ) -> Result<Blob, Error> {
        let (files, expected) = (self.files.clone(), digest);
        let committed = blocking(move || match files.commit(&key, expected.as_ref(), size) {
            // A repeat: the first answer was lost, or the first commit is still on its way.
            Err(Error::NoIngest(key)) => expected
                .and_then(|digest| Some((digest.clone(), files.size(&digest)?)))
                .ok_or(Error::NoIngest(key)),
            other => other,
        })
        .await;
        let mut records = self.records.lock().await;
        let (digest, size) = committed?;
        let record = BlobRecord {
            size,
            committed_at: now_seconds(),
        };
        let mut batch = self.db.batch();
        self.blobs
            .put(&mut batch, digest.to_string().as_bytes(), &record);
        self.db.commit(batch).await?;
        records.blobs.insert(digest.clone(), record);
        let blob = Blob { digest, size };
        self.extend_lease(&mut records, lease, std::slice::from_ref(&blob.digest))
            .await?;
        Ok(blob)
    }

    pub(crate) async fn stat(&self, digest: &Digest) -> Option<Blob> {
        let records = self.records.lock().await;
        records.blobs.get(digest).map(|record| Blob {
            digest: digest.clone(),
            size: record.size,
        })
    }

    async fn extend_lease(
        &self,
        records: &mut Records,
        id: &str,
        digests: &[Digest],
    ) -> Result<(), Error> {
        if id.is_empty() {
            return Ok(());
        }
        let holder = records
            .leases
            .get(id)
            .map_or("", |lease| lease.holder.as_str())
            .to_owned();
        self.put_lease_locked(records, id, &holder, digests, None)
            .await
    }

    pub(crate) async fn put_lease(
        &self,
        id: &str,
        holder: &str,
        digests: &[Digest],
        ttl: i64,
    ) -> Result<(), Error> {
        if id.is_empty() {
            return Err(Error::Field {
                field: "id",
                reason: "is empty; choose a name for the lease".into(),
            });
        }
        let expires = if ttl > 0 {
            now_seconds().saturating_add(ttl)
        } else {
            0
        };
        let mut records = self.records.lock().await;
        self.put_lease_locked(&mut records, id, holder, digests, Some(expires))
            .await
    }

    async fn put_lease_locked(
        &self,
        records: &mut Records,
        id: &str,
        holder: &str,
        digests: &[Digest],
        expires_at: Option<i64>,
    ) -> Result<(), Error> {
        let old = records.leases.get(id);
        let mut lease = old.cloned().unwrap_or_default();
        holder.clone_into(&mut lease.holder);
        for digest in digests.iter().map(Digest::to_string) {
            if !lease.digests.contains(&digest) {
                lease.digests.push(digest);
            }
        }
        lease.expires_at = expires_at.unwrap_or(lease.expires_at);
        if old == Some(&lease) {
            return Ok(());
        }
        let mut batch = self.db.batch();
        self.leases.put(&mut batch, id.as_bytes(), &lease);
        self.db.commit(batch).await?;
        records.leases.insert(id.to_owned(), lease);
        Ok(())
    }

    /// Adds digests to a lease in the same step in which they were found; for resolve.
    pub(crate) async fn lease_found(
        &self,
        records: &mut Records,
        id: &str,
        digests: &[Digest],
    ) -> Result<(), Error> {
        self.extend_lease(records, id, digests).await
    }

    pub(crate) async fn delete_lease(&self, id: &str) -> Result<(), Error> {
        let mut records = self.records.lock().await;
        self.drop_leases(&mut records, &[id.to_owned()]).await
    }

    async fn drop_leases(&self, records: &mut Records, ids: &[String]) -> Result<(), Error> {
        let mut batch = self.db.batch();
        for id in ids {
            self.leases.delete(&mut batch, id.as_bytes());
        }
        self.db.commit(batch).await?;
        for id in ids {
            records.leases.remove(id);
        }
        Ok(())
    }

    pub(crate) async fn sync_leases(
        &self,
        holder: &str,
        keep: &HashSet<String>,
    ) -> Result<Vec<String>, Error> {
        let mut records = self.records.lock().await;
        let gone: Vec<String> = records
            .leases
            .iter()
            .filter(|(id, lease)| lease.holder == holder && !keep.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        self.drop_leases(&mut records, &gone).await?;
        Ok(gone)
    }

    pub(crate) async fn put_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(String, ImageRecord), Error> {
        let name = name.parse::<Reference>()?.to_string();
        let mut records = self.records.lock().await;
        if !records.blobs.contains_key(&target.digest) {
            return Err(Error::Incomplete {
                name,
                digest: target.digest.clone(),
            });
        }
        let time = i64::try_from(now().as_nanos()).unwrap_or(i64::MAX);
        let record = ImageRecord {
            media_type: target.media_type.clone(),
            digest: target.digest.to_string(),
            size: target.size,
            labels,
            created_at: records.images.get(&name).map_or(time, |old| old.created_at),
            updated_at: time,
        };
        let mut batch = self.db.batch();
        self.images.put(&mut batch, name.as_bytes(), &record);
        self.db.commit(batch).await?;
        records.images.insert(name.clone(), record.clone());
        Ok((name, record))
    }

    pub(crate) async fn delete_image(&self, name: &str) -> Result<bool, Error> {
        let name = name.parse::<Reference>()?.to_string();
        let mut records = self.records.lock().await;
        let mut batch = self.db.batch();
        self.images.delete(&mut batch, name.as_bytes());
        self.db.commit(batch).await?;
        let existed = records.images.remove(&name).is_some();
        self.collect_soon.notify_one();
        Ok(existed)
    }
}
