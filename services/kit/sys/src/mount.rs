//! Mounts by the new mount API: first a detached mount, then its attributes, then its place.
//!
//! Invariants: a place is a descriptor, never a path, so nothing that an image contains can move it; a detached mount
//! that is dropped leaves nothing behind. Needs Linux 5.12 (mount_setattr).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use crate::{c_string, check, overlay};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Attributes of one mount (mount_setattr(2), MOUNT_ATTR_*).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE; 0 = as it is.
    pub propagation: u64,
    /// The propagation is for the mounts below too.
    pub propagation_recursive: bool,
    /// The bits are for the mounts below too.
    pub recursive: bool,
}

/// What the options of a mount mean (mount(8)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount.
    pub attributes: Attributes,
    /// "bind" or "rbind" was among them; `Some(true)` for rbind.
    pub bind: Option<bool>,
    /// The rest goes to the file system: "size=64k", "gid=5".
    pub data: Vec<String>,
}

impl Options {
    /// Sorts options into what the mount and what the file system understands.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Options {
        let mut out = Options::default();
        let attributes = &mut out.attributes;
        for option in options {
            let (set, clear) = match option.as_ref() {
                "ro" => (libc::MOUNT_ATTR_RDONLY, 0),
                "rw" => (0, libc::MOUNT_ATTR_RDONLY),
                "rro" => {
                    attributes.recursive = true;
                    (libc::MOUNT_ATTR_RDONLY, 0)
                }
                "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
                "suid" => (0, libc::MOUNT_ATTR_NOSUID),
                "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
                "dev" => (0, libc::MOUNT_ATTR_NODEV),
                "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
                "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
                "noatime" => (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME),
                "relatime" => (libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
                "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
                "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
                "bind" => {
                    out.bind.get_or_insert(false);
                    continue;
                }
                "rbind" => {
                    out.bind = Some(true);
                    continue;
                }
                "defaults" => continue,
                propagation => {
                    let (kind, recursive) = match propagation {
                        "shared" => (libc::MS_SHARED, false),
                        "rshared" => (libc::MS_SHARED, true),
                        "slave" => (libc::MS_SLAVE, false),
                        "rslave" => (libc::MS_SLAVE, true),
                        "private" => (libc::MS_PRIVATE, false),
                        "rprivate" => (libc::MS_PRIVATE, true),
                        "unbindable" => (libc::MS_UNBINDABLE, false),
                        other => {
                            out.data.push(other.to_owned());
                            continue;
                        }
                    };
                    attributes.propagation = kind;
                    attributes.propagation_recursive = recursive;
                    continue;
                }
            };
            // The last word on a flag holds, as in mount(8).
            attributes.set = (attributes.set & !clear) | set;
            attributes.clear = (attributes.clear & !set) | clear;
        }
        out
    }
}

/// A mount without a place.
#[derive(Debug)]
pub struct Detached(OwnedFd);

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn fsconfig(
    fs: &OwnedFd,
    command: libc::c_uint,
    key: Option<&str>,
    value: Option<&OsStr>,
) -> io::Result<()> {
    let key = key.map(|key| c_string(OsStr::new(key))).transpose()?;
    let value = value.map(c_string).transpose()?;
    let pointer = |text: &Option<std::ffi::CString>| {
        text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
    };
    // SAFETY: both strings live across the call and are NUL-terminated or null as the command wants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            command,
            pointer(&key),
            pointer(&value),
            0,
        )
    };
    check(result).map(drop)
}

/// The kernel's own words about a failed mount, where it has any (fsopen(2), message retrieval).
fn explain(fs: &OwnedFd, error: io::Error) -> io::Error {
    let mut buffer = [0u8; 512];
    match nix::unistd::read(fs, &mut buffer) {
        Ok(length) if length > 2 => {
            let text = String::from_utf8_lossy(&buffer[2..length])
                .trim()
                .to_owned();
            io::Error::new(error.kind(), format!("{error} ({text})"))
        }
        _ => error,
    }
}

fn make(fs: &OwnedFd) -> io::Result<Detached> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, None, None).map_err(|error| explain(fs, error))?;
    // SAFETY: plain integers and an open descriptor.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
        .map(Detached)
}

