//! A channel as something to read from or write to, for work that blocks: archives that come or go over gRPC.
//!
//! Invariant: at most [`WAITING`] chunks wait, so a slow other side slows this one down instead of filling memory.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// Bytes of a chunk.
pub const CHUNK: usize = 256 << 10;
/// Chunks that may wait.
pub const WAITING: usize = 8;

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Writes chunks into a channel.
#[derive(Debug)]
pub struct Writer {
    to: mpsc::Sender<Vec<u8>>,
    chunk: Vec<u8>,
}

impl Writer {
    /// Into this channel.
    pub fn new(to: mpsc::Sender<Vec<u8>>) -> Self {
        Self {
            to,
            chunk: Vec::with_capacity(CHUNK),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.chunk.len();
        let taken = bytes.len().min(room);
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.to.blocking_send(full).map_err(|_| gone())
    }
}

/// Reads chunks from a channel; `None` in it is an end that was not meant, and a broken pipe.
#[derive(Debug)]
pub struct Reader {
    from: mpsc::Receiver<Option<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Reader {
    /// From this channel.
    pub fn new(from: mpsc::Receiver<Option<Vec<u8>>>) -> Self {
        Self {
            from,
            chunk: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.from.blocking_recv() {
                Some(Some(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Some(None) => return Err(gone()),
                None => return Ok(0),
            }
        }
        let rest = &self.chunk[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}
