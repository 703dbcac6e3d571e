//! What flows: output to the log and the clients, input to the process.
//!
//! Invariant: output is in the log before a client has it.

use std::io;
use std::os::fd::AsFd as _;

use gantry_sys::event::{Interest, Ready};

use super::{CONTAINER, Server, Token};
use crate::io::{Client, Input};
use crate::log::Stream;

/// Input beyond this waits with the client.
const MOST_PENDING: usize = 256 << 10;

impl Server {
    /// Reads once from a stream. False = it has ended, or there is nothing now.
    fn pump(&mut self, id: &str, stream: Stream) -> Pumped {
        let Some(proc) = self.procs.get_mut(id) else {
            return Pumped::End;
        };
        let fd = match stream {
            Stream::Stdout => &proc.stdout,
            Stream::Stderr => &proc.stderr,
        };
        let Some(fd) = fd else { return Pumped::End };
        let mut buffer = [0u8; 32 << 10];
        let length = match gantry_sys::fd::read(fd.as_fd(), &mut buffer) {
            Ok(0) => return Pumped::End,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Pumped::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Pumped::Data,
            // EIO is a terminal whose last slave has closed.
            Err(_) => return Pumped::End,
        };
        let data = &buffer[..length];
        if id == CONTAINER
            && let Some(log) = &mut self.log
        {
            log.write(stream, data);
        }
        let mut gone = Vec::new();
        for (token, client) in &mut proc.clients {
            if client.output(stream, data) {
                let interest = if client.wants_write() {
                    Interest::Both
                } else {
                    Interest::Read
                };
                let _ = self.poll.modify(client.fd(), *token, interest);
            } else {
                gone.push(*token);
            }
        }
        for token in gone {
            self.drop_client(id, token);
        }
        Pumped::Data
    }

    /// There is output.
    pub(super) fn output(&mut self, id: &str, stream: Stream, token: u64) {
        if self.hold(id, stream, token) {
            return;
        }
        if self.pump(id, stream) == Pumped::End {
            self.close_output(id, stream);
            self.tokens.remove(&token);
        }
    }

    /// Leaves output in its pipe while a client is behind. Says whether it does.
    fn hold(&mut self, id: &str, stream: Stream, token: u64) -> bool {
        let Some(proc) = self.procs.get_mut(id) else {
            return false;
        };
        let fd = match stream {
            Stream::Stdout => &proc.stdout,
            Stream::Stderr => &proc.stderr,
        };
        let Some(fd) = fd else { return false };
        if !proc.clients.iter().any(|(_, client)| client.is_behind()) {
            return false;
        }
        proc.held.push((stream, token));
        self.poll.modify(fd, token, Interest::Nothing).is_ok()
    }

