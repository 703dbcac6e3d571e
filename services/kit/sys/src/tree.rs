//! Names in an open directory: making, changing and asking about them without following a symlink.
//!
//! Invariant: a name is one component, so nothing here can leave the directory; the caller found the directory by
//! [`crate::fs::open_in_root`] where content is not trusted.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;

use crate::{c_string, check};

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What the file system knows of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// Device number of a device.
    pub major: u32,
    /// Device number of a device.
    pub minor: u32,
    /// Time of the last change of the content: seconds.
    pub mtime: i64,
    /// Nanoseconds of that.
    pub mtime_nanos: i64,
    /// Hard links.
    pub links: u64,
    /// File number, with `device` its identity.
    pub inode: u64,
    /// File system.
    pub device: u64,
}

impl Stat {
    /// Whether it is overlayfs's mark of a removed name: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char && self.major == 0 && self.minor == 0
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

/// Opens a directory by a path that is trusted.
///
/// # Errors
/// As open(2).
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a directory in a directory.
///
/// # Errors
/// ENOTDIR for anything else, also for a symlink to a directory.
pub fn open_dir_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir.as_fd(), name, flags, Mode::empty())?)
}

/// Opens a regular file in a directory for reading.
///
/// # Errors
/// ELOOP for a symlink.
pub fn open_file_at(dir: impl AsFd, name: &OsStr) -> io::Result<std::fs::File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(openat(dir.as_fd(), name, flags, Mode::empty())?.into())
}

/// Makes a file that must not be there yet, for writing.
///
/// # Errors
/// `AlreadyExists`.
pub fn create_at(dir: impl AsFd, name: &OsStr) -> io::Result<std::fs::File> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir.as_fd(), name, flags, mode(0o600))?.into())
}

/// Makes a directory.
///
/// # Errors
/// `AlreadyExists`.
pub fn mkdir_at(dir: impl AsFd, name: &OsStr, bits: u32) -> io::Result<()> {
    Ok(mkdirat(dir.as_fd(), name, mode(bits))?)
}

/// Makes a symlink.
///
/// # Errors
/// `AlreadyExists`.
pub fn symlink_at(target: &OsStr, dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::symlinkat(target, dir.as_fd(), name)?)
}

/// Makes a hard link to a name, itself when it is a symlink.
///
/// # Errors
/// `AlreadyExists`, EPERM for a directory.
pub fn link_at(from: impl AsFd, from_name: &OsStr, dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::linkat(
        from.as_fd(),
        from_name,
        dir.as_fd(),
        name,
        AtFlags::empty(),
    )?)
}

/// Makes a device (`Char`, `Block`) or a `Fifo`.
///
/// # Errors
/// `AlreadyExists`, EINVAL for another kind.
pub fn mknod_at(dir: impl AsFd, name: &OsStr, kind: Kind, device: (u32, u32)) -> io::Result<()> {
    let kind = match kind {
        Kind::Char => SFlag::S_IFCHR,
        Kind::Block => SFlag::S_IFBLK,
        Kind::Fifo => SFlag::S_IFIFO,
        _ => return Err(nix::errno::Errno::EINVAL.into()),
    };
    let number = nix::sys::stat::makedev(u64::from(device.0), u64::from(device.1));
    Ok(mknodat(dir.as_fd(), name, kind, mode(0o600), number)?)
}

/// What a name is; a symlink itself. The empty name means the directory.
///
/// # Errors
/// `NotFound`.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_EMPTY_PATH;
    let stat = fstatat(dir.as_fd(), name, flags)?;
    let kind = match SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) {
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Symlink,
        SFlag::S_IFCHR => Kind::Char,
        SFlag::S_IFBLK => Kind::Block,
        SFlag::S_IFIFO => Kind::Fifo,
        SFlag::S_IFSOCK => Kind::Socket,
        _ => Kind::File,
    };
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Stat {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        major: small(nix::sys::stat::major(stat.st_rdev)),
        minor: small(nix::sys::stat::minor(stat.st_rdev)),
        mtime: stat.st_mtime,
        mtime_nanos: stat.st_mtime_nsec,
        links: stat.st_nlink,
        inode: stat.st_ino,
        device: stat.st_dev,
    })
}

/// Sets the permission bits of anything but a symlink.
///
/// # Errors
/// As fchmodat(2).
pub fn chmod_at(dir: impl AsFd, name: &OsStr, bits: u32) -> io::Result<()> {
    Ok(nix::sys::stat::fchmodat(
        dir.as_fd(),
        name,
        mode(bits),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )?)
}

