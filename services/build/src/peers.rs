//! Store, snapshotter and runtime, on which images are made.
//!
//! Invariant: every call is safe to repeat, but for a freeze, which lasts as long as its stream.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use gantry_chassis::{Channel, Drain, Fault, Paths, ask, connect};
use gantry_proto::runtime::runtime_client::RuntimeClient;
use gantry_proto::runtime::{Container, FreezeEvent, FreezeRequest, GetRequest};
use gantry_proto::snapshotter::CommitRequest;
use gantry_proto::snapshotter::snapshotter_client::SnapshotterClient;
use gantry_proto::store;
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::types;
use gantry_types::Digest;
use tonic::{Response, Status, Streaming};

use crate::document::{Document, Layer};
use crate::error::Error;

const HOLDER: &str = "build";
/// Seconds after which the lease of work that was cut off ends.
const LEASE_SECONDS: i64 = 86_400;
/// A large layer is packed or hashed within this time.
const DEADLINE: Duration = Duration::from_secs(1800);

/// A container that stands still while this lives.
#[derive(Debug)]
pub struct Frozen(#[allow(dead_code, reason = "held, not read")] Streaming<FreezeEvent>);

/// What is known of a container.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its id, which is its snapshot's key.
    pub id: String,
    /// Digest of its image's config.
    pub config: Digest,
    /// Digest of its image's manifest.
    pub manifest: Digest,
    /// What runs in it.
    pub args: Vec<String>,
    /// It runs.
    pub running: bool,
    /// What the user set, over the image's settings.
    pub set: Set,
}

/// What a user set when the container was made.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// "K=V".
    pub env: Vec<String>,
    /// `None` = the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Empty = the image's.
    pub command: Vec<String>,
    /// Empty = the image's.
    pub workdir: String,
    /// Empty = the image's.
    pub user: String,
    /// Over the image's.
    pub labels: Vec<(String, String)>,
}

/// The peers.
#[derive(Debug, Clone)]
pub struct Peers {
    store: StoreClient<Channel>,
    snapshotter: SnapshotterClient<Channel>,
    runtime: RuntimeClient<Channel>,
    drain: Drain,
}

impl Peers {
    /// Clients for the sockets of an instance.
    pub fn new(paths: &Paths, drain: &Drain) -> Self {
        Self {
            store: StoreClient::new(connect(&paths.socket("store"))),
            snapshotter: SnapshotterClient::new(connect(&paths.socket("snapshotter"))),
            runtime: RuntimeClient::new(connect(&paths.socket("runtime"))),
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

    /// Drops the leases of work that an earlier run of the service was cut off in.
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

    /// Keeps blobs.
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

    /// The bytes of a document.
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

    /// Where to write a blob whose digest is not known yet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stage(&self, key: &str) -> Result<PathBuf, Fault> {
        let request = store::BeginIngestRequest {
            key: key.to_owned(),
            ..store::BeginIngestRequest::default()
        };
        let begun = self
            .store(request, |mut client, request| async move {
                client.begin_ingest(request).await
            })
            .await?;
        Ok(begun.path.into())
    }

    /// Takes what was written; its digest and size.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn take(&self, key: &str, lease: &str) -> Result<(Digest, u64), Error> {
        let request = store::CommitIngestRequest {
            key: key.to_owned(),
            lease: lease.to_owned(),
            ..store::CommitIngestRequest::default()
        };
        let blob = self
            .store(request, |mut client, request| async move {
                client.commit_ingest(request).await
            })
            .await?;
        Ok((blob.digest.parse()?, u64::try_from(blob.size).unwrap_or(0)))
    }

    /// Drops what was written.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn abort(&self, key: &str) -> Result<(), Fault> {
        let request = store::AbortIngestRequest {
            key: key.to_owned(),
        };
        self.store(request, |mut client, request| async move {
            client.abort_ingest(request).await
        })
        .await
        .map(drop)
    }

    /// Stores a document under a lease.
    ///
    /// # Errors
    /// When the store or the disk fails.
    pub async fn keep(&self, document: &Document, lease: &str) -> Result<(), Error> {
        let key = format!("document/{:032x}", rand::random::<u128>());
        let path = self.stage(&key).await?;
        if let Err(source) = std::fs::write(&path, &document.bytes) {
            self.abort(&key).await?;
            return Err(Error::Io {
                action: "write",
                path,
                source,
            });
        }
        self.take(&key, lease).await.map(drop)
    }

    /// Gives an image its name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn name(
        &self,
        name: &str,
        manifest: &Document,
        media_type: &str,
    ) -> Result<String, Fault> {
        let request = store::PutImageRequest {
            name: name.to_owned(),
            target: Some(types::Descriptor {
                media_type: media_type.to_owned(),
                digest: manifest.digest.to_string(),
                size: i64::try_from(manifest.bytes.len()).unwrap_or(i64::MAX),
                ..types::Descriptor::default()
            }),
            ..store::PutImageRequest::default()
        };
        let image = self
            .store(request, |mut client, request| async move {
                client.put_image(request).await
            })
            .await?;
        Ok(image.name)
    }

    /// A container.
    ///
    /// # Errors
    /// NotFound when there is none.
    pub async fn container(&self, name: &str) -> Result<Source, Error> {
        let request = GetRequest {
            id: name.to_owned(),
        };
        let found: Container = ask(&self.drain, "runtime", DEADLINE, || {
            let (mut client, request) = (self.runtime.clone(), request.clone());
            async move { client.get(request).await }
        })
        .await?
        .into_inner();
        let running = matches!(
            found.status(),
            gantry_proto::runtime::Status::Running | gantry_proto::runtime::Status::Stopping
        );
        let config = found.config.unwrap_or_default();
        let entrypoint = config.set_entrypoint.then_some(config.entrypoint);
        Ok(Source {
            config: found.image_id.parse()?,
            manifest: found.image_manifest.parse()?,
            id: found.id,
            args: found.args,
            running,
            set: Set {
                env: config.env,
                entrypoint,
                command: config.command,
                workdir: config.workdir,
                user: config.user,
                labels: config.labels.into_iter().collect(),
            },
        })
    }

    /// Makes a container stand still until the answer is dropped.
    ///
    /// # Errors
    /// When it does not run, or the kernel refuses.
    pub async fn freeze(&self, id: &str) -> Result<Frozen, Fault> {
        let request = FreezeRequest { id: id.to_owned() };
        let mut events = self.runtime.clone().freeze(request).await?.into_inner();
        // The first event says that it stands still.
        events.message().await?;
        Ok(Frozen(events))
    }

    /// A snapshot's own changes as a layer.
    ///
    /// # Errors
    /// When the snapshotter fails.
    pub async fn commit(&self, key: &str, lease: &str) -> Result<Layer, Error> {
        let request = CommitRequest {
            key: key.to_owned(),
            lease: lease.to_owned(),
        };
        let made = ask(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.commit(request).await }
        })
        .await?
        .into_inner();
        let blob = made.blob.unwrap_or_default();
        Ok(Layer {
            media_type: blob.media_type,
            digest: blob.digest.parse()?,
            size: u64::try_from(blob.size).unwrap_or(0),
            diff_id: made.diff_id.parse()?,
        })
    }
}
