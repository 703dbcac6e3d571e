//! Waiting for several things at once in a process without threads: epoll(7) and signalfd(2).
//!
//! Invariant: a token is the caller's own number; what it means is not known here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Data to read, or the end.
    Read,
    /// Room to write.
    Write,
    /// Both.
    Both,
    /// Only that the other side has gone.
    Nothing,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Interest::Nothing => EpollFlags::empty(),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// The caller's number.
    pub token: u64,
    /// There is data, or the end.
    pub read: bool,
    /// There is room.
    pub write: bool,
}

/// A set of watched descriptors.
#[derive(Debug)]
pub struct Poll(Epoll);

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// When it is watched already or cannot be.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Watches it for something else.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self
            .0
            .modify(fd, &mut EpollEvent::new(interest.flags(), token))?)
    }

    /// Stops watching; a descriptor that is not watched is fine.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Waits for at most `milliseconds` (-1 = for ever).
    ///
    /// # Errors
    /// When the kernel refuses; an interrupted wait is an empty answer.
    pub fn wait(&self, milliseconds: i32) -> io::Result<Vec<Ready>> {
        let mut events = [EpollEvent::empty(); 16];
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::NONE);
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let end = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP;
        Ok(events[..count]
            .iter()
            .map(|event| Ready {
                token: event.data(),
                read: event.events().intersects(EpollFlags::EPOLLIN | end),
                write: event.events().intersects(EpollFlags::EPOLLOUT | end),
            })
            .collect())
    }
}

/// A descriptor that is readable when a child has ended; SIGCHLD and SIGPIPE no longer interrupt.
///
/// # Errors
/// When no descriptor is left.
pub fn child_signals() -> io::Result<OwnedFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // SignalFd owns its descriptor privately; a duplicate is what we may keep.
    fd.as_fd().try_clone_to_owned()
}

/// Takes pending notices off such a descriptor.
pub fn drain(fd: impl AsFd) {
    let mut buffer = [0u8; 1024];
    while matches!(nix::unistd::read(fd.as_fd(), &mut buffer), Ok(n) if n > 0) {}
}
