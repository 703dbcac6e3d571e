//! Namespaces: names and flags, joining, leaving, the root file system's switch.
//!
//! Invariant: only the calling process is moved.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The CLONE_NEW* flag of a kind ("mnt", "pid", "uts", "ipc", "net", "cgroup", "user"); None for another word.
pub fn flag(kind: &str) -> Option<u64> {
    let flags = match kind {
        "mnt" => CloneFlags::CLONE_NEWNS,
        "pid" => CloneFlags::CLONE_NEWPID,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "net" => CloneFlags::CLONE_NEWNET,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        "user" => CloneFlags::CLONE_NEWUSER,
        _ => return None,
    };
    u64::try_from(flags.bits()).ok()
}

fn clone_flags(bits: u64) -> io::Result<CloneFlags> {
    i32::try_from(bits)
        .ok()
        .and_then(CloneFlags::from_bits)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "unknown namespace flag"))
}

/// Joins namespaces: of one namespace file with its flag, or of a process (pidfd) with several.
///
/// # Errors
/// EPERM without the capabilities, EINVAL for a user namespace that is our own.
pub fn join(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    Ok(setns(fd, clone_flags(flags)?)?)
}

/// Moves this process into new namespaces.
///
/// # Errors
/// EPERM without the capabilities, ENOSPC when there are too many.
pub fn leave(flags: u64) -> io::Result<()> {
    Ok(unshare(clone_flags(flags)?)?)
}

/// Nothing mounted here is seen outside this mount namespace; mounts made outside still arrive when `slave`.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn isolate_mounts(slave: bool) -> io::Result<()> {
    let kind = if slave {
        MsFlags::MS_SLAVE
    } else {
        MsFlags::MS_PRIVATE
    };
    Ok(mount(
        None::<&str>,
        "/",
        None::<&str>,
        kind | MsFlags::MS_REC,
        None::<&str>,
    )?)
}

/// Does something in a mount namespace of its own, on a thread of its own: what is mounted meanwhile nobody else sees.
///
/// # Errors
/// Those of the work, EPERM without CAP_SYS_ADMIN.
pub fn aside<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            leave(CloneFlags::CLONE_NEWNS.bits().cast_unsigned().into())?;
            isolate_mounts(false)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Makes `rootfs`, a mount point, the root of this mount namespace and lets go of the old one (pivot_root(2), "pivot_root(".", ".")").
///
/// # Errors
/// EINVAL when it is no mount point.
pub fn switch_root(rootfs: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fchdir takes an open descriptor.
    crate::check(unsafe { libc::fchdir(rootfs.as_raw_fd()) }.into())?;
    nix::unistd::pivot_root(".", ".")?;
    // The old root is now stacked on the new one; what happens below it must not reach the host.
    mount(
        None::<&str>,
        ".",
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    )?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Names this UTS namespace.
///
/// # Errors
/// EINVAL when longer than 64 bytes.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// Names its NIS domain.
///
/// # Errors
/// EINVAL when longer than 64 bytes.
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe a live string; the kernel copies it.
    crate::check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}
