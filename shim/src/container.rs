//! One process under the shim, the container's own or an exec's: starting it and its streams.
//!
//! Invariant: a `Proc` exists before its process does, so that a client can attach before the first byte of output.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use gantry_proto::shim::{CgroupPlan, IdMap, Launch, Process};
use gantry_sys::process::{self, Cloned, Ended};
use gantry_sys::{fd, ns};

use crate::init::{self, Failed, Stdio};
use crate::io::Client;
use crate::log::Stream;

/// A set-up that takes longer than this is stuck, on a dead network file system for example.
const LONGEST_SETUP: Duration = Duration::from_secs(60);

/// A process and what is connected to it.
#[derive(Debug, Default)]
pub struct Proc {
    /// 0 before it was started.
    pub pid: i32,
    /// For signals and namespaces, free of number reuse.
    pub pidfd: Option<OwnedFd>,
    /// Read end of its standard output; a terminal's master is here.
    pub stdout: Option<OwnedFd>,
    /// Read end of its standard error.
    pub stderr: Option<OwnedFd>,
    /// Write end of its standard input; for a terminal a second handle on the master.
    pub stdin: Option<OwnedFd>,
    /// Input that waits for the process to read.
    pub pending: Vec<u8>,
    /// Input ends once `pending` is written.
    pub closing: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// Streams that wait for a client that is behind, with their tokens.
    pub held: Vec<(Stream, u64)>,
    /// Who is attached, by token.
    pub clients: Vec<(u64, Client)>,
    /// How it ended.
    pub ended: Option<Ended>,
}

/// Our ends and the process's.
fn streams(proc: &mut Proc, plan: &Process, open_stdin: bool) -> io::Result<Stdio> {
    if plan.terminal {
        proc.terminal = true;
        return Ok(Stdio {
            stdin: None,
            stdout: None,
            stderr: None,
        });
    }
    let (out_read, out_write) = fd::pipe()?;
    let (err_read, err_write) = fd::pipe()?;
    let stdin = if open_stdin {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(&write)?;
        proc.stdin = Some(write);
        Some(read)
    } else {
        None
    };
    fd::set_nonblocking(&out_read)?;
    fd::set_nonblocking(&err_read)?;
    proc.stdout = Some(out_read);
    proc.stderr = Some(err_read);
    Ok(Stdio {
        stdin,
        stdout: Some(out_write),
        stderr: Some(err_write),
    })
}

fn write_maps(pid: i32, plan: &Launch) -> io::Result<()> {
    let text = |maps: &[IdMap]| -> String {
        maps.iter()
            .map(|map| format!("{} {} {}\n", map.container, map.host, map.length))
            .collect()
    };
    std::fs::write(format!("/proc/{pid}/uid_map"), text(&plan.uid_maps))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), text(&plan.gid_maps))
}

/// Follows a child's set-up to its end: the program runs, or it says why not.
fn follow(status: &UnixStream, proc: &mut Proc) -> Result<(), Failed> {
    let trouble =
        |error: io::Error| Failed::from(format!("follow the container's set-up: {error}"));
    status
        .set_read_timeout(Some(LONGEST_SETUP))
        .map_err(trouble)?;
    let mut buffer = [0u8; 4096];
    let mut told: Vec<u8> = Vec::new();
    loop {
        let (length, fds) = match fd::recv_with_fds(status.as_fd(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Failed::from(format!(
                    "the container's set-up did not end within {LONGEST_SETUP:?}"
                )));
            }
            other => other.map_err(trouble)?,
        };
        let mut data = &buffer[..length];
        if let Some(master) = fds.into_iter().next() {
            fd::set_nonblocking(&master).map_err(trouble)?;
            proc.stdin = Some(master.try_clone().map_err(trouble)?);
            proc.stdout = Some(master);
            data = data.get(1..).unwrap_or_default();
        }
        told.extend_from_slice(data);
        if length == 0 {
            break;
        }
    }
    match told.split_first() {
        None => Ok(()),
        Some((code, text)) => Err(Failed {
            code: *code,
            message: String::from_utf8_lossy(text).into_owned(),
        }),
    }
}

