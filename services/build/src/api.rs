//! gRPC handlers: decode, call, encode.

use gantry_chassis::pipe::WAITING;
use gantry_chassis::to_status;
use gantry_proto::build::build_server::{Build as Api, BuildServer};
use gantry_proto::build::*;
use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::commit::{self, Made};
use crate::error::Error;
use crate::import;
use crate::peers::Peers;

pub(crate) fn routes(peers: Peers) -> Routes {
    Routes::new(BuildServer::new(Handlers(peers)))
}

struct Handlers(Peers);

fn answer(result: Result<Made, Error>) -> Result<Response<MadeImage>, Status> {
    result
        .map(|made| {
            Response::new(MadeImage {
                name: made.name,
                id: made.id,
                digest: made.digest,
            })
        })
        .map_err(|error| to_status(&error))
}

#[tonic::async_trait]
impl Api for Handlers {
    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<MadeImage>, Status> {
        let request = request.into_inner();
        let wanted = commit::Wanted {
            container: request.container,
            reference: request.reference,
            author: request.author,
            message: request.message,
            changes: request.changes,
            no_pause: request.no_pause,
        };
        answer(commit::commit(&self.0, &wanted).await)
    }

    async fn import_rootfs(
        &self,
        request: Request<Streaming<ImportRootfsInput>>,
    ) -> Result<Response<MadeImage>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.input);
        let Some(import_rootfs_input::Input::Options(options)) = first else {
            return Err(Status::invalid_argument(
                "input: the first message has no options; send ImportRootfsOptions first",
            ));
        };
        let wanted = import::Wanted {
            reference: options.reference,
            message: options.message,
            changes: options.changes,
            platform: options.platform,
            source: options.source,
        };
        let (send, chunks) = mpsc::channel(WAITING);
        let feed = async move {
            loop {
                let chunk = match input.message().await {
                    Ok(Some(ImportRootfsInput {
                        input: Some(import_rootfs_input::Input::Data(data)),
                    })) => Some(data),
                    Ok(None) => return,
                    // The caller broke off: that is no end of the archive.
                    _ => None,
                };
                let last = chunk.is_none();
                if send.send(chunk).await.is_err() || last {
                    return;
                }
            }
        };
        let work = import::import(&self.0, &wanted, chunks);
        let (made, ()) = tokio::join!(work, feed);
        answer(made)
    }
}
