//! Descriptors: pipes, socket pairs, passing them between processes, marking them close-on-exec.
//!
//! Invariant: every descriptor made here is close-on-exec.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// A connected pair of Unix stream sockets.
///
/// # Errors
/// When no descriptor is left.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// A pipe: read end, write end.
///
/// # Errors
/// When no descriptor is left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Makes reads and writes return `WouldBlock` instead of waiting.
///
/// # Errors
/// When the descriptor is not open.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check_fd(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2), CLOSE_RANGE_CLOEXEC).
///
/// # Errors
/// When the kernel is older than 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call only sets a flag on descriptors of this process; none is closed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    crate::check(result).map(drop)
}

/// Repeats a call that a signal cut off. A process that was stopped and goes on finds its waits with a time limit cut off so
/// (signal(7)), without having caught anything.
fn again<T>(
    mut call: impl FnMut() -> Result<T, nix::errno::Errno>,
) -> Result<T, nix::errno::Errno> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Reads once. No bytes means the end.
///
/// # Errors
/// `WouldBlock` when nothing is there, EIO for a terminal whose last slave has closed.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(again(|| nix::unistd::read(fd, buffer))?)
}

/// Writes once and says how much went.
///
/// # Errors
/// `WouldBlock` when there is no room, `BrokenPipe` when nobody reads; SIGPIPE must be ignored.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    Ok(again(|| nix::unistd::write(fd, data))?)
}

/// Closes every descriptor from `first` on. For a process that goes on with none of its own, such as a reaper.
pub fn close_from(first: u32) {
    // SAFETY: the caller keeps no descriptor that it would use or drop later, as the documentation asks.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Makes `number` refer to what `fd` does and keeps it open across exec.
///
/// # Errors
/// When a descriptor is not open.
pub fn install(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        let flags = nix::fcntl::FdFlag::empty();
        fcntl(fd, FcntlArg::F_SETFD(flags))?;
        return Ok(());
    }
    // SAFETY: dup2 onto 0, 1 or 2 in a freshly cloned child that is about to exec; nothing in it owns those numbers.
    check_fd(unsafe { libc::dup2(fd.as_raw_fd(), number) })
}

/// Writes bytes, with descriptors beside the first of them (SCM_RIGHTS). Returns how many bytes went.
///
/// # Errors
/// `WouldBlock` on a full non-blocking socket, or what the kernel says; a closed peer raises no signal.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let parts = [io::IoSlice::new(bytes)];
    Ok(again(|| {
        sendmsg::<()>(
            socket.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
    })?)
}

/// Reads bytes and the descriptors beside them, at most 8.
///
/// # Errors
/// `WouldBlock` when nothing is there, or what the kernel says. No bytes means that the peer has closed.
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    Ok(again(|| recv_once(socket, buffer))?)
}

fn recv_once(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), nix::errno::Errno> {
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these numbers for this message; nothing else owns them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((message.bytes, fds))
}
