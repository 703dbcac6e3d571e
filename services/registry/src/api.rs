//! gRPC handlers: decode, call, encode.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use gantry_chassis::{Drain, to_status};
use gantry_proto::registry::registry_server::{Registry as Api, RegistryServer};
use gantry_proto::registry::*;
use gantry_proto::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::credentials;
use crate::document::Descriptor;
use crate::pull::{Event, Puller, Wanted};

pub(crate) fn routes(puller: Arc<Puller>, drain: Drain) -> Routes {
    Routes::new(RegistryServer::new(Handlers { puller, drain }))
}

struct Handlers {
    puller: Arc<Puller>,
    drain: Drain,
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn descriptor(from: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: from.media_type,
        digest: from.digest.to_string(),
        size: size(from.size),
        ..types::Descriptor::default()
    }
}

fn encode(event: Event) -> PullEvent {
    use pull_event::Event as Wire;
    PullEvent {
        event: Some(match event {
            Event::Resolved {
                name,
                target,
                manifest,
                blobs,
            } => Wire::Resolved(Resolved {
                name,
                target: Some(descriptor(target)),
                manifest: Some(descriptor(manifest)),
                blobs: blobs.into_iter().map(descriptor).collect(),
            }),
            Event::Layer {
                digest,
                phase,
                current,
                total,
            } => Wire::Layer(LayerProgress {
                digest,
                phase: phase.into(),
                current_bytes: size(current),
                total_bytes: size(total),
            }),
            Event::Total(sum) => Wire::Total(Total {
                current_bytes: size(sum.current),
                total_bytes: size(sum.total),
                bytes_per_second: size(sum.per_second),
                eta_seconds: sum.seconds_left.map_or(-1, size),
            }),
            Event::Done {
                name,
                digest,
                id,
                changed,
            } => Wire::Done(PullDone {
                name,
                digest,
                id,
                changed,
            }),
        }),
    }
}

fn decode(request: PullRequest) -> Wanted {
    Wanted {
        only_if_missing: request.policy() == PullPolicy::Missing,
        platform: request
            .platform
            .filter(|platform| !platform.architecture.is_empty())
            .map(Into::into),
        reference: request.reference,
        unpack: request.unpack,
        credentials: request
            .credentials
            .filter(|given| !given.username.is_empty())
            .map(|given| credentials::Credentials::Basic(given.username, given.password)),
        plain_http: request.plain_http,
    }
}

#[tonic::async_trait]
impl Api for Handlers {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullEvent, Status>> + Send>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let wanted = decode(request.into_inner());
        let (tell, told) = mpsc::channel(64);
        let (fail, failed) = mpsc::channel(1);
        let (puller, drain) = (self.puller.clone(), self.drain.clone());
        self.drain.spawn("pull", async move {
            let reference = wanted.reference.clone();
            let result = tokio::select! {
                result = puller.pull(wanted, &tell) => result,
                // The caller left, or the service ends: what has arrived stays.
                () = tell.closed() => return,
                () = drain.cancelled() => return,
            };
            if let Err(error) = result {
                tracing::debug!(reference, %error, "a pull failed");
                let _ = fail.send(to_status(&error)).await;
            }
        });
        // Events first, then the error if there is one.
        let events = ReceiverStream::new(told).map(|event| Ok(encode(event)));
        let stream = events.chain(ReceiverStream::new(failed).map(Err));
        Ok(Response::new(Box::pin(stream)))
    }
}
