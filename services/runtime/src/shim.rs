//! The line to a container's shim: starting it, dialling it again, asking it, hearing from it.
//!
//! Invariants: a question has one answer and a deadline; what the shim says on its own (an exit, a kill for want of memory, its
//! end) goes to the container's own task, in order; dropping the line never harms the container.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_chassis::Drain;
use prost::Message as _;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::peers::plan::from_shim::Reply;
use crate::peers::plan::to_shim::Request;
use crate::peers::plan::{Exited, FromShim, ToShim};

/// How long a shim may take to answer. A launch mounts and executes; nothing in it waits for the outside.
const DEADLINE: Duration = Duration::from_secs(60);
const LONGEST_FRAME: usize = 16 << 20;

/// What a shim says on its own.
#[derive(Debug)]
pub enum Told {
    /// The container, or an exec, ended.
    Exited(Exited),
    /// The kernel killed in it for want of memory.
    Oom,
    /// The line is closed: the shim ended.
    Closed,
}

type Answer = (Reply, Vec<OwnedFd>);

/// A line to one shim.
#[derive(Debug)]
pub struct Shim {
    id: String,
    stream: UnixStream,
    writing: tokio::sync::Mutex<()>,
    seq: AtomicU64,
    /// Who waits for which answer; `None` when nobody reads answers any more.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
}

/// Starts a shim for a folder that is there and empty.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn(
    program: &Path,
    id: &str,
    dir: &Path,
    drain: &Drain,
) -> Result<(Arc<Shim>, mpsc::UnboundedReceiver<Told>), Error> {
    let fail = |source| Error::Io {
        action: "start the shim",
        path: program.to_owned(),
        source,
    };
    let (ours, theirs) = gantry_sys::fd::stream_pair().map_err(fail)?;
    let messages = File::create(dir.join("shim.log")).map_err(Error::io("make", dir))?;
    let mut command = tokio::process::Command::new(program);
    command.arg("--dir").arg(dir).env_clear();
    // The shim's messages name the trace that made it (W3C Trace Context).
    if let Some(trace) = gantry_chassis::telemetry::traceparent() {
        command.env("TRACEPARENT", trace);
    }
    let mut child = command
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(messages)
        .kill_on_drop(false)
        .spawn()
        .map_err(fail)?;
    let line = open(id, ours, drain).map_err(fail)?;
    let ended = drain.clone();
    drain.spawn("shim", async move {
        // Only to take the zombie away; what matters of its end is told on the line.
        tokio::select! {
            () = ended.cancelled() => {}
            _ = child.wait() => {}
        }
    });
    Ok(line)
}

/// Dials the shim of a folder.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when it has ended.
pub async fn dial(
    id: &str,
    dir: &Path,
    drain: &Drain,
) -> io::Result<(Arc<Shim>, mpsc::UnboundedReceiver<Told>)> {
    // By way of the folder's descriptor: the path of a Unix socket has room for 107 bytes only.
    let folder = gantry_sys::fs::open_path(dir)?;
    let path: PathBuf = format!("/proc/self/fd/{}/shim.sock", folder.as_raw_fd()).into();
    let stream = UnixStream::connect(path).await?;
    open(id, stream.into_std()?.into(), drain)
}

fn open(
    id: &str,
    socket: OwnedFd,
    drain: &Drain,
) -> io::Result<(Arc<Shim>, mpsc::UnboundedReceiver<Told>)> {
    gantry_sys::fd::set_nonblocking(&socket)?;
    let shim = Arc::new(Shim {
        id: id.to_owned(),
        stream: UnixStream::from_std(socket.into())?,
        writing: tokio::sync::Mutex::default(),
        seq: AtomicU64::new(1),
        pending: Mutex::new(Some(HashMap::new())),
    });
    let (tell, told) = mpsc::unbounded_channel();
    let (reader, ended) = (shim.clone(), drain.clone());
    drain.spawn("shim line", async move {
        let closed = {
            let mut hear = std::pin::pin!(reader.hear(&tell));
            let closed = tokio::select! {
                () = ended.cancelled() => false,
                () = &mut hear => true,
            };
            // Those who have asked already get their answers.
            closed
                || loop {
                    tokio::select! {
                        () = &mut hear => break true,
                        () = tokio::time::sleep(Duration::from_millis(10)) => {}
                    }
                    if reader.pending().as_ref().is_none_or(HashMap::is_empty) {
                        break false;
                    }
                }
        };
        // Whoever waits is told that no answer comes.
        *reader.pending() = None;
        if closed {
            let _ = tell.send(Told::Closed);
        }
    });
    Ok((shim, told))
}

