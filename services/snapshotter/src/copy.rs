//! Copying a tree with everything that the file system knows of it.
//!
//! Invariants: symlinks are copied, never followed; hard links among the copied stay hard links; data moves in the kernel
//! where it can (copy_file_range, reflinks).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use gantry_sys::fs;
use gantry_sys::tree::{self, Kind, Stat};

/// Where the first name of a file with several is.
type Seen = HashMap<(u64, u64), (OwnedFd, OsString)>;

/// Copies what is in `from`, and the attributes of `from` itself, into the empty directory `to`.
///
/// # Errors
/// As the system calls.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    inner(from, to, &mut Seen::new())
}

fn inner(from: BorrowedFd<'_>, to: BorrowedFd<'_>, seen: &mut Seen) -> io::Result<()> {
    for name in tree::names(from)? {
        let stat = tree::stat_at(from, &name)?;
        let identity = (stat.device, stat.inode);
        if stat.links > 1 && stat.kind != Kind::Dir {
            if let Some((dir, first)) = seen.get(&identity) {
                tree::link_at(dir, first, to, &name)?;
                continue;
            }
            seen.insert(identity, (to.try_clone_to_owned()?, name.clone()));
        }
        match stat.kind {
            Kind::Dir => {
                tree::mkdir_at(to, &name, 0o700)?;
                let (below, target) = (
                    tree::open_dir_at(from, &name)?,
                    tree::open_dir_at(to, &name)?,
                );
                // Attributes of a directory are set by the call for it, after its content.
                inner(below.as_fd(), target.as_fd(), seen)?;
                continue;
            }
            Kind::File => {
                let mut source = tree::open_file_at(from, &name)?;
                let mut target = tree::create_at(to, &name)?;
                io::copy(&mut source, &mut target)?;
            }
            Kind::Symlink => {
                let link = tree::read_link_at(from, &name)?;
                tree::symlink_at(&link, to, &name)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                tree::mknod_at(to, &name, stat.kind, (stat.major, stat.minor))?;
            }
            // A socket means nothing without its program.
            Kind::Socket => continue,
        }
        attributes(from, to, &name, &stat)?;
    }
    let own = OsStr::new("");
    attributes(from, to, own, &tree::stat_at(from, own)?)
}

fn attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
) -> io::Result<()> {
    let own = if name.is_empty() {
        OsStr::new(".")
    } else {
        name
    };
    fs::set_owner(to, own, stat.uid, stat.gid)?;
    if stat.kind != Kind::Symlink {
        tree::chmod_at(to, own, stat.mode)?;
    }
    for (key, value) in tree::xattrs_at(from, name)? {
        if !key.to_string_lossy().starts_with("trusted.overlay.") {
            match tree::set_xattr_at(to, name, &key, &value) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => other?,
            }
        }
    }
    tree::set_mtime_at(to, own, stat.mtime, stat.mtime_nanos)
}