/// Makes the container. On failure nothing is left but the cgroups.
pub fn launch(proc: &mut Proc, plan: &Launch, scratch: &Path) -> Result<(), Failed> {
    let process = plan
        .process
        .as_ref()
        .ok_or_else(|| "the launch plan has no process".to_owned())?;
    let trouble = |error: io::Error| Failed::from(format!("prepare the container: {error}"));
    let stdio = streams(proc, process, plan.open_stdin).map_err(trouble)?;
    let (ours, theirs) = UnixStream::pair().map_err(trouble)?;
    let mut flags = 0;
    let mut user = false;
    for namespace in plan
        .namespaces
        .iter()
        .filter(|namespace| namespace.path.is_empty())
    {
        // The cgroup namespace is made by the child after it has entered its cgroup.
        if namespace.kind != "cgroup" {
            flags |= ns::flag(&namespace.kind)
                .ok_or_else(|| format!("unknown namespace {:?}", namespace.kind))?;
            user |= namespace.kind == "user";
        }
    }
    match process::clone_process(flags, None)
        .map_err(|error| format!("make the container's process: {error}"))?
    {
        Cloned::Child => {
            drop(ours);
            init::container(plan, scratch, stdio, theirs);
        }
        Cloned::Parent { pid, pidfd } => {
            drop((theirs, stdio));
            proc.pid = pid;
            proc.pidfd = Some(pidfd);
            if user {
                write_maps(pid, plan).map_err(|error| format!("map users and groups: {error}"))?;
                io::Write::write_all(&mut &ours, &[1]).map_err(trouble)?;
            }
            follow(&ours, proc)
        }
    }
}

/// Starts a further process in the running container `of`.
pub fn exec(
    proc: &mut Proc,
    plan: &Process,
    of: &Proc,
    namespaces: u64,
    cgroup: Option<&CgroupPlan>,
    stdin: bool,
) -> Result<(), Failed> {
    let trouble = |error: io::Error| Failed::from(format!("prepare the exec: {error}"));
    let init = of
        .pidfd
        .as_ref()
        .filter(|_| of.ended.is_none())
        .ok_or_else(|| "the container does not run".to_owned())?;
    let stdio = streams(proc, plan, stdin).map_err(trouble)?;
    let (ours, theirs) = UnixStream::pair().map_err(trouble)?;
    // Joining a pid namespace moves only our future children: one goes in, then we are back.
    let pid_flag = ns::flag("pid").unwrap_or_default() & namespaces;
    let home = std::fs::File::open("/proc/self/ns/pid").map_err(trouble)?;
    if pid_flag != 0 {
        ns::join(init.as_fd(), pid_flag)
            .map_err(|error| format!("join the container's pid namespace: {error}"))?;
    }
    let cloned = match process::clone_process(0, None) {
        Ok(Cloned::Child) => {
            drop(ours);
            init::exec(plan, cgroup, init, namespaces & !pid_flag, stdio, theirs);
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            proc.pid = pid;
            proc.pidfd = Some(pidfd);
            Ok(())
        }
        Err(error) => Err(error),
    };
    drop((theirs, stdio));
    if pid_flag != 0 {
        ns::join(home.as_fd(), pid_flag)
            .map_err(|error| format!("return from the pid namespace: {error}"))?;
    }
    cloned.map_err(|error| format!("make the exec's process: {error}"))?;
    follow(&ours, proc)
}

impl Proc {
    /// Sends a signal; a process that is gone is fine.
    ///
    /// # Errors
    /// EINVAL for an unknown signal.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        // Not reaped means that the number is still its own.
        if self.pid > 0 && self.ended.is_none() {
            process::kill(self.pid, number)
        } else {
            Ok(())
        }
    }
}
