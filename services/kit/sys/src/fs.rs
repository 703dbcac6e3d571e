//! Files beneath a root: opening and making them so that no symlink leads outside (openat2(2)).
//!
//! Invariants: RESOLVE_IN_ROOT takes the given directory as `/` for every component, symlink and `..`;
//! magic links are refused.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};

/// What to make when a path is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory, 0755.
    Dir,
    /// An empty file, 0644.
    File,
}

fn open_how(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // An empty path is the root itself.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    // EAGAIN: a rename happened while `..` was resolved; the kernel asks to try again (openat2(2)).
    for _ in 0..64 {
        match openat2(root, path, how) {
            Err(nix::errno::Errno::EAGAIN) => {}
            other => return Ok(other?),
        }
    }
    Err(nix::errno::Errno::EAGAIN.into())
}

/// A handle on a directory or file, for nothing but naming it (O_PATH).
///
/// # Errors
/// As open(2).
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// The same beneath a root.
///
/// # Errors
/// ENOENT when it is missing, ELOOP for too many symlinks.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_how(root, path, OFlag::O_PATH, Mode::empty())
}

/// Opens a file beneath a root for reading.
///
/// # Errors
/// As [`open_in_root`].
pub fn read_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<std::fs::File> {
    Ok(open_how(
        root,
        path,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
        Mode::empty(),
    )?
    .into())
}

/// A handle on a path beneath a root, made with its parents where missing.
///
/// # Errors
/// ENOTDIR when a parent is a file, EROFS on a read-only file system.
pub fn ensure_in_root(root: BorrowedFd<'_>, path: &Path, make: Make) -> io::Result<OwnedFd> {
    match open_in_root(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let Some((last, parents)) = names.split_last() else {
        return open_in_root(root, Path::new("."));
    };
    let mut at = std::path::PathBuf::new();
    let mut parent = open_in_root(root, Path::new("."))?;
    for name in parents {
        at.push(name);
        parent = step(root, &parent, name, &at, Make::Dir)?;
    }
    at.push(last);
    step(root, &parent, last, &at, make)
}

fn step(
    root: BorrowedFd<'_>,
    parent: &OwnedFd,
    name: &OsStr,
    whole: &Path,
    make: Make,
) -> io::Result<OwnedFd> {
    match open_in_root(root, whole) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let made = match make {
        Make::Dir => mkdirat(parent, name, Mode::from_bits_truncate(0o755)),
        Make::File => mknodat(
            parent,
            name,
            SFlag::S_IFREG,
            Mode::from_bits_truncate(0o644),
            0,
        ),
    };
    match made {
        Ok(()) => open_in_root(root, whole),
        // A dangling symlink: what it points to cannot be made safely.
        Err(nix::errno::Errno::EEXIST) => open_in_root(root, whole),
        Err(error) => Err(error.into()),
    }
}

/// Makes a device node in a directory; one that is there already is replaced.
///
/// # Errors
/// EPERM inside a user namespace.
pub fn make_device(
    dir: impl AsFd,
    name: &OsStr,
    block: bool,
    major: u32,
    minor: u32,
    mode: u32,
) -> io::Result<()> {
    let kind = if block {
        SFlag::S_IFBLK
    } else {
        SFlag::S_IFCHR
    };
    let device = nix::sys::stat::makedev(u64::from(major), u64::from(minor));
    let make = || {
        mknodat(
            dir.as_fd(),
            name,
            kind,
            Mode::from_bits_truncate(mode),
            device,
        )
    };
    match make() {
        Err(nix::errno::Errno::EEXIST) => {
            nix::unistd::unlinkat(dir.as_fd(), name, nix::unistd::UnlinkatFlags::NoRemoveDir)?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

/// Sets owner and group of a name in a directory, without following a symlink.
///
/// # Errors
/// As fchownat(2).
pub fn set_owner(dir: impl AsFd, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (
        nix::unistd::Uid::from_raw(uid),
        nix::unistd::Gid::from_raw(gid),
    );
    Ok(nix::unistd::fchownat(
        dir.as_fd(),
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?)
}

/// Makes a symlink in a directory unless the name is taken.
///
/// # Errors
/// As symlinkat(2).
pub fn ensure_symlink(target: &str, dir: impl AsFd, name: &str) -> io::Result<()> {
    match nix::unistd::symlinkat(target, dir.as_fd(), name) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file so that after a crash either the old or the new content is there: temporary file, fsync, rename.
///
/// # Errors
/// As open(2), write(2), fsync(2), rename(2).
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_do_not_lead_out_of_the_root() {
        let dir = std::env::temp_dir().join(format!("gantry-sys-fs-{}", std::process::id()));
        let root = dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(dir.join("secret"), "no").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("up")).unwrap();
        std::os::unix::fs::symlink(&dir, root.join("absolute")).unwrap();
        let handle = open_path(&root).unwrap();
        assert!(open_in_root(handle.as_fd(), Path::new("up")).is_err());
        assert!(open_in_root(handle.as_fd(), Path::new("absolute/secret")).is_err());
        assert!(open_in_root(handle.as_fd(), Path::new("../secret")).is_err());
        ensure_in_root(handle.as_fd(), Path::new("/a/b/../c"), Make::File).unwrap();
        assert!(root.join("a/b/c").is_file());
        assert!(ensure_in_root(handle.as_fd(), Path::new("/absolute/new"), Make::File).is_err());
        assert!(!dir.join("new").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
