//! An overlay mount on kernels that cannot be given its layers one by one.
//!
//! Invariants: the layers are named to the kernel as `/proc/self/fd/N`, so neither the length nor the letters of their
//! paths matter; the mount has a place only between two calls, which is why [`mount`] is for a process or a thread
//! with a mount namespace of its own.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::fs;
use crate::mount::{Detached, copy_of};

/// What mount(2) takes of options: one page, with the NUL at the end.
const DATA_MAX: usize = 4095;

/// Mounts an overlay from its options (`lowerdir=a:b`, `upperdir=`, `workdir=`, others) by mount(2), and takes it from
/// its place at once. For Linux before 6.7, which has no `lowerdir+`.
///
/// # Errors
/// EINVAL when the options do not fit in a page (more than about 180 layers) or name no layer, else mount(2)'s.
pub fn mount(data: &[String]) -> io::Result<Detached> {
    let (text, held) = options(data)?;
    let (_, place) = held
        .iter()
        .find(|(key, _)| *key == "upperdir")
        .or_else(|| held.first())
        .ok_or_else(|| invalid("an overlay needs lowerdir".into()))?;
    let place = std::fs::read_link(path(place))?;
    nix::mount::mount(
        Some("overlay"),
        &place,
        Some("overlay"),
        MsFlags::empty(),
        Some(text.as_str()),
    )?;
    let copy = copy_of(&place, false);
    nix::mount::umount2(&place, MntFlags::MNT_DETACH)?;
    copy
}

/// The options with every directory by its descriptor, and the descriptors.
fn options(data: &[String]) -> io::Result<(String, Vec<(&str, OwnedFd)>)> {
    let (mut text, mut held) = (String::new(), Vec::new());
    for option in data {
        if !text.is_empty() {
            text.push(',');
        }
        let Some((key @ ("lowerdir" | "upperdir" | "workdir"), value)) = option.split_once('=')
        else {
            text.push_str(option);
            continue;
        };
        let dirs: Vec<&str> = if key == "lowerdir" {
            value.split(':').collect()
        } else {
            vec![value]
        };
        text.push_str(key);
        for (nth, dir) in dirs.into_iter().enumerate() {
            let fd = fs::open_path(Path::new(dir))?;
            text.push(if nth == 0 { '=' } else { ':' });
            let _ = write!(text, "{}", path(&fd).display());
            held.push((key, fd));
        }
    }
    if text.len() > DATA_MAX {
        return Err(invalid(format!(
            "an overlay of {} layers is too much for this kernel; Linux 6.7 and newer take it",
            held.iter().filter(|(key, _)| *key == "lowerdir").count()
        )));
    }
    Ok((text, held))
}

fn path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
