//! The shim's loop: connections, children, streams; one epoll set, one thread.
//!
//! Invariants: a request gets one reply; an exit is recorded on disk, then told to every connection, and told again to
//! each new one until it is acknowledged; nothing here waits for a client.

mod handle;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use gantry_proto::shim::{Exited, FromShim, Launch, from_shim::Reply};
use gantry_sys::event::{self, Interest, Poll};
use gantry_sys::{fd, fs, process};
use prost::Message as _;

use crate::cgroup;
use crate::conn::Conn;
use crate::container::Proc;
use crate::log::{Log, Stream, now_ns};

/// What a token of the epoll set stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Listener,
    Children,
    Conn,
    Output(String, Stream),
    Input(String),
    Client(String),
}

/// Everything the shim knows.
#[derive(Debug)]
struct Server {
    dir: PathBuf,
    poll: Poll,
    listener: UnixListener,
    children: OwnedFd,
    tokens: BTreeMap<u64, Token>,
    next: u64,
    conns: BTreeMap<u64, Conn>,
    /// By exec id; the container's own is "".
    procs: BTreeMap<String, Proc>,
    plan: Option<Launch>,
    log: Option<Log>,
    exited: Option<Exited>,
    oom_told: u64,
    /// The launch failed, or the exit was acknowledged: end when everything is said.
    ending: bool,
}

/// The container's own entry in `procs`.
const CONTAINER: &str = "";

