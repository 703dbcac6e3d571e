//! gRPC handlers: decode, call, encode.
//!
//! What changes something runs in a task of its own, so that it goes on when the caller leaves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use gantry_chassis::to_status;
use gantry_proto::runtime::runtime_server::{Runtime as Api, RuntimeServer};
use gantry_proto::runtime::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::container::{Attach, Container as Known};
use crate::convert::{self, nanos, timestamp};
use crate::error::Error;
use crate::exec;
use crate::filter::Filter;
use crate::hub::Hub;
use crate::launch;
use crate::logs::{Reader, Wanted};
use crate::signal;
use crate::stream::{self, Input, Output};
use crate::top;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn routes(hub: Arc<Hub>) -> Routes {
    // The routes of this service take whatever fits a frame: a configuration may be large.
    Routes::new(RuntimeServer::new(Handlers(hub)).max_decoding_message_size(16 << 20))
}

struct Handlers(Arc<Hub>);

type Answer<T> = Result<Response<T>, Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

fn size(size: Option<TerminalSize>) -> (u32, u32) {
    size.map(|size| (size.rows, size.columns))
        .unwrap_or_default()
}

fn encode(output: Output) -> AttachOutput {
    use attach_output::Output as Wire;
    AttachOutput {
        output: Some(match output {
            Output::Started { pid, exec_id } => Wire::Started(Attached { pid, exec_id }),
            Output::Stdout(bytes) => Wire::Stdout(bytes.into()),
            Output::Stderr(bytes) => Wire::Stderr(bytes.into()),
            Output::Exit { code, error, oom } => Wire::Exit(WaitResponse {
                exit_code: code,
                error,
                oom_killed: oom,
            }),
        }),
    }
}

fn attach_input(message: AttachInput) -> Option<Input> {
    use attach_input::Input as Wire;
    Some(match message.input? {
        Wire::Stdin(bytes) => Input::Stdin(bytes.into()),
        Wire::CloseStdin(_) => Input::CloseStdin,
        Wire::Resize(size) => Input::Resize(size.rows, size.columns),
        Wire::Signal(name) => Input::Signal(name),
        Wire::Open(_) => return None,
    })
}

fn exec_input(message: ExecInput) -> Option<Input> {
    use exec_input::Input as Wire;
    Some(match message.input? {
        Wire::Stdin(bytes) => Input::Stdin(bytes.into()),
        Wire::CloseStdin(_) => Input::CloseStdin,
        Wire::Resize(size) => Input::Resize(size.rows, size.columns),
        Wire::Signal(name) => Input::Signal(name),
        Wire::Exec(_) => return None,
    })
}

