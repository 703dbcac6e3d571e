//! gRPC handlers: decode, call, encode.

mod archive;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use gantry_chassis::{Drain, to_status};
use gantry_proto::store::store_server::{Store as Api, StoreServer};
use gantry_proto::store::*;
use gantry_types::{Digest, Platform};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::Error;
use crate::convert;
use crate::index::{Begun, Store, blocking};

/// Largest blob that ReadBlob sends, bytes.
const MOST_READ: u64 = 8 << 20;

pub(crate) fn routes(store: Arc<Store>, drain: Drain) -> Routes {
    Routes::new(StoreServer::new(Handlers(store, drain)))
}

struct Handlers(Arc<Store>, Drain);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

fn digests(texts: &[String]) -> Result<Vec<Digest>, Error> {
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

impl Handlers {
    async fn begin(&self, request: BeginIngestRequest) -> Result<BeginIngestResponse, Error> {
        let digest = convert::digest(&request.digest)?;
        Ok(
            match self.0.begin(request.key, digest, &request.lease).await? {
                Begun::Exists => BeginIngestResponse {
                    exists: true,
                    ..BeginIngestResponse::default()
                },
                Begun::Staged { path, offset } => BeginIngestResponse {
                    exists: false,
                    path: path.to_string_lossy().into_owned(),
                    offset: i64::try_from(offset).unwrap_or(i64::MAX),
                },
            },
        )
    }

    async fn commit(&self, request: CommitIngestRequest) -> Result<BlobInfo, Error> {
        let (digest, size) = (
            convert::digest(&request.digest)?,
            convert::size(request.size)?,
        );
        let blob = self
            .0
            .commit(request.key, digest, size, &request.lease)
            .await?;
        Ok(convert::to_blob(&self.0.files, &blob))
    }

    async fn stat(&self, text: &str) -> Result<BlobInfo, Error> {
        let digest: Digest = text.parse()?;
        let blob = self.0.stat(&digest).await.ok_or(Error::NoBlob(digest))?;
        Ok(convert::to_blob(&self.0.files, &blob))
    }

    async fn stats(&self, texts: &[String]) -> Result<StatBlobsResponse, Error> {
        let mut blobs = Vec::new();
        for digest in digests(texts)? {
            blobs.extend(
                self.0
                    .stat(&digest)
                    .await
                    .map(|blob| convert::to_blob(&self.0.files, &blob)),
            );
        }
        Ok(StatBlobsResponse { blobs })
    }

    async fn read(&self, text: &str) -> Result<ReadBlobResponse, Error> {
        let digest: Digest = text.parse()?;
        let files = self.0.files.clone();
        Ok(ReadBlobResponse {
            data: blocking(move || files.read(&digest, MOST_READ)).await?,
        })
    }

    async fn put_image(&self, request: PutImageRequest) -> Result<Image, Error> {
        let missing = || Error::Field {
            field: "target",
            reason: "is missing; name the index or manifest".into(),
        };
        let target = convert::from_descriptor(request.target.ok_or_else(missing)?)?;
        let (name, record) = self
            .0
            .put_image(&request.name, &target, request.labels)
            .await?;
        Ok(convert::to_image(name, record))
    }

    async fn put_lease(&self, request: PutLeaseRequest) -> Result<PutLeaseResponse, Error> {
        let digests = digests(&request.digests)?;
        self.0
            .put_lease(&request.id, &request.holder, &digests, request.ttl_seconds)
            .await?;
        Ok(PutLeaseResponse {})
    }

    async fn leases(&self) -> ListLeasesResponse {
        let records = self.0.records.lock().await;
        let leases = records.leases.iter().map(|(id, lease)| Lease {
            id: id.clone(),
            holder: lease.holder.clone(),
            digests: lease.digests.clone(),
            expires_at: Some(lease.expires_at)
                .filter(|at| *at > 0)
                .map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
        });
        ListLeasesResponse {
            leases: leases.collect(),
        }
    }

    async fn collect(&self, dry_run: bool, now: bool) -> Result<CollectGarbageResponse, Error> {
        let removed = self.0.collect(dry_run, now).await?;
        let bytes = removed.iter().map(|blob| blob.size).sum::<u64>();
        Ok(CollectGarbageResponse {
            removed: removed
                .iter()
                .map(|blob| convert::to_blob(&self.0.files, blob))
                .collect(),
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        })
    }
}

#[tonic::async_trait]
impl Api for Handlers {
    type CheckStream = Events<Finding>;
    type ExportImagesStream = Events<ArchiveChunk>;
    type ImportImagesStream = Events<ImportImagesEvent>;

    async fn describe_image(&self, request: Request<DescribeImageRequest>) -> Answer<ImageTree> {
        answer(self.describe(&request.get_ref().reference).await)
    }

    async fn check(&self, request: Request<CheckRequest>) -> Answer<Self::CheckStream> {
        let CheckRequest { repair, quick } = request.into_inner();
        Ok(Response::new(self.look_over(repair, quick)))
    }

    async fn get_usage(&self, _request: Request<GetUsageRequest>) -> Answer<Usage> {
        answer(self.0.usage().await.map(convert::to_usage))
    }

    async fn export_images(
        &self,
        request: Request<ExportImagesRequest>,
    ) -> Answer<Self::ExportImagesStream> {
        Ok(Response::new(self.export(request.into_inner())))
    }

    async fn import_images(
        &self,
        request: Request<tonic::Streaming<ImportImagesInput>>,
    ) -> Answer<Self::ImportImagesStream> {
        Ok(Response::new(self.import(request.into_inner())))
    }

    async fn begin_ingest(
        &self,
        request: Request<BeginIngestRequest>,
    ) -> Answer<BeginIngestResponse> {
        answer(self.begin(request.into_inner()).await)
    }

    async fn commit_ingest(&self, request: Request<CommitIngestRequest>) -> Answer<BlobInfo> {
        answer(self.commit(request.into_inner()).await)
    }

    async fn abort_ingest(
        &self,
        request: Request<AbortIngestRequest>,
    ) -> Answer<AbortIngestResponse> {
        let (files, key) = (self.0.files.clone(), request.into_inner().key);
        answer(
            blocking(move || files.abort(&key))
                .await
                .map(|()| AbortIngestResponse {}),
        )
    }

    async fn stat_blob(&self, request: Request<StatBlobRequest>) -> Answer<BlobInfo> {
        answer(self.stat(&request.get_ref().digest).await)
    }

    async fn stat_blobs(&self, request: Request<StatBlobsRequest>) -> Answer<StatBlobsResponse> {
        answer(self.stats(&request.get_ref().digests).await)
    }

    async fn read_blob(&self, request: Request<ReadBlobRequest>) -> Answer<ReadBlobResponse> {
        answer(self.read(&request.get_ref().digest).await)
    }

    async fn put_image(&self, request: Request<PutImageRequest>) -> Answer<Image> {
        answer(Handlers::put_image(self, request.into_inner()).await)
    }

    async fn get_image(&self, request: Request<GetImageRequest>) -> Answer<Image> {
        let found = self.0.image(&request.get_ref().name).await;
        answer(found.map(|(name, record)| convert::to_image(name, record)))
    }

    async fn list_images(
        &self,
        _request: Request<ListImagesRequest>,
    ) -> Answer<ListImagesResponse> {
        let list = self.0.list(&Platform::host()).await;
        answer(list.map(|list| ListImagesResponse {
            images: list.into_iter().map(convert::to_summary).collect(),
        }))
    }

    async fn delete_image(
        &self,
        request: Request<DeleteImageRequest>,
    ) -> Answer<DeleteImageResponse> {
        let existed = self.0.delete_image(&request.get_ref().name).await;
        answer(existed.map(|existed| DeleteImageResponse { existed }))
    }

    async fn resolve_image(&self, request: Request<ResolveImageRequest>) -> Answer<ResolvedImage> {
        let request = request.into_inner();
        let platform = convert::platform(request.platform);
        let resolved = self
            .0
            .resolve(&request.reference, &platform, &request.lease)
            .await;
        answer(resolved.map(|(resolved, config)| convert::to_resolved(&resolved, config)))
    }

    async fn put_lease(&self, request: Request<PutLeaseRequest>) -> Answer<PutLeaseResponse> {
        answer(Handlers::put_lease(self, request.into_inner()).await)
    }

    async fn delete_lease(
        &self,
        request: Request<DeleteLeaseRequest>,
    ) -> Answer<DeleteLeaseResponse> {
        answer(
            self.0
                .delete_lease(&request.get_ref().id)
                .await
                .map(|()| DeleteLeaseResponse {}),
        )
    }

    async fn sync_leases(&self, request: Request<SyncLeasesRequest>) -> Answer<SyncLeasesResponse> {
        let SyncLeasesRequest { holder, ids } = request.into_inner();
        let removed = self
            .0
            .sync_leases(&holder, &ids.into_iter().collect())
            .await;
        answer(removed.map(|removed| SyncLeasesResponse { removed }))
    }

    async fn list_leases(
        &self,
        _request: Request<ListLeasesRequest>,
    ) -> Answer<ListLeasesResponse> {
        Ok(Response::new(self.leases().await))
    }

    async fn collect_garbage(
        &self,
        request: Request<CollectGarbageRequest>,
    ) -> Answer<CollectGarbageResponse> {
        let CollectGarbageRequest { dry_run, now } = request.into_inner();
        answer(self.collect(dry_run, now).await)
    }
}
