//! What trees take on disk.
//!
//! Invariants: a file with several names counts once; what goes away while it is being counted counts nothing.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use gantry_sys::tree::{self, Kind};

/// A tree's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of files' contents.
    pub bytes: u64,
    /// Entries.
    pub inodes: u64,
}

/// Counts what is below a directory. Blocks.
///
/// # Errors
/// When it cannot be read; a missing one is empty.
pub fn of(path: &Path) -> io::Result<Usage> {
    let root = match tree::open_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Usage::default()),
        other => other?,
    };
    let (mut usage, mut seen) = (Usage::default(), HashSet::new());
    count(root.as_fd(), &mut usage, &mut seen)?;
    Ok(usage)
}

fn count(dir: BorrowedFd<'_>, usage: &mut Usage, seen: &mut HashSet<(u64, u64)>) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    for name in tree::names(dir)? {
        let stat = match tree::stat_at(dir, &name) {
            Err(error) if gone(&error) => continue,
            other => other?,
        };
        if stat.kind != Kind::Dir && stat.links > 1 && !seen.insert((stat.device, stat.inode)) {
            continue;
        }
        usage.inodes += 1;
        if stat.kind == Kind::Dir {
            match tree::open_dir_at(dir, &name) {
                Err(error) if gone(&error) => {}
                opened => count(opened?.as_fd(), usage, seen)?,
            }
        } else {
            usage.bytes += stat.size;
        }
    }
    Ok(())
}
