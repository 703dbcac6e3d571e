//! gRPC handlers: decode, call, encode.

use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use gantry_chassis::{Drain, pipe, to_status};
use gantry_proto::snapshotter::ensure_layer_event::Event;
use gantry_proto::snapshotter::snapshotter_server::{Snapshotter as Api, SnapshotterServer};
use gantry_proto::snapshotter::*;
use gantry_types::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::layer::{self, Job, Layers};
use crate::shelf::{Shelf, blocking};
use crate::{convert, diff, snapshot, usage};

/// How often a caller hears how far its layer is.
const TICK: Duration = Duration::from_millis(100);

pub(crate) fn routes(shelf: Arc<Shelf>, layers: Arc<Layers>, drain: Drain) -> Routes {
    Routes::new(SnapshotterServer::new(Handlers {
        shelf,
        layers,
        drain,
    }))
}

struct Handlers {
    shelf: Arc<Shelf>,
    layers: Arc<Layers>,
    drain: Drain,
}

type Answer<T> = Result<Response<T>, Status>;
type TreeStream = Pin<Box<dyn Stream<Item = Result<TreeChunk, Status>> + Send>>;
type EventStream = Pin<Box<dyn Stream<Item = Result<EnsureLayerEvent, Status>> + Send>>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

fn event(event: Event) -> EnsureLayerEvent {
    EnsureLayerEvent { event: Some(event) }
}

/// Progress now and then, and the end.
fn follow(diff_id: Digest, job: Job) -> EventStream {
    Box::pin(futures_util::stream::unfold(
        Some((diff_id, job)),
        |state| async move {
            let (diff_id, mut job) = state?;
            match tokio::time::timeout(TICK, layer::wait(&mut job)).await {
                Err(_) => {
                    let now = event(Event::Progress(layer::read_so_far(&job)));
                    Some((Ok(now), Some((diff_id, job))))
                }
                Ok(Ok(record)) => {
                    let done = event(Event::Done(convert::layer(&diff_id, &record)));
                    Some((Ok(done), None))
                }
                Ok(Err(error)) => Some((Err(to_status(&error)), None)),
            }
        },
    ))
}

impl Handlers {
    async fn ensure(&self, request: EnsureLayerRequest) -> Result<EventStream, Error> {
        let diff_id: Digest = request.diff_id.parse()?;
        let blob: Digest = request.blob.unwrap_or_default().digest.parse()?;
        let job = self.layers.ensure(diff_id.clone(), blob).await;
        Ok(follow(diff_id, job))
    }

    async fn prepare(&self, request: PrepareRequest, readonly: bool) -> Result<Snapshot, Error> {
        let layers: Result<Vec<Digest>, _> =
            request.layers.iter().map(|text| text.parse()).collect();
        let record = self
            .shelf
            .prepare(&request.key, &layers?, &request.holder, readonly)
            .await?;
        convert::snapshot(&self.shelf.files, &request.key, record)
    }

    async fn get(&self, key: &str) -> Result<Snapshot, Error> {
        let record = self.shelf.snapshot(key).await?;
        convert::snapshot(&self.shelf.files, key, record)
    }

    /// Counts every tree; layers were counted when they were unpacked.
    async fn count(&self) -> Result<Usage, Error> {
        let (layers, snapshots, volumes) = {
            let index = self.shelf.lock().await;
            let layers = index.layers.iter();
            (
                layers
                    .map(|(diff_id, record)| convert::layer(diff_id, record))
                    .collect(),
                index.snapshots.keys().cloned().collect::<Vec<_>>(),
                index.volumes.keys().cloned().collect::<Vec<_>>(),
            )
        };
        let shelf = self.shelf.clone();
        blocking(move || {
            let one = |name: String, path: std::path::PathBuf| {
                let usage = usage::of(&path).map_err(Error::io("read", &path))?;
                Ok(TreeUsage {
                    name,
                    bytes: i64::try_from(usage.bytes).unwrap_or(i64::MAX),
                    inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
                })
            };
            let snapshots = snapshots.into_iter().map(|key| {
                let path = shelf.files.snapshot(&key).join("upper");
                one(key, path)
            });
            let volumes = volumes.into_iter().map(|name| {
                let path = shelf.volume_data(&name);
                one(name, path)
            });
            Ok(Usage {
                layers,
                snapshots: snapshots.collect::<Result<_, Error>>()?,
                volumes: volumes.collect::<Result<_, Error>>()?,
            })
        })
        .await
    }

    /// Writes a snapshot's tree, as it is now, into the answer.
    async fn export(&self, key: &str) -> Result<TreeStream, Error> {
        let record = self.shelf.snapshot(key).await?;
        let mounts = snapshot::look(&self.shelf.files, key, &record)?;
        let (send, chunks) = mpsc::channel(pipe::WAITING);
        let (fail, failed) = mpsc::channel::<Status>(1);
        let key = key.to_owned();
        self.drain.spawn("export", async move {
            let name = std::path::PathBuf::from(key);
            let work = blocking(move || {
                let mounted =
                    snapshot::without_place(&mounts).map_err(Error::io("mount snapshot", &name))?;
                let Some(mounted) = mounted else {
                    return Ok(());
                };
                let root = gantry_sys::fs::open_in_root(mounted.fd(), std::path::Path::new("/"))
                    .and_then(|root| {
                        gantry_sys::tree::open_dir_at(&root, std::ffi::OsStr::new("."))
                    })
                    .map_err(Error::io("open snapshot", &name))?;
                match diff::stream(root.as_fd(), pipe::Writer::new(send)) {
                    // Nobody takes it any more, and nobody is there to hear of it.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                    other => other.map_err(Error::io("read snapshot", &name)),
                }
            });
            if let Err(error) = work.await {
                let _ = fail.send(to_status(&error)).await;
            }
        });
        let data = ReceiverStream::new(chunks).map(|data| Ok(TreeChunk { data }));
        Ok(Box::pin(data.chain(ReceiverStream::new(failed).map(Err))))
    }

