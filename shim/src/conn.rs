//! One connection of the runtime service: frames in, frames out.
//!
//! Invariants: a frame is a 4-byte little-endian length and a message; a frame longer than 16 MiB ends the connection;
//! writing never blocks the shim.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use gantry_proto::shim::{FromShim, ToShim};
use prost::Message as _;

const LONGEST_FRAME: usize = 16 << 20;

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A connection and what is on its way.
#[derive(Debug)]
pub struct Conn {
    socket: OwnedFd,
    incoming: Vec<u8>,
    outgoing: VecDeque<Outgoing>,
}

impl Conn {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        gantry_sys::fd::set_nonblocking(&socket)?;
        Ok(Self {
            socket,
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
        })
    }

    /// The socket, for watching.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits for room.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what is there and returns the whole messages.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has closed, `InvalidData` for a frame that is none.
    pub fn receive(&mut self) -> io::Result<Vec<ToShim>> {
        let mut buffer = [0u8; 16 << 10];
        loop {
            match gantry_sys::fd::recv_with_fds(self.socket.as_fd(), &mut buffer) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Nothing that runtime sends carries descriptors; dropping them closes them.
                Ok((length, _)) => self.incoming.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut messages = Vec::new();
        while let Some((head, rest)) = self.incoming.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > LONGEST_FRAME {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a frame of {length} bytes"),
                ));
            }
            let Some(body) = rest.get(..length) else {
                break;
            };
            let message = ToShim::decode(body)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            messages.push(message);
            self.incoming.drain(..4 + length);
        }
        if self.incoming.is_empty() {
            // A launch plan can be large and comes once; its memory is not kept for the life of the container.
            self.incoming = Vec::new();
        }
        Ok(messages)
    }

    /// Queues a message, with descriptors beside it, and sends what goes.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn send(&mut self, message: &FromShim, fds: Vec<OwnedFd>) -> io::Result<()> {
        let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&message.encode_to_vec());
        self.outgoing.push_back(Outgoing {
            bytes,
            sent: 0,
            fds,
        });
        self.flush()
    }

    /// Sends what goes without waiting.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(first) = self.outgoing.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(|fd| fd.as_fd()).collect();
            match gantry_sys::fd::send_with_fds(
                self.socket.as_fd(),
                &first.bytes[first.sent..],
                &fds,
            ) {
                Ok(length) => {
                    first.sent += length;
                    // They went with the first byte.
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
