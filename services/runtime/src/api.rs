//! gRPC handlers: decode, call, encode.
//!
//! What changes something runs in a task of its own, so that it goes on when the caller leaves.

mod follow;
mod information;
mod join;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use gantry_chassis::to_status;
use gantry_proto::runtime::runtime_server::{Runtime as Api, RuntimeServer};
use gantry_proto::runtime::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::container::Container as Known;
use crate::convert;
use crate::error::Error;
use crate::exec;
use crate::filter::Filter;
use crate::hub::Hub;
use crate::launch;
use crate::signal;
use crate::top;

pub(crate) fn routes(hub: Arc<Hub>) -> Routes {
    // The routes of this service take whatever fits a frame: a configuration may be large.
    Routes::new(RuntimeServer::new(Handlers(hub)).max_decoding_message_size(16 << 20))
}

struct Handlers(Arc<Hub>);

fn size(size: Option<TerminalSize>) -> (u32, u32) {
    size.map(|size| (size.rows, size.columns))
        .unwrap_or_default()
}

type Answer<T> = Result<Response<T>, Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

impl Handlers {
    /// Runs in a task of its own.
    async fn apart<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.0
            .drain
            .spawn(name, work)
            .await
            .map_err(|_| Error::Ending)?
    }

    async fn wait_for(&self, request: WaitRequest) -> Result<WaitResponse, Error> {
        let container = self.0.find(&request.id)?;
        let over = |view: &crate::container::View| !request.removed && !view.state.is_active();
        tokio::select! {
            _ = container.until(over) => {}
            // The caller asks our successor.
            () = self.0.drain.cancelled() => return Err(Error::Ending),
        }
        let run = container.view().run.clone();
        Ok(WaitResponse {
            exit_code: run.exit_code,
            error: run.error,
            oom_killed: run.oom_killed,
        })
    }

    fn list_all(&self, request: &ListRequest) -> Result<ListResponse, Error> {
        let filter = Filter::for_containers(&request.filters)?;
        let all = request.all || filter.names_a_state();
        let views = self.0.list().into_iter().map(|container| container.view());
        Ok(ListResponse {
            containers: views
                .filter(|view| (all || view.state.pid().is_some()) && filter.fits(view))
                .map(|view| convert::container(&view))
                .collect(),
        })
    }

    fn processes(&self, id: &str) -> Result<TopResponse, Error> {
        let container = self.0.find(id)?;
        container.running("list the processes of")?;
        let dirs = launch::directories(&self.0.host, &container.id);
        let rows = dirs
            .first()
            .map(|(_, dir)| top::rows(dir))
            .unwrap_or_default();
        Ok(TopResponse {
            titles: top::TITLES.map(str::to_owned).to_vec(),
            rows: rows.into_iter().map(|values| TopRow { values }).collect(),
        })
    }

    async fn do_stop(&self, request: StopRequest) -> Result<Arc<Known>, Error> {
        let container = self.0.find(&request.id)?;
        let with = match request.signal.as_str() {
            "" => None,
            name => Some(signal::parse(name)?),
        };
        let stop = container
            .clone()
            .stop(self.0.clone(), request.timeout_seconds, with);
        self.apart("stop", stop).await?;
        Ok(container)
    }

    /// The container stands still until the caller drops the answer, or this service ends.
    async fn stand_still(&self, id: &str) -> Result<Outgoing<FreezeEvent>, Error> {
        let container = self.0.find(id)?;
        let frozen = container.freeze(&self.0).await?;
        let (tell, told) = mpsc::channel(1);
        let _ = tell.send(Ok(FreezeEvent {})).await;
        let drain = self.0.drain.clone();
        self.0.drain.spawn("freeze", async move {
            tokio::select! {
                () = tell.closed() => {}
                () = drain.cancelled() => {}
            }
            drop(frozen);
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }

    async fn do_start(&self, container: Arc<Known>) -> Result<StartResponse, Error> {
        let start = container.start(self.0.clone(), None);
        let started = self.apart("start", start).await?;
        Ok(StartResponse { pid: started.pid })
    }
}

#[tonic::async_trait]
impl Api for Handlers {
    type AttachStream = Outgoing<AttachOutput>;
    type ExecStream = Outgoing<AttachOutput>;
    type LogsStream = Outgoing<LogEntry>;
    type FreezeStream = Outgoing<FreezeEvent>;
    type EventsStream = Outgoing<Event>;

    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let request = request.into_inner();
        let create = self
            .0
            .clone()
            .create(request.config.unwrap_or_default(), request.idempotency_key);
        let made = self.apart("create", create).await;
        answer(made.map(|container| CreateResponse {
            id: container.id.clone(),
            name: container.name(),
            warnings: Vec::new(),
        }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        let container = self.0.find(&request.get_ref().id);
        answer(match container {
            Ok(container) => self.do_start(container).await,
            Err(error) => Err(error),
        })
    }

    async fn stop(&self, request: Request<StopRequest>) -> Answer<StopResponse> {
        let stopped = self.do_stop(request.into_inner()).await;
        answer(stopped.map(|_| StopResponse {}))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Answer<KillResponse> {
        let request = request.into_inner();
        let name = if request.signal.is_empty() {
            "KILL"
        } else {
            &request.signal
        };
        let ready = signal::parse(name).and_then(|number| Ok((self.0.find(&request.id)?, number)));
        answer(match ready {
            Ok((container, number)) => {
                let kill = container.kill(self.0.clone(), number);
                self.apart("kill", kill).await.map(|()| KillResponse {})
            }
            Err(error) => Err(error),
        })
    }

    async fn restart(&self, request: Request<StopRequest>) -> Answer<StartResponse> {
        let stopped = self.do_stop(request.into_inner()).await;
        let started = match stopped {
            Ok(container) => {
                let restarted = self.do_start(container.clone()).await;
                self.0.tell(&container, "restart", &[]);
                restarted
            }
            Err(error) => Err(error),
        };
        answer(started)
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        answer(self.wait_for(request.into_inner()).await)
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<RemoveResponse> {
        let request = request.into_inner();
        let removed = match self.0.find(&request.id) {
            Ok(container) => {
                let remove = container.remove(self.0.clone(), request.force, request.volumes);
                self.apart("remove", remove).await
            }
            Err(error) => Err(error),
        };
        answer(removed.map(|()| RemoveResponse {}))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<Container> {
        let found = self.0.find(&request.get_ref().id);
        answer(found.map(|container| convert::container(&container.view())))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        answer(self.list_all(request.get_ref()))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Answer<Self::FreezeStream> {
        answer(self.stand_still(&request.get_ref().id).await)
    }

    async fn top(&self, request: Request<TopRequest>) -> Answer<TopResponse> {
        answer(self.processes(&request.get_ref().id))
    }

    async fn attach(&self, request: Request<Streaming<AttachInput>>) -> Answer<Self::AttachStream> {
        self.attach_stream(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Answer<Self::ExecStream> {
        self.exec_stream(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Answer<ResizeResponse> {
        let request = request.into_inner();
        let (rows, columns) = size(request.size);
        answer(match self.0.find(&request.id) {
            Ok(container) => exec::resize(&container, &request.exec_id, rows, columns)
                .await
                .map(|()| ResizeResponse {}),
            Err(error) => Err(error),
        })
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        answer(self.log_stream(request.into_inner()).await)
    }

    async fn events(&self, request: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        answer(self.event_stream(request.get_ref()))
    }

    async fn info(&self, _request: Request<InfoRequest>) -> Answer<InfoResponse> {
        Ok(Response::new(information::of(&self.0)))
    }
}
