//! Attached clients: frames of one byte stream, four bytes length, payload (shim.proto, Attach).
//!
//! Invariants: nothing is lost: while a client is more than 1 MiB behind, the process's output waits in its pipe; input that
//! the container does not read waits, and no more is taken from the client meanwhile.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::log::Stream;

const STDIN: u8 = 0;
const END: u8 = 3;
const FURTHEST_BEHIND: usize = 1 << 20;
const LONGEST_INPUT: usize = 1 << 20;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the process.
    Data(Vec<u8>),
    /// No more will come.
    End,
}

/// One attached client.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    stdout: bool,
    stderr: bool,
    /// Its input goes to the process.
    pub stdin: bool,
    queue: Vec<u8>,
    incoming: Vec<u8>,
    ending: bool,
}

impl Client {
    /// A client behind our end of a socket pair.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(socket: OwnedFd, stdin: bool, stdout: bool, stderr: bool) -> io::Result<Self> {
        gantry_sys::fd::set_nonblocking(&socket)?;
        Ok(Self {
            socket,
            stdout,
            stderr,
            stdin,
            queue: Vec::new(),
            incoming: Vec::new(),
            ending: false,
        })
    }

    /// The socket, for watching.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits for room.
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    fn frame(&mut self, stream: u8, payload: &[u8]) {
        self.queue.push(stream);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.queue.extend_from_slice(&length.to_le_bytes());
        self.queue.extend_from_slice(payload);
    }

    /// Whether it should take something before it is given more.
    pub fn is_behind(&self) -> bool {
        self.queue.len() > FURTHEST_BEHIND
    }

    /// Sends output, or queues it. False = the client is gone and must be dropped.
    pub fn output(&mut self, stream: Stream, data: &[u8]) -> bool {
        let (wanted, number) = match stream {
            Stream::Stdout => (self.stdout, 1),
            Stream::Stderr => (self.stderr, 2),
        };
        if !wanted {
            return true;
        }
        self.frame(number, data);
        self.flush()
    }

    /// Says that both streams have ended. False = it is gone.
    pub fn end(&mut self) -> bool {
        self.frame(END, &[1]);
        self.frame(END, &[2]);
        self.ending = true;
        self.flush()
    }

    /// Sends what goes. False = gone, or everything was said after the end.
    pub fn flush(&mut self) -> bool {
        let mut sent = 0;
        let alive = loop {
            if sent == self.queue.len() {
                break !self.ending;
            }
            match gantry_sys::fd::send_with_fds(self.socket.as_fd(), &self.queue[sent..], &[]) {
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        self.queue.drain(..sent);
        if self.queue.is_empty() {
            self.queue = Vec::new();
        }
        alive
    }

    /// Reads what the client sent; None when it is gone or speaks nonsense.
    pub fn input(&mut self) -> Option<Vec<Input>> {
        let mut buffer = [0u8; 16 << 10];
        match gantry_sys::fd::recv_with_fds(self.socket.as_fd(), &mut buffer) {
            Ok((0, _)) => return None,
            Ok((length, _)) => self.incoming.extend_from_slice(&buffer[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => return None,
        }
        let mut inputs = Vec::new();
        while let Some((head, rest)) = self.incoming.split_first_chunk::<5>() {
            let [stream, length @ ..] = *head;
            let length = u32::from_le_bytes(length) as usize;
            if length > LONGEST_INPUT {
                return None;
            }
            let Some(payload) = rest.get(..length) else {
                break;
            };
            match (stream, payload) {
                (STDIN, data) => inputs.push(Input::Data(data.to_vec())),
                (END, [STDIN]) => inputs.push(Input::End),
                _ => return None,
            }
            self.incoming.drain(..5 + length);
        }
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        Some(inputs)
    }
}
