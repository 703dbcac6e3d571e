//! The store, the one service that this one calls.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gantry_chassis::{Channel, connect};
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::store::{
    AbortIngestRequest, BeginIngestRequest, CommitIngestRequest, StatBlobRequest, StatBlobsRequest,
};
use gantry_types::Digest;

use crate::error::Error;

/// The store.
#[derive(Debug, Clone)]
pub struct Store(StoreClient<Channel>);

/// A blob that was stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: i64,
}

fn away(status: tonic::Status) -> Error {
    Error::Peer {
        peer: "store",
        fault: status.into(),
    }
}

impl Store {
    /// The store behind a socket.
    pub fn new(socket: &Path) -> Self {
        Self(StoreClient::new(connect(socket)))
    }

    /// Where a blob is.
    ///
    /// # Errors
    /// NotFound when the store does not have it.
    pub async fn blob_path(&self, digest: &Digest) -> Result<PathBuf, Error> {
        let request = StatBlobRequest {
            digest: digest.to_string(),
        };
        let reply = self.0.clone().stat_blob(request).await.map_err(away)?;
        Ok(reply.into_inner().path.into())
    }

    /// Those of the digests that the store has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn held(&self, digests: Vec<String>) -> Result<BTreeSet<String>, Error> {
        let request = StatBlobsRequest { digests };
        let reply = self.0.clone().stat_blobs(request).await.map_err(away)?;
        Ok(reply
            .into_inner()
            .blobs
            .into_iter()
            .map(|blob| blob.digest)
            .collect())
    }

    /// A file to write a blob to.
    ///
    /// # Errors
    /// When the store cannot make it.
    pub async fn begin(&self, key: &str, lease: &str) -> Result<PathBuf, Error> {
        let request = BeginIngestRequest {
            key: key.to_owned(),
            lease: lease.to_owned(),
            ..BeginIngestRequest::default()
        };
        let reply = self.0.clone().begin_ingest(request).await.map_err(away)?;
        Ok(reply.into_inner().path.into())
    }

    /// Takes what was written.
    ///
    /// # Errors
    /// When the store refuses it.
    pub async fn commit(&self, key: &str, lease: &str) -> Result<Stored, Error> {
        let request = CommitIngestRequest {
            key: key.to_owned(),
            lease: lease.to_owned(),
            ..CommitIngestRequest::default()
        };
        let blob = self.0.clone().commit_ingest(request).await.map_err(away)?;
        let blob = blob.into_inner();
        Ok(Stored {
            digest: blob.digest.parse()?,
            size: blob.size,
        })
    }

    /// Drops what was written.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn abort(&self, key: &str) -> Result<(), Error> {
        let request = AbortIngestRequest {
            key: key.to_owned(),
        };
        self.0.clone().abort_ingest(request).await.map_err(away)?;
        Ok(())
    }
}
