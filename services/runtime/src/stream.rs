//! Bytes between a client and a container's or exec's standard streams.
//!
//! Invariants: output is passed on in the order in which the shim read it; the exit is told after the last byte; input that
//! the process does not take stays with the client.
//! Frames: one byte stream (0 stdin, 1 stdout, 2 stderr, 3 end), four bytes little-endian length, payload (shim.proto).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};

/// Longest piece of input in one frame, bytes.
const PIECE: usize = 64 << 10;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;

/// From the client.
#[derive(Debug, Clone)]
pub enum Input {
    /// For standard input.
    Stdin(Bytes),
    /// Standard input ends.
    CloseStdin,
    /// Rows and columns of the terminal.
    Resize(u32, u32),
    /// Name or number.
    Signal(String),
}

/// To the client.
#[derive(Debug, Clone)]
pub enum Output {
    /// The process runs.
    Started {
        /// On the host.
        pid: i32,
        /// Empty for the container itself.
        exec_id: String,
    },
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The end.
    Exit {
        /// As docker run's.
        code: i32,
        /// Why it could not start.
        error: String,
        /// Killed for want of memory.
        oom: bool,
    },
}

/// The two directions of an attach socket.
///
/// # Errors
/// When the socket cannot be watched.
pub fn split(socket: OwnedFd) -> std::io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    gantry_sys::fd::set_nonblocking(&socket)?;
    Ok(UnixStream::from_std(socket.into())?.into_split())
}

/// Bytes of output that wait for one client; beyond it the container's output waits in its pipe.
const MOST_WAITING: usize = 1 << 20;

/// Where output goes: a queue whose length in bytes is bounded while the process runs. When it has ended what is left of its
/// output is small, and is taken at once, so that its shim need not wait for a slow reader.
#[derive(Debug, Clone)]
pub struct Queue {
    to: mpsc::UnboundedSender<Output>,
    room: Arc<Semaphore>,
}

/// The reading side.
#[derive(Debug)]
pub struct Waiting {
    from: mpsc::UnboundedReceiver<Output>,
    room: Arc<Semaphore>,
}

fn bytes_of(output: &Output) -> u32 {
    let length = match output {
        Output::Stdout(bytes) | Output::Stderr(bytes) => bytes.len(),
        Output::Started { .. } | Output::Exit { .. } => 0,
    };
    u32::try_from(length.min(MOST_WAITING)).unwrap_or(0)
}

/// A queue for one client.
pub fn queue() -> (Queue, Waiting) {
    let (to, from) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(MOST_WAITING));
    (
        Queue {
            to,
            room: room.clone(),
        },
        Waiting { from, room },
    )
}

impl Queue {
    /// Waits for room and adds. False = nobody reads.
    async fn add(&self, output: Output) -> bool {
        // Closed when the process has ended: then there is always room.
        if let Ok(room) = self.room.acquire_many(bytes_of(&output)).await {
            room.forget();
        }
        self.tell(output)
    }

    /// Adds. False = nobody reads.
    pub fn tell(&self, output: Output) -> bool {
        self.to.send(output).is_ok()
    }

    /// The process has ended: no more waiting for room.
    pub fn open_wide(&self) {
        self.room.close();
    }

    /// Returns when nobody reads any more.
    pub async fn closed(&self) {
        self.to.closed().await;
    }
}

impl Waiting {
    /// The next output, as it is handed to the client.
    pub async fn next(&mut self) -> Option<Output> {
        let output = self.from.recv().await?;
        self.room.add_permits(bytes_of(&output) as usize);
        Some(output)
    }
}

/// Passes output on until both streams have ended or somebody is gone.
pub async fn copy_output(mut from: OwnedReadHalf, to: &Queue) {
    let mut ended = 0;
    while ended < 2 {
        let mut head = [0u8; 5];
        if from.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut payload = vec![0u8; length];
        if from.read_exact(&mut payload).await.is_err() {
            return;
        }
        let output = match head[0] {
            STDOUT => Output::Stdout(payload.into()),
            STDERR => Output::Stderr(payload.into()),
            END => {
                ended += 1;
                continue;
            }
            _ => return,
        };
        if !to.add(output).await {
            return;
        }
    }
}

/// Writes one piece of input. False = nobody takes any.
pub async fn send_input(to: &mut OwnedWriteHalf, data: &[u8]) -> bool {
    for piece in data.chunks(PIECE) {
        if frame(to, STDIN, piece).await.is_err() {
            return false;
        }
    }
    true
}

/// Ends standard input.
pub async fn end_input(to: &mut OwnedWriteHalf) {
    // Whoever is gone needs no end.
    let _ = frame(to, END, &[STDIN]).await;
}

async fn frame(to: &mut OwnedWriteHalf, stream: u8, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(std::io::Error::other)?;
    let mut bytes = vec![stream];
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes).await
}
