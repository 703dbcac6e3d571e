//! The child's side: from a fresh clone to the container's program, in fixed stages.
//!
//! Invariants: runs in a child of a process with one thread; every failure goes to the parent as [`Failed`] over the status
//! socket and ends the child; the parent knows that the program runs when that socket closes by exec.

pub mod process;
pub mod rootfs;

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_proto::shim::{CgroupPlan, Launch, Process};
use gantry_sys::{fd, ns};

use crate::{cgroup, users};

/// Why a container or an exec did not come to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// 125 could not be set up, 126 cannot be executed, 127 not found.
    pub code: u8,
    /// One line.
    pub message: String,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self { code: 125, message }
    }
}

/// The stdio that the parent prepared; a terminal's is made by the child.
#[derive(Debug)]
pub struct Stdio {
    /// None = /dev/null.
    pub stdin: Option<OwnedFd>,
    /// Standard output's write end; None for a terminal.
    pub stdout: Option<OwnedFd>,
    /// Standard error's write end; None for a terminal.
    pub stderr: Option<OwnedFd>,
}

/// Tells the parent what went wrong and ends.
pub fn fail(mut status: UnixStream, failed: &Failed) -> ! {
    let mut message = vec![failed.code];
    message.extend_from_slice(failed.message.as_bytes());
    // The parent may be gone; then there is nobody to tell.
    let _ = status.write_all(&message);
    gantry_sys::process::exit_now(i32::from(failed.code))
}

/// Waits until the parent has written the maps of our user namespace.
fn wait_for_maps(status: &mut UnixStream) -> Result<(), Failed> {
    let mut byte = [0u8];
    status
        .read_exact(&mut byte)
        .map_err(|error| Failed::from(format!("wait for the user namespace: {error}")))
}

/// Makes the container around this process and becomes its program.
pub fn container(plan: &Launch, scratch: &Path, stdio: Stdio, mut status: UnixStream) -> ! {
    let error = match setup(plan, scratch, stdio, &mut status) {
        Ok(ready) if plan.init => ready.run_with_reaper(&mut status),
        Ok(ready) => ready.exec(),
        Err(error) => error,
    };
    fail(status, &error)
}

fn setup(
    plan: &Launch,
    scratch: &Path,
    stdio: Stdio,
    status: &mut UnixStream,
) -> Result<process::Ready, Failed> {
    let process = plan
        .process
        .as_ref()
        .ok_or_else(|| "the launch plan has no process".to_owned())?;
    let own = |kind: &str| {
        plan.namespaces
            .iter()
            .any(|n| n.kind == kind && n.path.is_empty())
    };
    if own("user") {
        wait_for_maps(status)?;
        gantry_sys::process::become_user(0, 0, &[])
            .map_err(|e| format!("become root of the user namespace: {e}"))?;
    }
    enter_cgroup(plan.cgroup.as_ref(), own("cgroup"))?;
    for namespace in plan
        .namespaces
        .iter()
        .filter(|namespace| !namespace.path.is_empty())
    {
        let flag = ns::flag(&namespace.kind)
            .ok_or_else(|| format!("unknown namespace {:?}", namespace.kind))?;
        let file = std::fs::File::open(&namespace.path)
            .map_err(|e| format!("open namespace {}: {e}", namespace.path))?;
        ns::join(file.as_fd(), flag)
            .map_err(|e| format!("join namespace {}: {e}", namespace.path))?;
    }
    if !plan.hostname.is_empty() {
        ns::set_hostname(&plan.hostname)
            .map_err(|e| format!("set hostname {:?}: {e}", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        ns::set_domainname(&plan.domainname)
            .map_err(|e| format!("set domain name {:?}: {e}", plan.domainname))?;
    }
    rootfs::build(plan, scratch)?;
    stage_stdio(process, stdio, status, true)?;
    rootfs::seal(plan)?;
    process::prepare(process, &passwd_and_group()?)
}

/// Becomes a further program in a running container; the caller has joined its pid namespace by cloning into it.
pub fn exec(
    process: &Process,
    cgroup: Option<&CgroupPlan>,
    init: &OwnedFd,
    namespaces: u64,
    stdio: Stdio,
    mut status: UnixStream,
) -> ! {
    let run = |status: &mut UnixStream| -> Result<process::Ready, Failed> {
        enter_cgroup(cgroup, false)?;
        ns::join(init.as_fd(), namespaces)
            .map_err(|error| format!("join the container's namespaces: {error}"))?;
        stage_stdio(process, stdio, status, false)?;
        process::prepare(process, &passwd_and_group()?)
    };
    let error = match run(&mut status) {
        Ok(ready) => ready.exec(),
        Err(error) => error,
    };
    fail(status, &error)
}

fn passwd_and_group() -> Result<(String, String), Failed> {
    Ok((
        users::read(Path::new("/etc/passwd"))?,
        users::read(Path::new("/etc/group"))?,
    ))
}

fn enter_cgroup(plan: Option<&CgroupPlan>, own_namespace: bool) -> Result<(), Failed> {
    if let Some(plan) = plan {
        cgroup::enter(plan)?;
    }
    // Only after entering: the namespace's root is where the process is at this moment.
    match ns::flag("cgroup") {
        Some(flag) if own_namespace => {
            ns::leave(flag).map_err(|error| format!("make a cgroup namespace: {error}").into())
        }
        _ => Ok(()),
    }
}

/// Puts the three standard streams in place; for a terminal, makes it and passes its master to the parent.
fn stage_stdio(
    process: &Process,
    stdio: Stdio,
    status: &mut UnixStream,
    console: bool,
) -> Result<(), Failed> {
    if process.terminal {
        let (master, slave) =
            gantry_sys::tty::open().map_err(|error| format!("make a terminal: {error}"))?;
        if process.rows > 0 && process.columns > 0 {
            let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            gantry_sys::tty::resize(&master, size(process.rows), size(process.columns))
                .map_err(|error| format!("size the terminal: {error}"))?;
        }
        if console {
            rootfs::bind_console(&slave)?;
        }
        let slave = gantry_sys::tty::take_control(Path::new(&slave))
            .map_err(|error| format!("take the terminal: {error}"))?;
        // One zero byte carries the master; a failure's first byte is never zero.
        fd::send_with_fds(status.as_fd(), &[0], &[master.as_fd()])
            .map_err(|error| format!("pass the terminal: {error}"))?;
        for number in 0..3 {
            fd::install(slave.as_fd(), number)
                .map_err(|error| format!("install stdio: {error}"))?;
        }
        return Ok(());
    }
    gantry_sys::process::new_session();
    let null = || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
            .map_err(|error| format!("open /dev/null: {error}"))
    };
    for (number, end) in [(0, stdio.stdin), (1, stdio.stdout), (2, stdio.stderr)] {
        let end = match end {
            Some(end) => end,
            None => null()?,
        };
        fd::install(end.as_fd(), number).map_err(|error| format!("install stdio: {error}"))?;
    }
    Ok(())
}
