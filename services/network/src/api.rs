//! gRPC handlers: decode, call where it may block, encode.

use std::sync::Arc;

use gantry_chassis::to_status;
use gantry_proto::network::network_server::{Network as Api, NetworkServer};
use gantry_proto::network::*;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::{Error, convert};

pub(crate) fn routes(engine: Arc<Engine>) -> Routes {
    Routes::new(NetworkServer::new(Handlers(engine)))
}

struct Handlers(Arc<Engine>);

type Answer<T> = Result<Response<T>, Status>;

impl Handlers {
    /// The engine's work is synchronous; once begun it runs to its end, whether or not the caller waits.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, Error> + Send + 'static,
    ) -> Answer<T> {
        let engine = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&engine)).await;
        done.unwrap_or(Err(Error::CutOff))
            .map(Response::new)
            .map_err(|error| to_status(&error))
    }
}

fn sandbox(engine: &Engine, record: crate::schema::SandboxRecord) -> Sandbox {
    let path = engine.pin_path(&record.id);
    convert::to_sandbox(record, &path)
}

#[tonic::async_trait]
impl Api for Handlers {
    async fn create_network(&self, request: Request<CreateNetworkRequest>) -> Answer<NetworkInfo> {
        self.work(|engine| {
            let spec = convert::from_create(request.into_inner())?;
            engine.create_network(&spec).map(convert::to_network)
        })
        .await
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Answer<RemoveNetworkResponse> {
        self.work(move |engine| {
            engine.remove_network(&request.get_ref().name)?;
            Ok(RemoveNetworkResponse {})
        })
        .await
    }

    async fn get_network(&self, request: Request<GetNetworkRequest>) -> Answer<NetworkInfo> {
        self.work(move |engine| {
            let name = &request.get_ref().name;
            match convert::foreign().find(|network| network.name == *name) {
                Some(network) => Ok(network),
                None => engine.network(name).map(convert::to_network),
            }
        })
        .await
    }

    async fn list_networks(
        &self,
        _request: Request<ListNetworksRequest>,
    ) -> Answer<ListNetworksResponse> {
        self.work(|engine| {
            let own = engine.networks()?.into_iter().map(convert::to_network);
            let mut networks: Vec<NetworkInfo> = own.chain(convert::foreign()).collect();
            networks.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(ListNetworksResponse { networks })
        })
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<Sandbox> {
        self.work(|engine| {
            let spec = convert::from_attach(request.into_inner())?;
            engine.attach(&spec).map(|record| sandbox(engine, record))
        })
        .await
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Answer<DetachResponse> {
        self.work(move |engine| {
            let DetachRequest { id, keep_addresses } = request.into_inner();
            engine.detach(&id, keep_addresses)?;
            Ok(DetachResponse {})
        })
        .await
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Answer<Sandbox> {
        self.work(move |engine| {
            let record = engine.sandbox(&request.get_ref().id)?;
            Ok(sandbox(engine, record))
        })
        .await
    }

    async fn list_sandboxes(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Answer<ListSandboxesResponse> {
        self.work(move |engine| {
            let records = engine.sandboxes(&request.get_ref().holder)?;
            let sandboxes = records.into_iter().map(|record| sandbox(engine, record));
            Ok(ListSandboxesResponse {
                sandboxes: sandboxes.collect(),
            })
        })
        .await
    }

    async fn sync_sandboxes(
        &self,
        request: Request<SyncSandboxesRequest>,
    ) -> Answer<SyncSandboxesResponse> {
        self.work(move |engine| {
            let SyncSandboxesRequest { holder, ids } = request.into_inner();
            let removed = engine.sync(&holder, &ids)?;
            Ok(SyncSandboxesResponse { removed })
        })
        .await
    }
}
