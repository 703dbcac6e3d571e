//! Attach and exec: two streams of messages joined with a process's streams.
//!
//! Invariant: the answer's last message says how it ended; a program that cannot be started is told that way too.

use std::future::Future;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use gantry_chassis::to_status;
use gantry_proto::runtime::{
    AttachInput, AttachOutput, Attached, ExecInput, WaitResponse, attach_input, attach_output,
    exec_input,
};
use tonic::{Status, Streaming};

use super::{Handlers, Outgoing, size};
use crate::container::{Attach, Container as Known, Reading};
use crate::error::Error;
use crate::exec;
use crate::signal;
use crate::stream::{self, Input, Output, Queue, Waiting};

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

/// The answer to an attach or exec.
fn outgoing(told: Waiting) -> Outgoing<AttachOutput> {
    Box::pin(futures_util::stream::unfold(told, |mut told| async move {
        let output = told.next().await?;
        Some((Ok(encode(output)), told))
    }))
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
    pub(super) async fn attach_stream(
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
        // Noted before it can end, so that its shim waits for its output to be taken.
        let reading = container.reading();
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
        let (tell, told) = stream::queue();
        match started {
            Ok(started) => {
                hub.tell(&container, "attach", &[]);
                let input =
                    Box::pin(input.filter_map(|message| async { attach_input(message.ok()?) }));
                let watched = container.clone();
                let end = async move {
                    let view = watched.until(|view| view.run.finished_at != before).await;
                    Output::Exit {
                        code: view.run.exit_code,
                        error: view.run.error.clone(),
                        oom: view.run.oom_killed,
                    }
                };
                self.pump(
                    container,
                    String::new(),
                    started.pid,
                    started.socket,
                    input,
                    end,
                    tell,
                    reading,
                );
            }
            // The program cannot be run: told as the end of the stream, with docker's exit code.
            Err(Error::Launch { code, message }) => {
                let exit = Output::Exit {
                    code,
                    error: message,
                    oom: false,
                };
                tell.tell(exit);
            }
            Err(error) => return Err(to_status(&error)),
        }
        Ok(outgoing(told))
    }

    pub(super) async fn exec_stream(
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
        let reading = container.reading();
        let start = exec::start(hub.clone(), container.clone(), wanted);
        let running = self.apart("exec", start).await;
        let (tell, told) = stream::queue();
        match running {
            Ok(running) if open.detach => {
                let started = Output::Started {
                    pid: running.pid,
                    exec_id: running.exec_id,
                };
                tell.tell(started);
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
                    reading,
                );
            }
            Err(Error::Launch { code, message }) => {
                let exit = Output::Exit {
                    code,
                    error: message,
                    oom: false,
                };
                tell.tell(exit);
            }
            Err(error) => return Err(to_status(&error)),
        }
        Ok(outgoing(told))
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
        tell: Queue,
        reading: Reading,
    ) {
        let drain = self.0.drain.clone();
        let watched = container.clone();
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
            if !tell.tell(started) {
                return;
            }
            let work = async {
                if let Some(output) = output {
                    let copy = stream::copy_output(output, &tell);
                    let mut copy = std::pin::pin!(copy);
                    tokio::select! {
                        () = &mut copy => {}
                        _ = watched.until(|view| !view.state.is_active()) => {
                            tell.open_wide();
                            copy.await;
                        }
                    }
                }
                drop(reading);
                tell.tell(end.await);
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
}
