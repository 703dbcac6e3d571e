//! Store and snapshotter, which take what is fetched.
//!
//! Invariant: every call is safe to repeat, so a peer that restarts is asked again for a while.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use gantry_chassis::{Channel, Drain, Fault, Paths, ask, connect};
use gantry_proto::snapshotter::EnsureLayerRequest;
use gantry_proto::snapshotter::snapshotter_client::SnapshotterClient;
use gantry_proto::store;
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::types;
use gantry_types::{Digest, ErrorKind, Platform};
use tonic::{Response, Status};

use crate::document::Descriptor;

const HOLDER: &str = "registry";
/// Holder of what was pushed to our own registry.
const SERVE_HOLDER: &str = "registry-serve";
/// Seconds after which the lease of a pull that was cut off ends.
const LEASE_SECONDS: i64 = 3600;
/// A large blob is hashed, or a layer unpacked, within this time.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Where a blob is to be written.
#[derive(Debug, Clone)]
pub enum Staging {
    /// It is there already.
    Exists,
    /// To this file, from this offset on.
    File(PathBuf, u64),
}

/// An image that the store has.
#[derive(Debug, Clone)]
pub struct Held {
    /// Normalised name.
    pub name: String,
    /// Digest of what the name points to.
    pub digest: String,
    /// Digest of the config.
    pub id: String,
    /// diff_id and blob.
    pub layers: Vec<(String, Digest)>,
}

/// The peers.
#[derive(Debug, Clone)]
pub struct Peers {
    store: StoreClient<Channel>,
    snapshotter: SnapshotterClient<Channel>,
    drain: Drain,
}

fn descriptor(from: types::Descriptor) -> Option<Descriptor> {
    Some(Descriptor {
        digest: from.digest.parse().ok()?,
        media_type: from.media_type,
        size: u64::try_from(from.size).ok()?,
    })
}

impl Peers {
    /// Clients for the sockets of an instance.
    pub fn new(paths: &Paths, drain: &Drain) -> Self {
        Self {
            store: StoreClient::new(connect(&paths.socket("store"))),
            snapshotter: SnapshotterClient::new(connect(&paths.socket("snapshotter"))),
            drain: drain.clone(),
        }
    }

    async fn store<R: Clone, T, F>(
        &self,
        request: R,
        send: impl Fn(StoreClient<Channel>, R) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        ask(&self.drain, "store", DEADLINE, || {
            send(self.store.clone(), request.clone())
        })
        .await
        .map(Response::into_inner)
    }

