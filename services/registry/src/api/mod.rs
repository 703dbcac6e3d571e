//! gRPC handlers: decode, call, encode.

mod convert;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use gantry_chassis::{Drain, to_status};
use gantry_proto::registry::registry_server::{Registry as Api, RegistryServer};
use gantry_proto::registry::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::peers::Peers;
use crate::pull::Puller;
use crate::push::Pusher;
use crate::query::Asker;
use crate::serve::Registry;

/// Events that may wait for a slow watcher.
const WAITING: usize = 64;

/// What the handlers call.
pub(crate) struct Parts {
    pub(crate) puller: Arc<Puller>,
    pub(crate) pusher: Arc<Pusher>,
    pub(crate) asker: Arc<Asker>,
    pub(crate) peers: Peers,
    pub(crate) drain: Drain,
}

pub(crate) fn routes(parts: Parts) -> Routes {
    Routes::new(RegistryServer::new(Handlers(parts)))
}

struct Handlers(Parts);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Handlers {
    /// Runs work that tells of itself: its events, then its error if there is one. It ends when the caller leaves or the
    /// service does; what it has done so far stays.
    fn told<E, T, W, F>(
        &self,
        name: &'static str,
        reference: String,
        encode: fn(E) -> T,
        work: W,
    ) -> Response<Events<T>>
    where
        E: Send + 'static,
        T: Send + 'static,
        W: FnOnce(mpsc::Sender<E>) -> F,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (tell, told) = mpsc::channel(WAITING);
        let (fail, failed) = mpsc::channel(1);
        let drain = self.0.drain.clone();
        let work = work(tell.clone());
        self.0.drain.spawn(name, async move {
            let result = tokio::select! {
                result = work => result,
                () = tell.closed() => return,
                () = drain.cancelled() => return,
            };
            if let Err(error) = result {
                tracing::debug!(reference, %error, "a {name} failed");
                let _ = fail.send(to_status(&error)).await;
            }
        });
        let events = ReceiverStream::new(told).map(move |event| Ok(encode(event)));
        Response::new(Box::pin(events.chain(ReceiverStream::new(failed).map(Err))))
    }
}

#[tonic::async_trait]
impl Api for Handlers {
    type PullStream = Events<PullEvent>;
    type PushStream = Events<PushEvent>;
    type ServeStream = Events<ServeEvent>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let wanted = convert::pull(request.into_inner());
        let puller = self.0.puller.clone();
        let reference = wanted.reference.clone();
        Ok(
            self.told("pull", reference, convert::pull_event, |tell| async move {
                puller.pull(wanted, &tell).await
            }),
        )
    }

    async fn push(
        &self,
        request: Request<PushRequest>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let wanted = convert::push(request.into_inner());
        let pusher = self.0.pusher.clone();
        let reference = wanted.reference.clone();
        Ok(
            self.told("push", reference, convert::push_event, |tell| async move {
                pusher.push(wanted, &tell).await
            }),
        )
    }

    async fn login(
        &self,
        request: Request<LoginRequest>,
    ) -> Result<Response<LoginResponse>, Status> {
        let request = request.into_inner();
        let given = request.credentials.and_then(convert::given);
        self.0
            .asker
            .login(&request.registry, given, request.plain_http)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(LoginResponse {}))
    }

    async fn list_referrers(
        &self,
        request: Request<ListReferrersRequest>,
    ) -> Result<Response<ListReferrersResponse>, Status> {
        let request = request.into_inner();
        let given = request.credentials.and_then(convert::given);
        let (digest, found) = self
            .0
            .asker
            .referrers(
                &request.reference,
                &request.artifact_type,
                given,
                request.plain_http,
            )
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(ListReferrersResponse {
            digest: digest.to_string(),
            referrers: found.into_iter().map(convert::referrer).collect(),
        }))
    }

    async fn list_tags(
        &self,
        request: Request<ListTagsRequest>,
    ) -> Result<Response<ListTagsResponse>, Status> {
        let request = request.into_inner();
        let given = request.credentials.and_then(convert::given);
        let (name, tags) = self
            .0
            .asker
            .tags(&request.reference, given, request.plain_http)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(ListTagsResponse { name, tags }))
    }

    async fn serve(
        &self,
        request: Request<ServeRequest>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let settings = convert::serve(request.into_inner());
        let (peers, puller) = (self.0.peers.clone(), self.0.puller.clone());
        let own = Registry::new(settings, peers, puller).map_err(|error| to_status(&error))?;
        let socket = own.listen().await.map_err(|error| to_status(&error))?;
        let address = socket
            .local_addr()
            .map_err(|error| Status::internal(error.to_string()))?;
        let (tell, told) = mpsc::channel(WAITING);
        let drain = self.0.drain.clone();
        self.0
            .drain
            .spawn("own registry", own.serve(socket, drain, Some(tell)));
        let first = ServeEvent {
            event: Some(serve_event::Event::Listening(address.to_string())),
        };
        let first = futures_util::stream::once(async move { Ok(first) });
        let requests = ReceiverStream::new(told).map(|seen| Ok(convert::served(seen)));
        Ok(Response::new(Box::pin(first.chain(requests))))
    }
}