impl Shim {
    fn pending(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads frames until the line closes.
    async fn hear(&self, tell: &mpsc::UnboundedSender<Told>) {
        loop {
            let mut fds = Vec::new();
            let mut head = [0u8; 4];
            if self.fill(&mut head, &mut fds).await.is_err() {
                return;
            }
            let length = u32::from_le_bytes(head) as usize;
            if length > LONGEST_FRAME {
                return;
            }
            let mut body = vec![0u8; length];
            if self.fill(&mut body, &mut fds).await.is_err() {
                return;
            }
            let Ok(message) = FromShim::decode(body.as_slice()) else {
                return;
            };
            let event = match message.reply {
                Some(Reply::Exited(exited)) => Told::Exited(exited),
                Some(Reply::Oom(_)) => Told::Oom,
                Some(reply) => {
                    let waiter = self
                        .pending()
                        .as_mut()
                        .and_then(|all| all.remove(&message.seq));
                    if let Some(waiter) = waiter {
                        let _ = waiter.send((reply, fds));
                    }
                    continue;
                }
                None => continue,
            };
            if tell.send(event).is_err() {
                return;
            }
        }
    }

    /// Fills the buffer; descriptors come with the first byte of a frame, which is why heads are read on their own.
    async fn fill(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            let read = self
                .stream
                .async_io(Interest::READABLE, || {
                    gantry_sys::fd::recv_with_fds(self.stream.as_fd(), &mut buffer[at..])
                })
                .await;
            match read {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((length, more)) => {
                    at += length;
                    fds.extend(more);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn broken(&self, reason: impl ToString) -> Error {
        Error::Shim {
            id: self.id.clone(),
            reason: reason.to_string(),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Launch`] when the shim says no, [`Error::Shim`] when it does not answer.
    pub async fn ask(&self, request: Request) -> Result<Answer, Error> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let (answer, waiter) = oneshot::channel();
        match self.pending().as_mut() {
            Some(pending) => drop(pending.insert(seq, answer)),
            None => return Err(self.broken("the line is closed")),
        }
        let message = ToShim {
            seq,
            request: Some(request),
        };
        let length = u32::try_from(message.encoded_len()).map_err(|error| self.broken(error))?;
        let mut frame = length.to_le_bytes().to_vec();
        frame.extend_from_slice(&message.encode_to_vec());
        let talk = async {
            self.write(&frame)
                .await
                .map_err(|error| self.broken(error))?;
            waiter
                .await
                .map_err(|_| self.broken("it ended before it answered"))
        };
        match tokio::time::timeout(DEADLINE, talk).await {
            Ok(Ok((Reply::Failure(failure), _))) => Err(Error::Launch {
                code: failure.exit_code,
                message: failure.message,
            }),
            Ok(other) => other,
            Err(_) => {
                if let Some(pending) = self.pending().as_mut() {
                    pending.remove(&seq);
                }
                Err(self.broken(format!("no answer within {} s", DEADLINE.as_secs())))
            }
        }
    }

    async fn write(&self, mut frame: &[u8]) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        while !frame.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    gantry_sys::fd::send_with_fds(self.stream.as_fd(), frame, &[])
                })
                .await?;
            frame = &frame[sent..];
        }
        Ok(())
    }
}
