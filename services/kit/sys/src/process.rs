//! Processes: cloning into namespaces, waiting, signals, identity, limits, exec.
//!
//! Invariant: [`clone_process`] is called only by programs of one thread, so that the child may go on as ordinary code.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::{Gid, Uid};

/// SIGTERM, for those who ask politely.
pub const SIGTERM: i32 = libc::SIGTERM;
/// SIGKILL.
pub const SIGKILL: i32 = libc::SIGKILL;

/// Sends a signal (by number) to a process, or with a negative pid to a process group.
///
/// # Errors
/// ESRCH when it is gone, EINVAL for an unknown signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    crate::check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// The calling process gets SIGTERM when its parent, `parent`, ends. An error when that has happened already.
///
/// # Errors
/// When the kernel refuses, or the parent is gone.
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    if u32::try_from(nix::unistd::getppid().as_raw()).ok() != Some(parent) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the parent is gone",
        ));
    }
    Ok(())
}

/// Orphans below this process become its children, so that it can reap them.
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Leaves the caller's session and terminal. Being a leader already is fine.
pub fn new_session() {
    let _ = nix::unistd::setsid();
}

/// Ignores the signals that end a daemon by mistake or by a shell that exits.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_end_signals() -> io::Result<()> {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGPIPE,
    ] {
        // SAFETY: SIG_IGN installs no handler, so no code of ours runs in signal context.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Puts every signal back to its default and unblocks all, as a new program expects.
pub fn reset_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; numbers that cannot be changed are refused without effect.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// What [`clone_process`] returns on its two sides.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the new process's number and a descriptor for it.
    Parent {
        /// Its number in the caller's pid namespace.
        pid: i32,
        /// Readable when it has ended.
        pidfd: OwnedFd,
    },
}

/// Makes a child in new namespaces (CLONE_NEW* flags), and on cgroup v2 directly in a cgroup.
///
/// # Errors
/// What clone3(2) says: EPERM, ENOSPC (too many namespaces), EAGAIN (too many processes).
pub fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero is valid for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_sign_loss)]
    {
        args.flags = namespaces | libc::CLONE_PIDFD as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
        if let Some(cgroup) = cgroup {
            args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
    }
    // SAFETY: args lives across the call and its size is passed; without CLONE_VM the child has its own copy of all
    // memory, and the caller has one thread, so no lock is held by a thread that does not exist in the child.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    };
    match crate::check(result)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).map_err(io::Error::other)?,
            // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Makes a child that shares everything but memory. For a process that already lives under a filter, in which clone3(2) does
/// not exist.
///
/// # Errors
/// EAGAIN (too many processes).
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the caller has one thread (this module's invariant), so the child may go on as ordinary code.
    match crate::check(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => i32::try_from(pid).map(Some).map_err(io::Error::other),
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Which.
    pub pid: i32,
    /// Its exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it, 0 for none.
    pub signal: i32,
    /// User and system time of it and what it waited for, microseconds.
    pub user_usec: i64,
    /// System time, microseconds.
    pub system_usec: i64,
    /// Largest resident size, KiB.
    pub max_rss_kib: i64,
}

/// The next child that has ended; None when there is none now.
pub fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: rusage is plain integers; zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right type.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
    if pid <= 0 {
        return None;
    }
    let signal = if libc::WIFSIGNALED(status) {
        libc::WTERMSIG(status)
    } else {
        0
    };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    Some(Ended {
        pid,
        code: if signal > 0 {
            128 + signal
        } else {
            libc::WEXITSTATUS(status)
        },
        signal,
        user_usec: micros(usage.ru_utime),
        system_usec: micros(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss,
    })
}

/// Becomes this user, group and supplementary groups, keeping permitted capabilities across the change.
///
/// # Errors
/// EPERM without the capabilities, EINVAL for numbers not mapped in the user namespace.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups)?;
    let gid = Gid::from_raw(gid);
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::sys::prctl::set_keepcaps(true)?;
    let uid = Uid::from_raw(uid);
    nix::unistd::setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)?;
    Ok(())
}

/// No program that this process executes gains privileges (prctl(2), PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// When the kernel refuses.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// Sets a limit by its number; where raising the hard limit is not allowed, it stays as it is and the soft limit
/// goes up to it.
///
/// # Errors
/// EINVAL for an unknown resource.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let wanted = libc::rlimit {
        rlim_cur: soft.min(hard),
        rlim_max: hard,
    };
    // SAFETY: the pointer is to a live value of the right type.
    if unsafe { libc::setrlimit(resource, &wanted) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(error);
    }
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the right type.
    crate::check(unsafe { libc::getrlimit(resource, &mut now) }.into())?;
    let clamped = libc::rlimit {
        rlim_cur: soft.min(now.rlim_max),
        rlim_max: hard.min(now.rlim_max),
    };
    // SAFETY: as above.
    crate::check(unsafe { libc::setrlimit(resource, &clamped) }.into()).map(drop)
}

/// Replaces this process by a program. Returns only on failure.
pub fn exec(program: &Path, args: &[String], env: &[String]) -> io::Error {
    let list = |items: &[String]| -> io::Result<Vec<CString>> {
        items
            .iter()
            .map(|item| crate::c_string(OsStr::new(item)))
            .collect()
    };
    let run = || -> io::Result<std::convert::Infallible> {
        let program = crate::c_string(program.as_os_str())?;
        Ok(nix::unistd::execve(&program, &list(args)?, &list(env)?)?)
    };
    match run() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Ends the process without running destructors or flushing, as a cloned child must.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Sets the mask of permissions taken from new files.
pub fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

/// The life of a small PID 1: passes every signal on to `child`, reaps what becomes its own, and ends as `child` ended.
pub fn forward_signals(child: i32) -> ! {
    let all = SigSet::all();
    let _ = all.thread_block();
    loop {
        // What ended before the signals were blocked left no signal behind, so look first.
        while let Some(ended) = reap() {
            if ended.pid == child {
                exit_now(ended.code);
            }
        }
        match all.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // The child may be ending; the next look tells.
            Ok(signal) => drop(kill(child, signal as i32)),
        }
    }
}