fn open_fs(kind: &str) -> io::Result<OwnedFd> {
    let kind = c_string(OsStr::new(kind))?;
    // SAFETY: the string lives across the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Makes a file system: "proc", "tmpfs", "overlay", ...; `data` are its own options.
///
/// Before Linux 6.7 an overlay is in a place for a moment: call this in a mount namespace of one's own ([`crate::ns::aside`]).
///
/// # Errors
/// ENODEV for an unknown type, EPERM, EINVAL with the kernel's explanation.
pub fn new_fs(kind: &str, source: &str, data: &[String]) -> io::Result<Detached> {
    match configured(kind, source, data) {
        // An older kernel takes `lowerdir+` for an unknown option, some at once, some when the file system is made.
        Err(error) if kind == "overlay" && error.kind() == io::ErrorKind::InvalidInput => {
            overlay::mount(data).map_err(|other| match other.raw_os_error() {
                Some(_) => error,
                None => other,
            })
        }
        made => made,
    }
}

fn configured(kind: &str, source: &str, data: &[String]) -> io::Result<Detached> {
    let fs = open_fs(kind)?;
    if !source.is_empty() {
        fsconfig(
            &fs,
            FSCONFIG_SET_STRING,
            Some("source"),
            Some(OsStr::new(source)),
        )
        .map_err(|error| explain(&fs, error))?;
    }
    for option in data {
        let done = match option.split_once('=') {
            // One layer at a time, so that their number is not bounded by the length of one option.
            Some(("lowerdir", layers)) if kind == "overlay" => {
                layers.split(':').try_for_each(|layer| {
                    fsconfig(
                        &fs,
                        FSCONFIG_SET_STRING,
                        Some("lowerdir+"),
                        Some(OsStr::new(layer)),
                    )
                })
            }
            Some((key, value)) => {
                fsconfig(&fs, FSCONFIG_SET_STRING, Some(key), Some(OsStr::new(value)))
            }
            None => fsconfig(&fs, FSCONFIG_SET_FLAG, Some(option), None),
        };
        done.map_err(|error| {
            let error = explain(&fs, error);
            io::Error::new(error.kind(), format!("option {option:?}: {error}"))
        })?;
    }
    make(&fs)
}

/// A copy of what is mounted at a path, with the mounts below it when `recursive`.
///
/// # Errors
/// ENOENT when the path is missing.
pub fn copy_of(path: &Path, recursive: bool) -> io::Result<Detached> {
    let path = c_string(path.as_os_str())?;
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the string lives across the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
        .map(Detached)
}

/// A copy of what a descriptor refers to.
///
/// # Errors
/// As [`copy_of`].
pub fn copy_of_fd(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<Detached> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the empty string is NUL-terminated and static.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) })
        .map(Detached)
}

/// Changes the attributes of the mount that a descriptor is on.
///
/// # Errors
/// EINVAL for impossible combinations, EPERM for locked flags.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    if attributes == Attributes::default() {
        return Ok(());
    }
    let change = |set, clear, propagation, recursive: bool| {
        let attr = libc::mount_attr {
            attr_set: set,
            attr_clr: clear,
            propagation,
            userns_fd: 0,
        };
        let flags = libc::AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
        // SAFETY: attr lives across the call and its size is passed; the path is a static empty string.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                fd.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(&attr),
                size_of::<libc::mount_attr>(),
            )
        };
        check(result).map(drop)
    };
    change(attributes.set, attributes.clear, 0, attributes.recursive)?;
    if attributes.propagation == 0 {
        return Ok(());
    }
    change(
        0,
        0,
        attributes.propagation,
        attributes.propagation_recursive,
    )
}

impl Detached {
    /// The root of the mount.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.0.as_fd()
    }

    /// Puts the mount on top of what `place` refers to.
    ///
    /// # Errors
    /// ENOTDIR when a directory is put on a file or the other way round.
    pub fn attach(&self, place: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: descriptors are open and the paths are static empty strings.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                place.as_raw_fd(),
                c"".as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
            )
        };
        check(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted() {
        let options = Options::parse(&["nosuid", "noexec", "size=64k", "rbind", "ro", "rslave"]);
        let want = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY;
        assert_eq!(options.attributes.set, want);
        assert_eq!(options.attributes.propagation, libc::MS_SLAVE);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.data, ["size=64k"]);
        let last = Options::parse(&["ro", "rw"]).attributes;
        assert_eq!((last.set, last.clear), (0, libc::MOUNT_ATTR_RDONLY));
        let last = Options::parse(&["rw", "ro"]).attributes;
        assert_eq!((last.set, last.clear), (libc::MOUNT_ATTR_RDONLY, 0));
    }
}
