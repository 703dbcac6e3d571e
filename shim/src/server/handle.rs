//! The requests of the runtime service, one function each.
//!
//! Invariant: a repeated launch of what runs is answered with its pid; everything else is safe to repeat.

use gantry_proto::shim::to_shim::Request;
use gantry_proto::shim::{
    Exec, Failure, Launch, Launched, Ok as Done, Signal, StateReply, ToShim, from_shim::Reply,
};
use gantry_sys::event::Interest;
use gantry_sys::{fd, ns};

use super::{CONTAINER, Server, Token};
use crate::cgroup;
use crate::container::{self, Proc};
use crate::init::Failed;
use crate::io::Client;
use crate::log::{Log, Stream};

fn failure(failed: Failed) -> Reply {
    Reply::Failure(Failure {
        exit_code: i32::from(failed.code),
        message: failed.message,
    })
}

fn wrong(message: &str) -> Reply {
    failure(Failed::from(message.to_owned()))
}

impl Server {
    pub(super) fn handle(&mut self, from: u64, message: ToShim) {
        let seq = message.seq;
        let reply = match message.request {
            Some(Request::Launch(plan)) => self.launch(plan),
            Some(Request::Signal(signal)) => self.signal(&signal),
            Some(Request::Exec(exec)) => return self.exec(from, seq, &exec),
            Some(Request::Attach(attach)) => {
                return match self.attach(CONTAINER, attach.stdin, attach.stdout, attach.stderr) {
                    Ok(theirs) => self.send(from, seq, Reply::Ok(Done {}), vec![theirs]),
                    Err(failed) => self.send(from, seq, failure(failed), Vec::new()),
                };
            }
            Some(Request::Resize(resize)) => {
                let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                match self
                    .procs
                    .get(&resize.exec_id)
                    .and_then(|proc| proc.stdout.as_ref().filter(|_| proc.terminal))
                {
                    Some(master) => match gantry_sys::tty::resize(
                        master,
                        size(resize.rows),
                        size(resize.columns),
                    ) {
                        Ok(()) => Reply::Ok(Done {}),
                        Err(error) => wrong(&format!("resize the terminal: {error}")),
                    },
                    None => wrong("resize the terminal: there is none"),
                }
            }
            Some(Request::State(_)) => Reply::State(self.state()),
            Some(Request::Ack(_)) => self.acknowledged(),
            Some(Request::CloseStdin(_)) => {
                if let Some(proc) = self.procs.get_mut(CONTAINER) {
                    proc.closing = true;
                }
                self.feed(CONTAINER);
                Reply::Ok(Done {})
            }
            None => wrong("unknown request; the shim is older than the runtime service"),
        };
        self.send(from, seq, reply, Vec::new());
    }

    fn launch(&mut self, plan: Launch) -> Reply {
        if self.plan.is_some() {
            let pid = self.procs.get(CONTAINER).map_or(0, |proc| proc.pid);
            return Reply::Launched(Launched {
                pid,
                ..Launched::default()
            });
        }
        match self.try_launch(&plan) {
            Ok(launched) => {
                self.watch_streams(CONTAINER);
                // Mounts, the filter and the environment are not needed again.
                self.plan = Some(Launch {
                    mounts: Vec::new(),
                    devices: Vec::new(),
                    process: None,
                    ..plan
                });
                self.feed(CONTAINER);
                Reply::Launched(launched)
            }
            Err(failed) => {
                if let Some(proc) = self.procs.get_mut(CONTAINER) {
                    let _ = proc.signal(gantry_sys::process::SIGKILL);
                    proc.pid = 0;
                }
                self.drain_output(CONTAINER);
                self.close_clients(CONTAINER);
                if let Some(plan) = &plan.cgroup {
                    cgroup::remove(plan);
                }
                self.ending = true;
                failure(failed)
            }
        }
    }

    fn try_launch(&mut self, plan: &Launch) -> Result<Launched, Failed> {
        if let Some(log) = plan.log.as_ref().filter(|log| !log.path.is_empty()) {
            let path = std::path::Path::new(&log.path);
            let open = Log::open(path, log.max_size, log.max_files);
            self.log = Some(open.map_err(|error| format!("open log {}: {error}", log.path))?);
        }
        let warnings = match &plan.cgroup {
            Some(plan) => cgroup::create(plan)?,
            None => Vec::new(),
        };
        let scratch = self.dir.join("rootfs");
        std::fs::create_dir_all(&scratch)
            .map_err(|error| format!("make {}: {error}", scratch.display()))?;
        let proc = self.procs.entry(CONTAINER.to_owned()).or_default();
        container::launch(proc, plan, &scratch)?;
        Ok(Launched {
            pid: proc.pid,
            warnings,
            exec_id: String::new(),
        })
    }

