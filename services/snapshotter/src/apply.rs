//! A layer's archive becomes a directory tree in overlayfs's own form.
//!
//! Invariants: every parent is found by openat2 inside the layer's directory and the last component is never followed, so
//! nothing is written elsewhere; a whiteout becomes a character device 0:0, an opaque directory gets
//! `trusted.overlay.opaque`; attributes that overlayfs would obey are not taken from an archive. A layer is unpacked
//! without the ones below it, so directories that its archive does not list are remembered as implicit: what they look like
//! is decided when a snapshot puts layers on top of each other. Source: OCI image specification, layer.md.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use gantry_sys::fs::{self, Make};
use gantry_sys::tree;

use crate::tar::{Archive, Entry, Kind, TarError};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of aufs's own book-keeping.
const AUFS: &[u8] = b".wh..wh.";
/// Marks a directory that hides what is below it.
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The archive is damaged.
    #[error("the archive is damaged: {0}")]
    Archive(#[from] TarError),
    /// An entry cannot be made.
    #[error("unpack {path:?}: {source}")]
    Entry {
        /// Its path in the archive.
        path: OsString,
        /// Why.
        source: io::Error,
    },
    /// An entry asks for something that is refused.
    #[error("unpack {path:?}: {reason}")]
    Refused {
        /// Its path in the archive.
        path: OsString,
        /// Why.
        reason: String,
    },
}

/// What came out.
#[derive(Debug, Default)]
pub struct Applied {
    /// Names made.
    pub inodes: u64,
    /// Bytes of files.
    pub size: u64,
    /// Directories that exist only because something is in them; "" is the root.
    pub implicit: BTreeSet<PathBuf>,
}

/// Unpacks an archive into an empty directory.
///
/// # Errors
/// [`ApplyError`]; what was made until then stays, for the caller to remove.
pub fn apply<R: Read>(source: R, root: OwnedFd) -> Result<(Applied, R), ApplyError> {
    let mut archive = Archive::new(source);
    let mut tree = Tree {
        root,
        parent: None,
        explicit: BTreeSet::new(),
        opaque: BTreeSet::new(),
        times: Vec::new(),
        out: Applied::default(),
        buffer: vec![0u8; 128 << 10],
    };
    tree.out.implicit.insert(PathBuf::new());
    while let Some(entry) = archive.next_entry()? {
        tree.entry(&entry, &mut archive)?;
    }
    tree.finish()?;
    Ok((tree.out, archive.into_source()))
}

struct Tree {
    root: OwnedFd,
    /// The directory that the last entry was in: most entries are in the same one.
    parent: Option<(PathBuf, OwnedFd)>,
    /// What the archive listed, whiteouts aside.
    explicit: BTreeSet<PathBuf>,
    /// Names that were whited out and listed: a directory of that name starts empty.
    opaque: BTreeSet<PathBuf>,
    /// Directories' times, set last, since what is made inside changes them.
    times: Vec<(PathBuf, (i64, u32))>,
    out: Applied,
    buffer: Vec<u8>,
}

/// The components of a path inside the layer. `..` stays inside, as it does at `/`.
fn inside(path: &OsStr) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.as_bytes().split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                clean.pop();
            }
            name => clean.push(OsStr::from_bytes(name)),
        }
    }
    clean
}