    /// Goes on with output that was held, when every client has caught up.
    fn release(&mut self, id: &str) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        if proc.held.is_empty() || proc.clients.iter().any(|(_, client)| client.is_behind()) {
            return;
        }
        for (stream, token) in std::mem::take(&mut proc.held) {
            let fd = match stream {
                Stream::Stdout => &proc.stdout,
                Stream::Stderr => &proc.stderr,
            };
            if let Some(fd) = fd {
                let _ = self.poll.modify(fd, token, Interest::Read);
            }
        }
    }

    fn close_output(&mut self, id: &str, stream: Stream) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        let fd = match stream {
            Stream::Stdout => proc.stdout.take(),
            Stream::Stderr => proc.stderr.take(),
        };
        if let Some(fd) = fd {
            self.poll.remove(&fd);
        }
    }

    /// Takes what the streams of an ended process still hold.
    pub(super) fn drain_output(&mut self, id: &str) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.pump(id, stream) == Pumped::Data {}
            self.close_output(id, stream);
        }
        self.tokens
            .retain(|_, token| !matches!(token, Token::Output(of, _) if of == id));
    }

    /// A client has sent something, or has room again.
    pub(super) fn client(&mut self, id: &str, event: Ready) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        let Some((_, client)) = proc
            .clients
            .iter_mut()
            .find(|(token, _)| *token == event.token)
        else {
            return;
        };
        if event.write {
            if !client.flush() {
                return self.drop_client(id, event.token);
            }
            if !client.wants_write() {
                let _ = self.poll.modify(client.fd(), event.token, Interest::Read);
            }
            self.release(id);
        }
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        let Some((_, client)) = proc
            .clients
            .iter_mut()
            .find(|(token, _)| *token == event.token)
        else {
            return;
        };
        if event.read && proc.pending.len() < MOST_PENDING {
            let Some(inputs) = client.input() else {
                return self.drop_client(id, event.token);
            };
            let accepts = client.stdin;
            for input in inputs.into_iter().filter(|_| accepts) {
                match input {
                    Input::Data(data) => proc.pending.extend_from_slice(&data),
                    Input::End => proc.closing = true,
                }
            }
            self.feed(id);
        }
    }

    /// Writes waiting input to the process.
    pub(super) fn feed(&mut self, id: &str) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        // Before the launch input waits; without a stdin it is dropped.
        let Some(stdin) = &proc.stdin else {
            if proc.pid > 0 {
                proc.pending.clear();
            }
            return;
        };
        let mut broken = false;
        let mut blocked = false;
        while !proc.pending.is_empty() && !broken && !blocked {
            match gantry_sys::fd::write(stdin.as_fd(), &proc.pending) {
                Ok(length) => drop(proc.pending.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => broken = true,
            }
        }
        if broken {
            proc.pending.clear();
        }
        self.watch_input(id, blocked);
        if let Some(proc) = self.procs.get_mut(id)
            && ((proc.closing && proc.pending.is_empty()) || broken)
            && !proc.terminal
        {
            proc.stdin = None;
        }
    }

    /// Watches for room in the process's input, or stops doing so.
    fn watch_input(&mut self, id: &str, wanted: bool) {
        let is_input = |token: &Token| matches!(token, Token::Input(of) if of == id);
        let watched = self
            .tokens
            .iter()
            .find(|(_, token)| is_input(token))
            .map(|(number, _)| *number);
        let number = self.next + 1;
        let Some(stdin) = self.procs.get(id).and_then(|proc| proc.stdin.as_ref()) else {
            return;
        };
        match (wanted, watched) {
            (true, None) if self.poll.add(stdin, number, Interest::Write).is_ok() => {
                self.next = number;
                self.tokens.insert(number, Token::Input(id.to_owned()));
            }
            (false, Some(number)) => {
                self.poll.remove(stdin);
                self.tokens.remove(&number);
            }
            _ => {}
        }
    }

    /// Lets a client in.
    pub(super) fn add_client(&mut self, id: &str, client: Client) {
        let token = self.token(Token::Client(id.to_owned()));
        let _ = self.poll.add(client.fd(), token, Interest::Read);
        if let Some(proc) = self.procs.get_mut(id) {
            proc.clients.push((token, client));
        }
    }

    fn drop_client(&mut self, id: &str, token: u64) {
        self.tokens.remove(&token);
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        if let Some(at) = proc.clients.iter().position(|(number, _)| *number == token) {
            let (_, client) = proc.clients.remove(at);
            self.poll.remove(client.fd());
        }
        self.release(id);
    }

    /// Tells the clients of an ended process that nothing more comes; those that lag get the rest under the container's
    /// name, so that an exec can be forgotten.
    pub(super) fn close_clients(&mut self, id: &str) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        let clients = std::mem::take(&mut proc.clients);
        for (token, mut client) in clients {
            if client.end() {
                let _ = self.poll.modify(client.fd(), token, Interest::Both);
                self.tokens
                    .insert(token, Token::Client(CONTAINER.to_owned()));
                client.stdin = false;
                if let Some(container) = self.procs.get_mut(CONTAINER) {
                    container.clients.push((token, client));
                }
            } else {
                self.poll.remove(client.fd());
                self.tokens.remove(&token);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pumped {
    Data,
    Nothing,
    End,
}