    async fn list(&self, holder: &str) -> Result<ListSnapshotsResponse, Error> {
        let index = self.shelf.lock().await;
        let wanted = index
            .snapshots
            .iter()
            .filter(|(_, record)| holder.is_empty() || record.holder == holder);
        let snapshots: Result<Vec<_>, Error> = wanted
            .map(|(key, record)| convert::snapshot(&self.shelf.files, key, record.clone()))
            .collect();
        Ok(ListSnapshotsResponse {
            snapshots: snapshots?,
        })
    }

    async fn sync(&self, request: SyncSnapshotsRequest) -> Result<SyncSnapshotsResponse, Error> {
        let keys = request.keys.into_iter().collect();
        let removed = self.shelf.sync_snapshots(&request.holder, &keys).await?;
        Ok(SyncSnapshotsResponse { removed })
    }
}

#[tonic::async_trait]
impl Api for Handlers {
    type EnsureLayerStream = EventStream;
    type ExportTreeStream = TreeStream;

    async fn ensure_layer(&self, request: Request<EnsureLayerRequest>) -> Answer<EventStream> {
        answer(self.ensure(request.into_inner()).await)
    }

    async fn list_layers(
        &self,
        _request: Request<ListLayersRequest>,
    ) -> Answer<ListLayersResponse> {
        let index = self.shelf.lock().await;
        let layers = index
            .layers
            .iter()
            .map(|(diff_id, record)| convert::layer(diff_id, record));
        Ok(Response::new(ListLayersResponse {
            layers: layers.collect(),
        }))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Answer<Snapshot> {
        answer(Handlers::prepare(self, request.into_inner(), false).await)
    }

    async fn view(&self, request: Request<PrepareRequest>) -> Answer<Snapshot> {
        answer(Handlers::prepare(self, request.into_inner(), true).await)
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<Snapshot> {
        answer(self.get(&request.get_ref().key).await)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        answer(self.list(&request.get_ref().holder).await)
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Answer<CommitResponse> {
        let request = request.into_inner();
        let committed = self.layers.commit(&request.key, &request.lease).await;
        answer(committed.map(|(stored, diff_id)| convert::committed(&stored, &diff_id)))
    }

    async fn export_tree(
        &self,
        request: Request<ExportTreeRequest>,
    ) -> Answer<Self::ExportTreeStream> {
        answer(self.export(&request.get_ref().key).await)
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<RemoveResponse> {
        let removed = self.shelf.remove_snapshot(&request.get_ref().key).await;
        answer(removed.map(|()| RemoveResponse {}))
    }

    async fn sync_snapshots(
        &self,
        request: Request<SyncSnapshotsRequest>,
    ) -> Answer<SyncSnapshotsResponse> {
        answer(self.sync(request.into_inner()).await)
    }

    async fn collect_garbage(
        &self,
        _request: Request<CollectGarbageRequest>,
    ) -> Answer<CollectGarbageResponse> {
        let removed = self.layers.collect().await;
        answer(removed.map(|removed| CollectGarbageResponse {
            removed_layers: removed.iter().map(Digest::to_string).collect(),
        }))
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<Volume> {
        let request = request.into_inner();
        let made = self
            .shelf
            .create_volume(&request.name, request.labels, &request.snapshot_key)
            .await;
        answer(made.map(|(name, record)| convert::volume(&self.shelf.files, &name, record)))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Answer<Volume> {
        let name = &request.get_ref().name;
        let found = self.shelf.volume(name).await;
        answer(found.map(|record| convert::volume(&self.shelf.files, name, record)))
    }

    async fn get_usage(&self, _request: Request<GetUsageRequest>) -> Answer<Usage> {
        answer(self.count().await)
    }

    async fn list_volumes(
        &self,
        _request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        let index = self.shelf.lock().await;
        let volumes = index
            .volumes
            .iter()
            .map(|(name, record)| convert::volume(&self.shelf.files, name, record.clone()));
        Ok(Response::new(ListVolumesResponse {
            volumes: volumes.collect(),
        }))
    }

    async fn remove_volume(
        &self,
        request: Request<RemoveVolumeRequest>,
    ) -> Answer<RemoveVolumeResponse> {
        let removed = self.shelf.remove_volume(&request.get_ref().name).await;
        answer(removed.map(|()| RemoveVolumeResponse {}))
    }

    async fn seed_volume(&self, request: Request<SeedVolumeRequest>) -> Answer<SeedVolumeResponse> {
        let request = request.into_inner();
        let seeded = self
            .shelf
            .seed_volume(&request.name, &request.snapshot_key, &request.path)
            .await;
        answer(seeded.map(|seeded| SeedVolumeResponse { seeded }))
    }
}
