//! Garbage collection: mark what images and leases reach, sweep the rest.
//!
//! Invariants: runs under the lock of the records, so that nothing is leased between mark and sweep; the record goes before
//! the file, so that a crash leaves a file that the next start takes in and the next collection removes.

use std::collections::HashSet;

use gantry_types::Digest;

use crate::Error;
use crate::index::{Blob, Records, Store, blocking, now_seconds};
use crate::manifest;

/// Documents larger than this are no manifests and refer to nothing.
const LARGEST_DOCUMENT: u64 = manifest::LARGEST;

fn roots(records: &Records) -> Vec<Digest> {
    let images = records.images.values().map(|image| &image.digest);
    let leases = records.leases.values().flat_map(|lease| &lease.digests);
    images
        .chain(leases)
        .filter_map(|digest| digest.parse().ok())
        .collect()
}

impl Store {
    /// Removes what nothing reaches and what is past its grace period (`at_once`: or within it); with `dry_run` only says
    /// what that is.
    pub(crate) async fn collect(&self, dry_run: bool, at_once: bool) -> Result<Vec<Blob>, Error> {
        let mut records = self.records.lock().await;
        let now = now_seconds();
        let expired: Vec<String> = records
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires_at > 0 && lease.expires_at <= now)
            .map(|(id, _)| id.clone())
            .collect();
        let mut batch = self.db.batch();
        for id in &expired {
            self.leases.delete(&mut batch, id.as_bytes());
            records.leases.remove(id);
        }
        let live = self.mark(roots(&records), &records).await?;
        let grace = if at_once {
            i64::MIN
        } else {
            i64::try_from(self.config.gc_grace_seconds).unwrap_or(i64::MAX)
        };
        let dead: Vec<Blob> = records
            .blobs
            .iter()
            .filter(|(digest, blob)| {
                !live.contains(*digest) && now.saturating_sub(blob.committed_at) >= grace
            })
            .map(|(digest, blob)| Blob {
                digest: digest.clone(),
                size: blob.size,
            })
            .collect();
        if dry_run {
            self.db.commit(batch).await?;
            return Ok(dead);
        }
        for blob in &dead {
            self.blobs
                .delete(&mut batch, blob.digest.to_string().as_bytes());
        }
        self.db.commit(batch).await?;
        for blob in &dead {
            records.blobs.remove(&blob.digest);
            records.facts.remove(&blob.digest);
        }
        let (files, gone) = (self.files.clone(), dead.clone());
        blocking(move || gone.iter().try_for_each(|blob| files.remove(&blob.digest))).await?;
        Ok(dead)
    }

    async fn mark(
        &self,
        mut queue: Vec<Digest>,
        records: &Records,
    ) -> Result<HashSet<Digest>, Error> {
        let mut live = HashSet::new();
        while let Some(digest) = queue.pop() {
            let Some(blob) = records.blobs.get(&digest) else {
                continue;
            };
            if !live.insert(digest.clone()) || blob.size > LARGEST_DOCUMENT {
                continue;
            }
            let files = self.files.clone();
            let children = blocking(move || match files.read(&digest, LARGEST_DOCUMENT) {
                Ok(bytes) if bytes.first() == Some(&b'{') => Ok(manifest::children(&bytes)),
                Ok(_) | Err(Error::NoBlob(_)) => Ok(Vec::new()),
                Err(error) => Err(error),
            });
            queue.extend(children.await?);
        }
        Ok(live)
    }
}