/// Sets the time of the last change (and of the last access) of a name itself.
///
/// # Errors
/// As utimensat(2).
pub fn set_mtime_at(
    dir: impl AsFd,
    name: &OsStr,
    seconds: i64,
    nanoseconds: i64,
) -> io::Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds);
    Ok(utimensat(
        dir.as_fd(),
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

/// Where a symlink points.
///
/// # Errors
/// EINVAL for anything else.
pub fn read_link_at(dir: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    Ok(nix::fcntl::readlinkat(dir.as_fd(), name)?)
}

/// Removes a name that is no directory.
///
/// # Errors
/// `NotFound`, EISDIR.
pub fn unlink_at(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(
        dir.as_fd(),
        name,
        nix::unistd::UnlinkatFlags::NoRemoveDir,
    )?)
}

/// The names in a directory, without `.` and `..`, in no order.
///
/// # Errors
/// As readdir(3).
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut dir = nix::dir::Dir::openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Removes a name and, when it is a directory, everything below it. What is gone already is a success.
///
/// # Errors
/// As unlinkat(2).
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlink_at(dir, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {}
        other => return other,
    }
    // The library removes without following symlinks; the directory's own path is the kernel's.
    let path = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    std::fs::remove_dir_all(path)
}

/// The path by which the xattr calls, which know no directory descriptors, reach a name.
fn xattr_path(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    // The directory itself is its own ".".
    path.extend_from_slice(if name.is_empty() {
        b"."
    } else {
        name.as_bytes()
    });
    c_string(OsStr::from_bytes(&path))
}

/// Sets an extended attribute of a name itself; the empty name means the directory.
///
/// # Errors
/// ENOTSUP where the file system has none, EPERM for user attributes of what is no file or directory.
pub fn set_xattr_at(dir: impl AsFd, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
    let (path, key) = (xattr_path(dir.as_fd(), name)?, c_string(key)?);
    // SAFETY: both strings and the value live across the call; the length is the value's.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            key.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    check(result.into()).map(drop)
}

/// One extended attribute, if it is there.
///
/// # Errors
/// As lgetxattr(2), except that a missing attribute or missing support is `None`.
pub fn xattr_at(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let (path, key) = (xattr_path(dir.as_fd(), name)?, c_string(key)?);
    let mut value = vec![0u8; 65536];
    // SAFETY: both strings live across the call, which writes at most the given length into the buffer.
    let result = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            key.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match check(result as libc::c_long) {
        Ok(length) => {
            value.truncate(usize::try_from(length).unwrap_or(0));
            Ok(Some(value))
        }
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENODATA | libc::ENOTSUP | libc::EPERM)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Every extended attribute of a name itself, in order of their names.
///
/// # Errors
/// As llistxattr(2).
pub fn xattrs_at(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let path = xattr_path(dir.as_fd(), name)?;
    let mut list = vec![0u8; 65536];
    // SAFETY: the path lives across the call, which writes at most the given length into the buffer.
    let result = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let length = match check(result as libc::c_long) {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => 0,
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for key in list[..length].split(|byte| *byte == 0) {
        let key = OsStr::from_bytes(key);
        if key.is_empty() {
            continue;
        }
        if let Some(value) = xattr_at(dir.as_fd(), name, key)? {
            found.push((key.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// Waits until everything written to the file system of `dir` is on disk.
///
/// # Errors
/// What the disk failed with.
pub fn sync_file_system(dir: impl AsFd) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::syncfs(dir.as_fd().as_raw_fd()) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_and_never_followed() {
        let home = std::env::temp_dir().join(format!("gantry-sys-tree-{}", std::process::id()));
        std::fs::create_dir_all(home.join("in")).unwrap();
        std::fs::write(home.join("victim"), "x").unwrap();
        let dir = open_dir(&home.join("in")).unwrap();
        let name = OsStr::new;
        symlink_at(name("../victim"), &dir, name("link")).unwrap();
        assert_eq!(stat_at(&dir, name("link")).unwrap().kind, Kind::Symlink);
        assert!(open_file_at(&dir, name("link")).is_err());
        assert!(create_at(&dir, name("link")).is_err());
        set_mtime_at(&dir, name("link"), 5, 7).unwrap();
        let stat = stat_at(&dir, name("link")).unwrap();
        assert_eq!((stat.mtime, stat.mtime_nanos), (5, 7));
        mkdir_at(&dir, name("sub"), 0o755).unwrap();
        std::fs::write(home.join("in/sub/file"), "y").unwrap();
        set_xattr_at(&dir, name("sub"), name("user.k"), b"a\nb").unwrap();
        assert_eq!(
            xattrs_at(&dir, name("sub")).unwrap(),
            [(OsString::from("user.k"), b"a\nb".to_vec())]
        );
        mknod_at(&dir, name("gone"), Kind::Char, (0, 0)).unwrap();
        assert!(stat_at(&dir, name("gone")).unwrap().is_whiteout());
        for each in names(dir.as_fd()).unwrap() {
            remove_at(dir.as_fd(), &each).unwrap();
        }
        assert_eq!(names(dir.as_fd()).unwrap().len(), 0);
        assert_eq!(std::fs::read_to_string(home.join("victim")).unwrap(), "x");
        std::fs::remove_dir_all(&home).unwrap();
    }
}