    fn watch_streams(&mut self, id: &str) {
        let Some(proc) = self.procs.get(id) else {
            return;
        };
        let ends = [
            (Stream::Stdout, &proc.stdout),
            (Stream::Stderr, &proc.stderr),
        ];
        let handles: Vec<_> = ends
            .into_iter()
            .filter_map(|(stream, fd)| Some((stream, fd.as_ref()?.try_clone().ok()?)))
            .collect();
        for (stream, handle) in handles {
            // The set watches the open file; this duplicate only names it for a moment and must be the one kept.
            self.watch(
                Token::Output(id.to_owned(), stream),
                &handle,
                Interest::Read,
            );
            if let Some(proc) = self.procs.get_mut(id) {
                match stream {
                    Stream::Stdout => proc.stdout = Some(handle),
                    Stream::Stderr => proc.stderr = Some(handle),
                }
            }
        }
    }

    fn signal(&mut self, signal: &Signal) -> Reply {
        if signal.all {
            let inside = self
                .plan
                .as_ref()
                .and_then(|plan| plan.cgroup.as_ref())
                .map(cgroup::processes);
            for pid in inside.unwrap_or_default() {
                let _ = gantry_sys::process::kill(pid, signal.signal);
            }
            return Reply::Ok(Done {});
        }
        match self.procs.get(&signal.exec_id) {
            Some(proc) => match proc.signal(signal.signal) {
                Ok(()) => Reply::Ok(Done {}),
                Err(error) => wrong(&format!("send signal {}: {error}", signal.signal)),
            },
            // An exec that has ended cannot be signalled; asking again is no fault.
            None => Reply::Ok(Done {}),
        }
    }

    fn attach(
        &mut self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<std::os::fd::OwnedFd, Failed> {
        let pair = fd::stream_pair().map_err(|error| format!("make an attach socket: {error}"))?;
        let client = Client::new(pair.0, stdin, stdout, stderr)
            .map_err(|error| format!("attach: {error}"))?;
        self.add_client(id, client);
        if self.exited.is_some() {
            self.close_clients(id);
        }
        Ok(pair.1)
    }

    fn exec(&mut self, from: u64, seq: u64, exec: &Exec) {
        match self.try_exec(exec) {
            Ok((launched, theirs)) => self.send(
                from,
                seq,
                Reply::Launched(launched),
                theirs.into_iter().collect(),
            ),
            Err(failed) => self.send(from, seq, failure(failed), Vec::new()),
        }
    }

    fn try_exec(
        &mut self,
        exec: &Exec,
    ) -> Result<(Launched, Option<std::os::fd::OwnedFd>), Failed> {
        let id = &exec.exec_id;
        if id.is_empty() || self.procs.contains_key(id) {
            return Err(Failed::from(format!("exec id {id:?} is empty or taken")));
        }
        let process = exec
            .process
            .as_ref()
            .ok_or_else(|| "the exec has no process".to_owned())?;
        let plan = self
            .plan
            .as_ref()
            .ok_or_else(|| "the container does not run".to_owned())?;
        let namespaces = plan
            .namespaces
            .iter()
            .filter_map(|namespace| ns::flag(&namespace.kind))
            .fold(0, |a, b| a | b);
        let container = self
            .procs
            .get(CONTAINER)
            .ok_or_else(|| "the container does not run".to_owned())?;
        let mut proc = Proc::default();
        let started = container::exec(
            &mut proc,
            process,
            container,
            namespaces,
            plan.cgroup.as_ref(),
            exec.stdin,
        );
        if let Err(failed) = started {
            let _ = proc.signal(gantry_sys::process::SIGKILL);
            return Err(failed);
        }
        let launched = Launched {
            pid: proc.pid,
            warnings: Vec::new(),
            exec_id: id.clone(),
        };
        self.procs.insert(id.clone(), proc);
        let theirs = if exec.detach {
            None
        } else {
            Some(self.attach(id, exec.stdin, true, true)?)
        };
        self.watch_streams(id);
        Ok((launched, theirs))
    }

    fn state(&self) -> StateReply {
        let container = self.procs.get(CONTAINER);
        StateReply {
            pid: container.map_or(0, |proc| proc.pid),
            running: container.is_some_and(|proc| proc.pid > 0 && proc.ended.is_none()),
            exited: self.exited.clone(),
            execs: self
                .procs
                .keys()
                .filter(|id| !id.is_empty())
                .cloned()
                .collect(),
        }
    }

    /// The exit is known above: the cgroups can go, and so can we.
    fn acknowledged(&mut self) -> Reply {
        if self.exited.is_none() {
            return wrong("acknowledge: the container has not ended");
        }
        if let Some(plan) = self.plan.as_ref().and_then(|plan| plan.cgroup.as_ref()) {
            cgroup::remove(plan);
        }
        self.ending = true;
        Reply::Ok(Done {})
    }
}