    /// Drops the leases of pulls that an earlier run of the service was cut off in.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn drop_old_leases(&self) -> Result<(), Fault> {
        let request = store::SyncLeasesRequest {
            holder: HOLDER.into(),
            ids: Vec::new(),
        };
        self.store(request, |mut client, request| async move {
            client.sync_leases(request).await
        })
        .await
        .map(drop)
    }

    /// Keeps blobs, also those that are still to come.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn hold(&self, lease: &str, digests: Vec<String>) -> Result<(), Fault> {
        let request = store::PutLeaseRequest {
            id: lease.to_owned(),
            holder: HOLDER.into(),
            digests,
            ttl_seconds: LEASE_SECONDS,
        };
        self.store(request, |mut client, request| async move {
            client.put_lease(request).await
        })
        .await
        .map(drop)
    }

    /// The same for a time of the caller's choice, seconds.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn hold_for(
        &self,
        lease: &str,
        digests: Vec<String>,
        seconds: i64,
    ) -> Result<(), Fault> {
        let request = store::PutLeaseRequest {
            id: lease.to_owned(),
            // Not among those that are dropped when the service starts.
            holder: SERVE_HOLDER.into(),
            digests,
            ttl_seconds: seconds,
        };
        self.store(request, |mut client, request| async move {
            client.put_lease(request).await
        })
        .await
        .map(drop)
    }

    /// The staging file of an upload, and how much is in it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stage(&self, key: &str) -> Result<(PathBuf, u64), Fault> {
        let request = store::BeginIngestRequest {
            key: key.to_owned(),
            ..store::BeginIngestRequest::default()
        };
        let begun = self
            .store(request, |mut client, request| async move {
                client.begin_ingest(request).await
            })
            .await?;
        Ok((begun.path.into(), u64::try_from(begun.offset).unwrap_or(0)))
    }

    /// Takes an upload under its digest.
    ///
    /// # Errors
    /// Corrupt when it is something else.
    pub async fn take(&self, key: &str, digest: &Digest) -> Result<(), Fault> {
        let request = store::CommitIngestRequest {
            key: key.to_owned(),
            digest: digest.to_string(),
            ..store::CommitIngestRequest::default()
        };
        self.store(request, |mut client, request| async move {
            client.commit_ingest(request).await
        })
        .await
        .map(drop)
    }

    /// Drops an upload.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn unstage(&self, key: &str) -> Result<(), Fault> {
        let request = store::AbortIngestRequest {
            key: key.to_owned(),
        };
        self.store(request, |mut client, request| async move {
            client.abort_ingest(request).await
        })
        .await
        .map(drop)
    }

    /// Stores a document that is in memory.
    ///
    /// # Errors
    /// When the store fails or the disk does.
    pub async fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Fault> {
        let key = format!("document/{:032x}", rand::random::<u128>());
        let (path, _) = self.stage(&key).await?;
        if let Err(error) = std::fs::write(&path, bytes) {
            self.unstage(&key).await?;
            let full = error.kind() == std::io::ErrorKind::StorageFull;
            return Err(Fault {
                kind: if full {
                    ErrorKind::Exhausted
                } else {
                    ErrorKind::Bug
                },
                message: format!("write {}: {error}", path.display()),
                resource: None,
            });
        }
        self.take(&key, digest).await
    }

    /// Takes a name away; whether it was there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn unname(&self, name: &str) -> Result<bool, Fault> {
        let request = store::DeleteImageRequest {
            name: name.to_owned(),
        };
        let gone = self
            .store(request, |mut client, request| async move {
                client.delete_image(request).await
            })
            .await?;
        Ok(gone.existed)
    }

    /// Lets go.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, lease: &str) -> Result<(), Fault> {
        let request = store::DeleteLeaseRequest {
            id: lease.to_owned(),
        };
        self.store(request, |mut client, request| async move {
            client.delete_lease(request).await
        })
        .await
        .map(drop)
    }

    /// Where to write a blob.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin(&self, digest: &Digest, size: u64) -> Result<Staging, Fault> {
        let request = store::BeginIngestRequest {
            key: digest.to_string(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            lease: String::new(),
        };
        let begun = self
            .store(request, |mut client, request| async move {
                client.begin_ingest(request).await
            })
            .await?;
        Ok(if begun.exists {
            Staging::Exists
        } else {
            Staging::File(begun.path.into(), u64::try_from(begun.offset).unwrap_or(0))
        })
    }

    /// Takes what was written.
    ///
    /// # Errors
    /// Corrupt when it is something else.
    pub async fn commit(&self, digest: &Digest, size: u64) -> Result<(), Fault> {
        let request = store::CommitIngestRequest {
            key: digest.to_string(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            lease: String::new(),
        };
        self.store(request, |mut client, request| async move {
            client.commit_ingest(request).await
        })
        .await
        .map(drop)
    }

    /// Drops what was written.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn abort(&self, digest: &Digest) -> Result<(), Fault> {
        let request = store::AbortIngestRequest {
            key: digest.to_string(),
        };
        self.store(request, |mut client, request| async move {
            client.abort_ingest(request).await
        })
        .await
        .map(drop)
    }

    /// The bytes of a small blob.
    ///
    /// # Errors
    /// NotFound when the store does not have it.
    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>, Fault> {
        let request = store::ReadBlobRequest {
            digest: digest.to_string(),
        };
        let reply = self
            .store(request, |mut client, request| async move {
                client.read_blob(request).await
            })
            .await?;
        Ok(reply.data)
    }

    /// Where blobs are that the store has, by digest.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn paths(&self, digests: Vec<String>) -> Result<HashMap<String, PathBuf>, Fault> {
        let request = store::StatBlobsRequest { digests };
        let found = self
            .store(request, |mut client, request| async move {
                client.stat_blobs(request).await
            })
            .await?;
        let blobs = found.blobs.into_iter();
        Ok(blobs
            .map(|blob| (blob.digest, PathBuf::from(blob.path)))
            .collect())
    }

    /// What a name points to now, as it is to be fetched or sent.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn target_of(&self, name: &str) -> Result<Option<Descriptor>, Fault> {
        let request = store::GetImageRequest {
            name: name.to_owned(),
        };
        let found = self
            .store(request, |mut client, request| async move {
                client.get_image(request).await
            })
            .await;
        match found {
            Ok(image) => Ok(image.target.and_then(descriptor)),
            Err(fault) if fault.kind == ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Every name with what it points to.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn images(&self) -> Result<Vec<(String, Descriptor)>, Fault> {
        let listed = self
            .store(
                store::ListImagesRequest {},
                |mut client, request| async move { client.list_images(request).await },
            )
            .await?;
        let images = listed.images.into_iter().filter_map(|summary| {
            let image = summary.image?;
            Some((image.name, image.target.and_then(descriptor)?))
        });
        Ok(images.collect())
    }

    /// Gives an image its name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn name(&self, name: &str, target: &Descriptor) -> Result<(), Fault> {
        self.name_with(name, target, HashMap::new()).await
    }

    /// The same with labels.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn name_with(
        &self,
        name: &str,
        target: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), Fault> {
        let request = store::PutImageRequest {
            labels,
            name: name.to_owned(),
            target: Some(types::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: i64::try_from(target.size).unwrap_or(i64::MAX),
                ..types::Descriptor::default()
            }),
        };
        self.store(request, |mut client, request| async move {
            client.put_image(request).await
        })
        .await
        .map(drop)
    }

    /// The image, when the store has all of it for the platform.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn held(&self, reference: &str, platform: &Platform) -> Result<Option<Held>, Fault> {
        let request = store::ResolveImageRequest {
            reference: reference.to_owned(),
            platform: Some(platform.clone().into()),
            lease: String::new(),
        };
        let found = self
            .store(request, |mut client, request| async move {
                client.resolve_image(request).await
            })
            .await;
        let image = match found {
            Ok(image) => image,
            Err(fault) if fault.kind == ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let layers = image.layers.into_iter().filter_map(|layer| {
            let blob = layer.blob.unwrap_or_default();
            Some((layer.diff_id, blob.digest.parse().ok()?))
        });
        Ok(Some(Held {
            name: image.name,
            digest: image.target.unwrap_or_default().digest,
            id: image.config.unwrap_or_default().digest,
            layers: layers.collect(),
        }))
    }

    /// Has a layer unpacked.
    ///
    /// # Errors
    /// Corrupt when it is not what its diff_id says.
    pub async fn unpack(&self, diff_id: &str, blob: &Digest) -> Result<(), Fault> {
        let request = EnsureLayerRequest {
            diff_id: diff_id.to_owned(),
            blob: Some(types::Descriptor {
                digest: blob.to_string(),
                ..types::Descriptor::default()
            }),
        };
        ask(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move {
                let mut events = client.ensure_layer(request).await?.into_inner();
                while events.message().await?.is_some() {}
                Ok(())
            }
        })
        .await
    }
}