/// What the client sends, to the process.
async fn feed(
    container: Arc<Known>,
    exec_id: String,
    mut input: impl Stream<Item = Input> + Unpin,
    to: &mut Option<tokio::net::unix::OwnedWriteHalf>,
) {
    let mut typing = true;
    while let Some(message) = input.next().await {
        match message {
            Input::Stdin(bytes) => {
                // Input that nobody takes any more is dropped, as a closed pipe would.
                if let Some(end) = to
                    && typing
                    && !stream::send_input(end, &bytes).await
                {
                    typing = false;
                }
            }
            Input::CloseStdin => {
                // The socket stays: closing it would end the output too.
                if let Some(end) = to
                    && std::mem::take(&mut typing)
                {
                    stream::end_input(end).await;
                }
            }
            Input::Resize(rows, columns) => {
                if let Err(error) = exec::resize(&container, &exec_id, rows, columns).await {
                    tracing::debug!(%error, "a resize came too late");
                }
            }
            Input::Signal(name) => {
                let sent = match signal::parse(&name) {
                    Ok(number) => exec::signal(&container, &exec_id, number).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "a signal came too late");
                }
            }
        }
    }
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
        if request.removed {
            container.until(|_| false).await;
        } else {
            container.until(|view| !view.state.is_active()).await;
        }
        let run = container.view().run.clone();
        Ok(WaitResponse {
            exit_code: run.exit_code,
            error: run.error,
            oom_killed: run.oom_killed,
        })
    }

    async fn attach_stream(
        &self,
        mut input: Streaming<AttachInput>,
    ) -> Result<Outgoing<AttachOutput>, Status> {
        let first = input.message().await?.and_then(|message| message.input);
        let Some(attach_input::Input::Open(open)) = first else {
            return Err(Status::invalid_argument(
                "the first message of an attach must be `open`",
            ));
        };
        let hub = self.0.clone();
        let container = hub.find(&open.id).map_err(|error| to_status(&error))?;
        let wanted = Attach {
            stdin: open.stdin,
            stdout: open.stdout,
            stderr: open.stderr,
            size: size(open.size),
        };
        let before = container.view().run.finished_at;
        let started = if open.start {
            let start = container.clone().start(hub.clone(), Some(wanted));
            self.apart("start", start).await
        } else {
            let attaching = container.clone();
            self.apart("attach", async move {
                let socket = attaching.attach(wanted).await?;
                let pid = attaching.view().state.pid().unwrap_or(0);
                Ok(crate::container::Started {
                    pid,
                    socket: Some(socket),
                })
            })
            .await
        };
        let (tell, told) = mpsc::channel(64);
        match started {
            Ok(started) => {
                hub.tell(&container, "attach", &[]);
                let input =
                    Box::pin(input.filter_map(|message| async { attach_input(message.ok()?) }));
                let end = async move {
                    let view = container.until(|view| view.run.finished_at != before).await;
                    Output::Exit {
                        code: view.run.exit_code,
                        error: view.run.error.clone(),
                        oom: view.run.oom_killed,
                    }
                };
                let container = hub.find(&open.id).map_err(|error| to_status(&error))?;
                self.pump(
                    container,
                    String::new(),
                    started.pid,
                    started.socket,
                    input,
                    end,
                    tell,
                );
            }
            // The program cannot be run: told as the end of the stream, with docker's exit code.
            Err(Error::Launch { code, message }) => {
                let exit = Output::Exit {
                    code,
                    error: message,
                    oom: false,
                };
                let _ = tell.send(exit).await;
            }
            Err(error) => return Err(to_status(&error)),
        }
        Ok(Box::pin(
            ReceiverStream::new(told).map(|output| Ok(encode(output))),
        ))
    }

    async fn exec_stream(
        &self,
        mut input: Streaming<ExecInput>,
    ) -> Result<Outgoing<AttachOutput>, Status> {
        let first = input.message().await?.and_then(|message| message.input);
        let Some(exec_input::Input::Exec(open)) = first else {
            return Err(Status::invalid_argument(
                "the first message of an exec must be `exec`",
            ));
        };
        let hub = self.0.clone();
        let container = hub.find(&open.id).map_err(|error| to_status(&error))?;
        let wanted = exec::Wanted {
            size: size(open.size),
            args: open.args,
            env: open.env,
            workdir: open.workdir,
            user: open.user,
            tty: open.tty,
            stdin: open.stdin,
            privileged: open.privileged,
            detach: open.detach,
        };
        let start = exec::start(hub.clone(), container.clone(), wanted);
        let running = self.apart("exec", start).await;
        let (tell, told) = mpsc::channel(64);
        match running {
            Ok(running) if open.detach => {
                let started = Output::Started {
                    pid: running.pid,
                    exec_id: running.exec_id,
                };
                let _ = tell.send(started).await;
            }
            Ok(running) => {
                let input =
                    Box::pin(input.filter_map(|message| async { exec_input(message.ok()?) }));
                let mut ended = running.ended;
                let watched = container.clone();
                let end = async move {
                    let code = tokio::select! {
                        code = async { ended.wait_for(Option::is_some).await.ok().and_then(|code| *code) } => code,
                        // Its container went first, and it with that.
                        _ = watched.until(|view| !view.state.is_active()) => None,
                    };
                    Output::Exit {
                        code: code.unwrap_or(128 + signal::KILL),
                        error: String::new(),
                        oom: false,
                    }
                };
                self.pump(
                    container,
                    running.exec_id,
                    running.pid,
                    running.socket,
                    input,
                    end,
                    tell,
                );
            }
            Err(Error::Launch { code, message }) => {
                let exit = Output::Exit {
                    code,
                    error: message,
                    oom: false,
                };
                let _ = tell.send(exit).await;
            }
            Err(error) => return Err(to_status(&error)),
        }
        Ok(Box::pin(
            ReceiverStream::new(told).map(|output| Ok(encode(output))),
        ))
    }

    /// Output to the client, then how it ended; input from the client until then.
    #[allow(clippy::too_many_arguments)]
    fn pump(
        &self,
        container: Arc<Known>,
        exec_id: String,
        pid: i32,
        socket: Option<std::os::fd::OwnedFd>,
        input: impl Stream<Item = Input> + Send + Unpin + 'static,
        end: impl Future<Output = Output> + Send + 'static,
        tell: mpsc::Sender<Output>,
    ) {
        let drain = self.0.drain.clone();
        self.0.drain.spawn("streams", async move {
            let halves = socket.and_then(|socket| stream::split(socket).ok());
            let (output, mut to) = match halves {
                Some((output, to)) => (Some(output), Some(to)),
                None => (None, None),
            };
            let started = Output::Started {
                pid,
                exec_id: exec_id.clone(),
            };
            if tell.send(started).await.is_err() {
                return;
            }
            let work = async {
                if let Some(output) = output {
                    stream::copy_output(output, &tell).await;
                }
                let end = end.await;
                let _ = tell.send(end).await;
            };
            let feeding = async {
                feed(container, exec_id, input, &mut to).await;
                // The client will say no more, but it may listen on; dropping our half would end the output too.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = work => {}
                () = feeding => {}
                () = tell.closed() => {}
                () = drain.cancelled() => {}
            }
        });
    }

    async fn log_stream(&self, request: LogsRequest) -> Result<Outgoing<LogEntry>, Error> {
        let container = self.0.find(&request.id)?;
        let wanted = Wanted {
            tail: usize::try_from(request.tail).ok(),
            since: request.since.as_ref().map(nanos),
            until: request.until.as_ref().map(nanos),
        };
        let path = container.view().log_path.clone();
        let (tell, told) = mpsc::channel(64);
        let follow = request.follow;
        let drain = self.0.drain.clone();
        self.0.drain.spawn("logs", async move {
            let copy = async {
                let mut reader = Reader::open(&path, wanted);
                let mut entries = reader.past();
                loop {
                    let entries_now = match entries {
                        Ok(entries) => entries,
                        Err(source) => {
                            let error = Error::io("read", &path)(source);
                            let _ = tell.send(Err(to_status(&error))).await;
                            return;
                        }
                    };
                    let idle = entries_now.is_empty();
                    for entry in entries_now {
                        let entry = LogEntry {
                            time: timestamp(entry.time),
                            stderr: entry.stderr,
                            data: entry.data,
                        };
                        if tell.send(Ok(entry)).await.is_err() {
                            return;
                        }
                    }
                    if !follow {
                        if idle {
                            return;
                        }
                    } else if idle {
                        if !container.view().state.is_active() {
                            // Once more: something may have come before the end.
                            match reader.more() {
                                Ok(rest) if rest.is_empty() => return,
                                rest => {
                                    entries = rest;
                                    continue;
                                }
                            }
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                    entries = reader.more();
                }
            };
            tokio::select! {
                () = copy => {}
                () = tell.closed() => {}
                () = drain.cancelled() => {}
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }

    fn event_stream(&self, request: &EventsRequest) -> Result<Outgoing<Event>, Error> {
        let filter = Filter::for_events(&request.filters)?;
        let until = request.until.as_ref().map(nanos);
        let since = request.since.as_ref().map(nanos);
        let (past, gap, mut live) = self.0.events.watch(request.from_sequence, since);
        let (tell, told) = mpsc::channel(256);
        let drain = self.0.drain.clone();
        self.0.drain.spawn("events", async move {
            let mut gap = gap;
            let mut send = async |event: crate::events::Event| {
                if !filter.fits_event(&event) || until.is_some_and(|until| event.time > until) {
                    return true;
                }
                let wire = Event {
                    sequence: event.sequence,
                    time: timestamp(event.time),
                    r#type: "container".into(),
                    action: event.action.into(),
                    id: event.id,
                    attributes: event.attributes.into_iter().collect(),
                    gap: std::mem::take(&mut gap),
                };
                tell.send(Ok(wire)).await.is_ok()
            };
            for event in past {
                if !send(event).await {
                    return;
                }
            }
            loop {
                let left = until.map(|until| {
                    Duration::from_nanos(u64::try_from(until - crate::hub::now()).unwrap_or(0))
                });
                let timer = async {
                    match left {
                        Some(left) => tokio::time::sleep(left).await,
                        None => std::future::pending().await,
                    }
                };
                let event = tokio::select! {
                    () = drain.cancelled() => return,
                    () = tell.closed() => return,
                    () = timer => return,
                    event = live.recv() => event,
                };
                match event {
                    Ok(event) => {
                        if !send(event).await {
                            return;
                        }
                    }
                    // Too slow for the live ones: it asks again from where it was.
                    Err(_) => return,
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
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

    fn information(&self) -> InfoResponse {
        let all = self.0.list();
        let count = |wanted: fn(&crate::state::State) -> bool| {
            let fitting = all
                .iter()
                .filter(|container| wanted(&container.view().state));
            i32::try_from(fitting.count()).unwrap_or(i32::MAX)
        };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let system = read("/etc/os-release");
        let memory = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
            .unwrap_or(0);
        InfoResponse {
            containers: count(|_| true),
            running: count(|state| state.pid().is_some()),
            exited: count(|state| matches!(state, crate::state::State::Exited(_))),
            cgroup_version: self.0.host.layout.version().into(),
            kernel_version: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            operating_system: system
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .unwrap_or("Linux")
                .trim_matches('"')
                .to_owned(),
            architecture: std::env::consts::ARCH.into(),
            cpus: std::thread::available_parallelism()
                .map_or(1, |count| i32::try_from(count.get()).unwrap_or(i32::MAX)),
            memory: memory * 1024,
            root: self.0.paths.root.to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            warnings: Vec::new(),
        }
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
        Ok(Response::new(self.information()))
    }
}