/// Serves one container until its exit was acknowledged.
///
/// # Errors
/// When the shim's own files or sockets cannot be made.
pub fn run(dir: &Path) -> io::Result<()> {
    let first = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    fd::install(null.as_fd(), 0)?;
    fd::cloexec_from(3)?;
    process::new_session();
    process::ignore_end_signals()?;
    process::become_subreaper()?;
    let socket = dir.join("shim.sock");
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    std::fs::write(dir.join("pid"), std::process::id().to_string())?;
    let mut server = Server {
        dir: dir.to_owned(),
        poll: Poll::new()?,
        children: event::child_signals()?,
        listener,
        tokens: BTreeMap::new(),
        next: 0,
        conns: BTreeMap::new(),
        procs: BTreeMap::from([(CONTAINER.to_owned(), Proc::default())]),
        plan: None,
        log: None,
        exited: None,
        oom_told: 0,
        ending: false,
    };
    let token = server.token(Token::Listener);
    server.poll.add(&server.listener, token, Interest::Read)?;
    let token = server.token(Token::Children);
    server.poll.add(&server.children, token, Interest::Read)?;
    server.adopt(first)?;
    server.serve()?;
    // Removing the socket last tells whoever looks that nothing is to be asked any more.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

impl Server {
    fn token(&mut self, token: Token) -> u64 {
        self.next += 1;
        self.tokens.insert(self.next, token);
        self.next
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<()> {
        let conn = Conn::new(socket)?;
        let token = self.token(Token::Conn);
        self.poll.add(conn.fd(), token, Interest::Read)?;
        self.conns.insert(token, conn);
        if let Some(exited) = self.exited.clone() {
            self.send(token, 0, Reply::Exited(exited), Vec::new());
        }
        Ok(())
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            if self.ending && self.quiet() {
                return Ok(());
            }
            // While ending, slow clients get a second to take the rest.
            let ready = self.poll.wait(if self.ending { 1000 } else { -1 })?;
            if ready.is_empty() && self.ending {
                return Ok(());
            }
            for event in ready {
                match self.tokens.get(&event.token).cloned() {
                    Some(Token::Listener) => {
                        while let Ok((stream, _)) = self.listener.accept() {
                            self.adopt(stream.into())?;
                        }
                    }
                    Some(Token::Children) => {
                        event::drain(&self.children);
                        self.reap();
                    }
                    Some(Token::Conn) => self.converse(event),
                    Some(Token::Output(id, stream)) => self.output(&id, stream, event.token),
                    Some(Token::Input(id)) => self.feed(&id),
                    Some(Token::Client(id)) => self.client(&id, event),
                    None => {}
                }
            }
        }
    }

    /// Nobody waits for anything: every connection and client has what it was told.
    fn quiet(&self) -> bool {
        let clients = self.procs.values().flat_map(|proc| &proc.clients);
        !self.conns.values().any(Conn::wants_write)
            && !clients.into_iter().any(|(_, client)| client.wants_write())
    }

    fn send(&mut self, token: u64, seq: u64, reply: Reply, fds: Vec<OwnedFd>) {
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        let message = FromShim {
            seq,
            reply: Some(reply),
        };
        if conn.send(&message, fds).is_err() {
            self.drop_conn(token);
            return;
        }
        let interest = if conn.wants_write() {
            Interest::Both
        } else {
            Interest::Read
        };
        let _ = self.poll.modify(conn.fd(), token, interest);
    }

    fn broadcast(&mut self, reply: &Reply) {
        for token in self.conns.keys().copied().collect::<Vec<_>>() {
            self.send(token, 0, reply.clone(), Vec::new());
        }
    }

    fn drop_conn(&mut self, token: u64) {
        self.tokens.remove(&token);
        if let Some(conn) = self.conns.remove(&token) {
            self.poll.remove(conn.fd());
        }
        // Never launched and nobody left to ask for it: there is nothing to keep.
        if self.conns.is_empty() && self.plan.is_none() {
            self.ending = true;
        }
    }

    fn converse(&mut self, event: event::Ready) {
        let Some(conn) = self.conns.get_mut(&event.token) else {
            return;
        };
        if event.write && conn.flush().is_err() {
            return self.drop_conn(event.token);
        }
        if !conn.wants_write() {
            let _ = self.poll.modify(conn.fd(), event.token, Interest::Read);
        }
        if event.read {
            match conn.receive() {
                Ok(messages) => {
                    for message in messages {
                        self.handle(event.token, message);
                    }
                }
                Err(_) => self.drop_conn(event.token),
            }
        }
    }

    fn reap(&mut self) {
        while let Some(ended) = process::reap() {
            // Others are orphans of the container in the host's pid namespace.
            let id = self
                .procs
                .iter()
                .find(|(_, proc)| proc.pid == ended.pid)
                .map(|(id, _)| id.clone());
            if let Some(id) = id {
                self.ended(&id, ended);
            }
        }
    }

    /// A process has ended: take the rest of its output, record, tell.
    fn ended(&mut self, id: &str, ended: process::Ended) {
        let Some(proc) = self.procs.get_mut(id) else {
            return;
        };
        proc.ended = Some(ended);
        let container = id == CONTAINER;
        if container {
            self.end_stragglers();
        }
        self.drain_output(id);
        let kills = self
            .plan
            .as_ref()
            .and_then(|plan| plan.cgroup.as_ref())
            .map_or(0, cgroup::oom_kills);
        if kills > self.oom_told {
            self.oom_told = kills;
            self.broadcast(&Reply::Oom(gantry_proto::shim::Oom { count: kills }));
        }
        let exited = Exited {
            exec_id: id.to_owned(),
            pid: ended.pid,
            exit_code: ended.code,
            signal: ended.signal,
            oom_killed: container && kills > 0,
            time_ns: now_ns(),
            user_usec: ended.user_usec,
            system_usec: ended.system_usec,
            max_rss_kib: ended.max_rss_kib,
        };
        if container {
            if let Some(log) = &mut self.log {
                log.finish();
            }
            // A full disk must not hide the exit from those who are connected.
            if let Err(error) = fs::write_atomic(&self.dir.join("exit"), &exited.encode_to_vec()) {
                crate::trouble(&format!("write the exit record: {error}"));
            }
            self.exited = Some(exited.clone());
        }
        self.close_clients(id);
        if !container {
            self.procs.remove(id);
        }
        self.broadcast(&Reply::Exited(exited));
    }

    /// With a pid namespace of its own everything in the container has ended with its first process; without one the
    /// rest is ended here.
    fn end_stragglers(&mut self) {
        let Some(plan) = &self.plan else { return };
        if plan
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
        {
            return;
        }
        for _ in 0..100 {
            let left = plan
                .cgroup
                .as_ref()
                .map(cgroup::processes)
                .unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = process::kill(pid, process::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn watch(&mut self, token: Token, fd: &OwnedFd, interest: Interest) -> u64 {
        let number = self.token(token);
        if let Err(error) = self.poll.add(fd.as_fd(), number, interest) {
            crate::trouble(&format!("watch a stream: {error}"));
        }
        number
    }
}