fn refused(path: &OsStr, reason: impl Into<String>) -> ApplyError {
    ApplyError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

impl Tree {
    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), ApplyError> {
        if entry.path.as_bytes().contains(&0) || entry.link.as_bytes().contains(&0) {
            return Err(refused(&entry.path, "a NUL byte in a path"));
        }
        let path = inside(&entry.path);
        let fail = |source| ApplyError::Entry {
            path: entry.path.clone(),
            source,
        };
        let Some(name) = path.file_name() else {
            if entry.kind != Kind::Dir {
                return Err(refused(
                    &entry.path,
                    "the root of a layer must be a directory",
                ));
            }
            self.out.implicit.remove(Path::new(""));
            let root = self.root.try_clone().map_err(fail)?;
            self.attributes(entry, &root, OsStr::new(""))
                .map_err(fail)?;
            self.times.push((path, entry.mtime));
            return Ok(());
        };
        let parent = self
            .open_parent(path.parent().unwrap_or(Path::new("")))
            .map_err(fail)?;
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return self
                .make_opaque(&parent)
                .map_err(fail)
                .map(|()| self.parent = Some(parent));
        }
        if bytes.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refused(&entry.path, "a whiteout that names nothing"));
            }
            self.whiteout(&parent, OsStr::from_bytes(hidden))
                .map_err(fail)?;
            self.parent = Some(parent);
            return Ok(());
        }
        self.make(entry, archive, &parent, name)?;
        let path = parent.0.join(name);
        self.out.inodes += 1;
        self.out.implicit.remove(&path);
        self.explicit.insert(path);
        self.parent = Some(parent);
        Ok(())
    }

    /// The directory that a path is in; made where missing. Its path is the one after symlinks where it was made here.
    fn open_parent(&mut self, path: &Path) -> io::Result<(PathBuf, OwnedFd)> {
        if let Some((known, fd)) = self.parent.take()
            && known == path
        {
            return Ok((known, fd));
        }
        if path.as_os_str().is_empty() {
            return Ok((PathBuf::new(), self.root.try_clone()?));
        }
        // What is missing is made one by one, to know which directories no entry has described.
        let mut at = PathBuf::new();
        for part in path.components() {
            at.push(part);
            let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            match fs::open_in_root(self.root.as_fd(), &at) {
                Err(error) if missing(&error) => {
                    fs::ensure_in_root(self.root.as_fd(), &at, Make::Dir)?;
                    self.out.implicit.insert(at.clone());
                    self.out.inodes += 1;
                }
                other => drop(other?),
            }
        }
        let handle = fs::open_in_root(self.root.as_fd(), path)?;
        let fd = match tree::open_dir_at(&handle, OsStr::new(".")) {
            // A file or whiteout is where a directory must be: the later entry wins.
            Err(error)
                if error.kind() == io::ErrorKind::NotADirectory && self.clear_way(path)? =>
            {
                return self.open_parent(path);
            }
            other => other?,
        };
        Ok((path.to_owned(), fd))
    }

    /// Removes a whiteout of this layer that stands where a directory must be. Says whether there was one.
    fn clear_way(&mut self, path: &Path) -> io::Result<bool> {
        let Some(name) = path.file_name() else {
            return Ok(false);
        };
        let above = fs::open_in_root(self.root.as_fd(), path.parent().unwrap_or(Path::new("")))?;
        if !tree::stat_at(&above, name)?.is_whiteout() {
            return Ok(false);
        }
        tree::unlink_at(&above, name)?;
        tree::mkdir_at(&above, name, 0o755)?;
        tree::set_xattr_at(
            tree::open_dir_at(&above, name)?,
            OsStr::new(""),
            OsStr::new(OPAQUE_XATTR),
            b"y",
        )?;
        self.out.implicit.insert(path.to_owned());
        Ok(true)
    }

    fn make_opaque(&mut self, (path, dir): &(PathBuf, OwnedFd)) -> io::Result<()> {
        self.opaque.insert(path.clone());
        tree::set_xattr_at(dir, OsStr::new(""), OsStr::new(OPAQUE_XATTR), b"y")
    }

    /// Hides a name of the layers below; what this layer has under that name stays.
    fn whiteout(&mut self, (path, dir): &(PathBuf, OwnedFd), name: &OsStr) -> io::Result<()> {
        let whole = path.join(name);
        match tree::stat_at(dir, name) {
            Ok(stat) if stat.kind == tree::Kind::Dir => {
                let below = tree::open_dir_at(dir, name)?;
                self.opaque.insert(whole);
                tree::set_xattr_at(&below, OsStr::new(""), OsStr::new(OPAQUE_XATTR), b"y")
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.opaque.insert(whole);
                self.out.inodes += 1;
                tree::mknod_at(dir, name, tree::Kind::Char, (0, 0))
            }
            Err(error) => Err(error),
        }
    }

    fn make<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        (parent, dir): &(PathBuf, OwnedFd),
        name: &OsStr,
    ) -> Result<(), ApplyError> {
        let fail = |source| ApplyError::Entry {
            path: entry.path.clone(),
            source,
        };
        let path = parent.join(name);
        // A hard link to a name that this very entry replaces must keep its content.
        let source = if entry.kind == Kind::Link {
            Some(self.link_source(entry)?)
        } else {
            None
        };
        if let Some((from, from_name)) = &source
            && same_name(from, from_name, dir, name).map_err(fail)?
        {
            return Ok(());
        }
        match tree::stat_at(dir, name) {
            Ok(stat) if stat.kind == tree::Kind::Dir && entry.kind == Kind::Dir => {}
            Ok(_) => tree::remove_at(dir.as_fd(), name).map_err(fail)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        if let Some((from, from_name)) = source {
            // Attributes belong to the file that the link shares.
            return tree::link_at(&from, &from_name, dir, name).map_err(fail);
        }
        match entry.kind {
            Kind::Dir => {
                match tree::mkdir_at(dir, name, 0o700) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    other => other.map_err(fail)?,
                }
                if self.opaque.contains(&path) {
                    let made = tree::open_dir_at(dir, name).map_err(fail)?;
                    tree::set_xattr_at(&made, OsStr::new(""), OsStr::new(OPAQUE_XATTR), b"y")
                        .map_err(fail)?;
                }
                self.times.push((path, entry.mtime));
            }
            Kind::File => {
                let file = tree::create_at(dir, name).map_err(fail)?;
                self.content(file, entry, archive)?;
            }
            Kind::Symlink => tree::symlink_at(&entry.link, dir, name).map_err(fail)?,
            Kind::Link => {}
            Kind::Char => {
                tree::mknod_at(dir, name, tree::Kind::Char, entry.device).map_err(fail)?;
            }
            Kind::Block => {
                tree::mknod_at(dir, name, tree::Kind::Block, entry.device).map_err(fail)?;
            }
            Kind::Fifo => tree::mknod_at(dir, name, tree::Kind::Fifo, (0, 0)).map_err(fail)?,
        }
        self.attributes(entry, dir, name).map_err(fail)?;
        if entry.kind != Kind::Dir {
            tree::set_mtime_at(dir, name, entry.mtime.0, i64::from(entry.mtime.1)).map_err(fail)?;
        }
        Ok(())
    }

    fn link_source(&mut self, entry: &Entry) -> Result<(OwnedFd, OsString), ApplyError> {
        let target = inside(&entry.link);
        let missing = || {
            refused(
                &entry.path,
                format!(
                    "a hard link to {:?}, which this layer does not have before it",
                    entry.link
                ),
            )
        };
        let name = target.file_name().ok_or_else(missing)?.to_owned();
        let dir = fs::open_in_root(self.root.as_fd(), target.parent().unwrap_or(Path::new("")))
            .map_err(|_| missing())?;
        match tree::stat_at(&dir, &name) {
            Ok(stat) if stat.kind != tree::Kind::Dir && !stat.is_whiteout() => Ok((dir, name)),
            _ => Err(missing()),
        }
    }

    fn content<R: Read>(
        &mut self,
        mut file: std::fs::File,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), ApplyError> {
        let fail = |source| ApplyError::Entry {
            path: entry.path.clone(),
            source,
        };
        let whole = [(0, entry.size)];
        for (offset, length) in entry.sparse.as_deref().unwrap_or(&whole) {
            if entry.sparse.is_some() {
                file.seek(SeekFrom::Start(*offset)).map_err(fail)?;
            }
            let mut left = *length;
            while left > 0 {
                let most = usize::try_from(left.min(self.buffer.len() as u64))
                    .unwrap_or(self.buffer.len());
                let read = archive.read(&mut self.buffer[..most])?;
                if read == 0 {
                    return Err(TarError::Truncated("a file").into());
                }
                file.write_all(&self.buffer[..read]).map_err(fail)?;
                left -= read as u64;
                self.out.size += read as u64;
            }
        }
        if entry.sparse.is_some() {
            file.set_len(entry.size).map_err(fail)?;
        }
        Ok(())
    }

    /// Owner before mode, since a change of owner clears setuid; attributes last, since it clears capabilities too.
    fn attributes(&self, entry: &Entry, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let own = if name.is_empty() {
            OsStr::new(".")
        } else {
            name
        };
        fs::set_owner(dir, own, entry.uid, entry.gid)?;
        if entry.kind != Kind::Symlink {
            tree::chmod_at(dir, own, entry.mode)?;
        }
        for (key, value) in &entry.xattrs {
            let key_bytes = key.as_bytes();
            if key_bytes.starts_with(b"trusted.overlay.") || key_bytes.starts_with(b"user.overlay.")
            {
                continue;
            }
            match tree::set_xattr_at(dir, name, key, value) {
                // Labels of a security module that this kernel does not run mean nothing here.
                Err(error)
                    if error.kind() == io::ErrorKind::Unsupported
                        || (key_bytes.starts_with(b"security.")
                            && key_bytes != b"security.capability") => {}
                // User attributes of links and devices are not possible on Linux.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied
                        && key_bytes.starts_with(b"user.") => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ApplyError> {
        for (path, (seconds, nanos)) in self.times.drain(..).rev() {
            let fail = |source| ApplyError::Entry {
                path: path.clone().into_os_string(),
                source,
            };
            let name = path.file_name().unwrap_or(OsStr::new("."));
            let parent = path.parent().unwrap_or(Path::new(""));
            let dir = match fs::open_in_root(self.root.as_fd(), parent) {
                // Replaced by a later entry.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(fail)?,
            };
            match tree::stat_at(&dir, name) {
                Ok(stat) if stat.kind == tree::Kind::Dir => {
                    tree::set_mtime_at(&dir, name, seconds, i64::from(nanos)).map_err(fail)?;
                }
                _ => continue,
            }
        }
        self.out
            .implicit
            .retain(|path| !self.explicit.contains(path));
        Ok(())
    }
}

fn same_name(from: &OwnedFd, from_name: &OsStr, dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let source = tree::stat_at(from, from_name)?;
    match tree::stat_at(dir, name) {
        Ok(stat) => Ok((stat.inode, stat.device) == (source.inode, source.device)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of an implicit directory's path, for the record.
pub fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// And back.
pub fn path_from(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
