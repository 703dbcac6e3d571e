//! Network namespaces, and the sockets that belong to them: making, pinning, working inside, netlink, listening.
//!
//! Invariants: no thread that goes on to other work is ever moved: whatever enters a namespace does it on a thread of its
//! own that ends there; a namespace lives as long as a descriptor, a pin or a socket of it does.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, listen, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// Stack of a thread that only makes a few system calls.
const STACK: usize = 256 << 10;

/// Runs `work` on a thread of its own.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// Makes a network namespace, runs `work` in it and gives both back.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSPC when there are too many, or what `work` says.
pub fn create<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<(OwnedFd, T)> {
    apart(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok((namespace.into(), work()?))
    })
}

/// Runs `work` in a namespace.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, or what `work` says.
pub fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    apart(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Gives a namespace a name in the file system that keeps it alive.
///
/// # Errors
/// EEXIST when the name is taken, EPERM without CAP_SYS_ADMIN; then the name is not there.
pub fn pin(namespace: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    File::options().write(true).create_new(true).open(path)?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let flags = MsFlags::MS_BIND;
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        flags,
        None::<&str>,
    )
    .map_err(|error| {
        // The mount's failure is what counts; an empty file is swept with the rest.
        let _ = std::fs::remove_file(path);
        error.into()
    })
}

/// Takes a pin away; none is fine.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn unpin(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: the file is there and nothing is mounted on it.
        Ok(()) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a pinned namespace; None when the path is not (or no longer) one.
///
/// # Errors
/// As open(2).
pub fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let pinned =
        nix::sys::statfs::fstatfs(&file)?.filesystem_type() == nix::sys::statfs::NSFS_MAGIC;
    Ok(pinned.then(|| file.into()))
}

/// The protocols that are spoken over [`Netlink`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// A netlink socket of the namespace in which it was made, for one thread at a time.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket. A receive that takes longer than `patience` fails.
    ///
    /// # Errors
    /// When no descriptor is left or the kernel lacks the protocol.
    pub fn open(family: Family, patience: Duration) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // A whole ruleset is one datagram.
        setsockopt(&fd, sockopt::SndBuf, &(1 << 20))?;
        let _ = setsockopt(&fd, sockopt::SndBufForce, &(16 << 20));
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20));
        let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the option's value is an int that lives across the call, with its size. Words for a person are
            // all that is lost when the kernel does not know the option.
            let _ = unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    std::ptr::from_ref(&on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
        }
        Ok(Self(fd))
    }

    /// Sends one datagram to the kernel.
    ///
    /// # Errors
    /// EMSGSIZE when it is larger than the send buffer.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), datagram, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when none came in time.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(
        family,
        kind,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    if address.is_ipv6() {
        // [::] beside 0.0.0.0, not instead of it.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// Listens on one address, non-blocking; an IPv6 one leaves the IPv4 port to others.
///
/// # Errors
/// `AddrInUse` when somebody has the port, `AddrNotAvailable` when the host lacks the address.
pub fn listen_stream(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = bound(address, SockType::Stream)?;
    listen(&fd, Backlog::new(1024)?)?;
    Ok(fd.into())
}

/// Binds a datagram socket to one address, non-blocking; an IPv6 one leaves the IPv4 port to others.
///
/// # Errors
/// As [`listen_stream`].
pub fn bind_datagram(address: SocketAddr) -> io::Result<UdpSocket> {
    Ok(bound(address, SockType::Datagram)?.into())
}
