//! Terminals: the container's own, and its size.
//!
//! Invariant: the master never reaches the container.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// Opens a new terminal of the devpts mounted at /dev/pts: the master and the slave's path.
///
/// # Errors
/// ENOENT when no devpts is mounted, ENOSPC when there are too many terminals.
pub fn open() -> io::Result<(OwnedFd, String)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open("/dev/pts/ptmx", flags, Mode::empty())?;
    let unlock: libc::c_int = 0;
    let raw = master.as_raw_fd();
    // SAFETY: TIOCSPTLCK reads one int through the pointer.
    let result = unsafe { libc::ioctl(raw, libc::TIOCSPTLCK, std::ptr::from_ref(&unlock)) };
    crate::check(result.into())?;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int through the pointer.
    let result = unsafe { libc::ioctl(raw, libc::TIOCGPTN, std::ptr::from_mut(&mut number)) };
    crate::check(result.into())?;
    Ok((master, format!("/dev/pts/{number}")))
}

/// Opens the slave and makes it the controlling terminal of a new session.
///
/// # Errors
/// EPERM when this process is not a session leader.
pub fn take_control(slave: &Path) -> io::Result<OwnedFd> {
    let fd = nix::fcntl::open(slave, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    crate::process::new_session();
    // SAFETY: TIOCSCTTY takes an integer.
    crate::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(fd)
}

/// Sets rows and columns; the foreground process gets SIGWINCH.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn resize(fd: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize through the pointer.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            libc::TIOCSWINSZ,
            std::ptr::from_ref(&size),
        )
    };
    crate::check(result.into()).map(drop)
}
