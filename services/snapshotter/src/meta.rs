//! What directories look like that a layer has without having described them.
//!
//! Layers are unpacked one by one, so a directory that an archive implies has owner root and mode 0755 there, and overlayfs
//! would show that instead of what a lower layer says of it. Here the right answer is found for a stack of layers, and a small
//! directory tree with it is made, to be put on top of them.
//!
//! Invariant: a directory is looked for without following symlinks, and not below what hides it (whiteout, file, opaque).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gantry_sys::{fs, tree};

use crate::apply::OPAQUE_XATTR;

/// A layer of a stack.
#[derive(Debug)]
pub struct Layer {
    /// Its tree.
    pub dir: PathBuf,
    /// What its archive did not describe.
    pub implicit: BTreeSet<PathBuf>,
}

enum Found {
    /// The layer has the directory; true when lower layers show through.
    Here { merged: bool },
    /// Not here, but maybe below.
    Below,
    /// Hidden.
    Hidden,
}

fn is_opaque(dir: &OwnedFd) -> io::Result<bool> {
    Ok(
        tree::xattr_at(dir, OsStr::new(""), OsStr::new(OPAQUE_XATTR))?
            .is_some_and(|value| value == b"y"),
    )
}

fn find(layer: &Layer, path: &Path) -> io::Result<Found> {
    let mut dir = tree::open_dir(&layer.dir)?;
    let mut merged = true;
    for part in path.components() {
        dir = match tree::open_dir_at(&dir, part.as_os_str()) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if merged { Found::Below } else { Found::Hidden });
            }
            Err(_) => return Ok(Found::Hidden),
        };
        merged = merged && !is_opaque(&dir)?;
    }
    Ok(Found::Here { merged })
}

/// The layer (index, lowest is 0) whose word on a directory holds, and whether that is not the topmost one that has it.
fn source(stack: &[Layer], path: &Path) -> io::Result<Option<(usize, bool)>> {
    let mut topmost = None;
    for (at, layer) in stack.iter().enumerate().rev() {
        match find(layer, path)? {
            Found::Hidden => break,
            Found::Below => {}
            Found::Here { merged } => {
                let top = *topmost.get_or_insert(at);
                if !layer.implicit.contains(path) {
                    return Ok(Some((at, at != top)));
                }
                if !merged {
                    break;
                }
            }
        }
    }
    Ok(topmost.map(|top| (top, false)))
}

/// Copies owner, mode, times and attributes of a directory.
///
/// # Errors
/// As the system calls.
pub fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (tree::open_dir(from)?, tree::open_dir(to)?);
    let own = OsStr::new(".");
    let stat = tree::stat_at(&from, OsStr::new(""))?;
    fs::set_owner(&to, own, stat.uid, stat.gid)?;
    tree::chmod_at(&to, own, stat.mode)?;
    for (key, value) in tree::xattrs_at(&from, OsStr::new(""))? {
        if !key.to_string_lossy().starts_with("trusted.overlay.") {
            tree::set_xattr_at(&to, OsStr::new(""), &key, &value)?;
        }
    }
    tree::set_mtime_at(&to, own, stat.mtime, stat.mtime_nanos)
}

/// Makes the tree for a stack (lowest first) in `into`, an empty directory. Says whether there was anything to make.
///
/// # Errors
/// As the system calls.
pub fn build(stack: &[Layer], into: &Path) -> io::Result<bool> {
    let mut wanted: BTreeSet<&Path> = BTreeSet::new();
    let mut asked: BTreeSet<&Path> = BTreeSet::new();
    for path in stack.iter().flat_map(|layer| &layer.implicit) {
        if path.as_os_str().is_empty() || !asked.insert(path) {
            continue;
        }
        if let Some((_, true)) = source(stack, path)? {
            wanted.extend(path.ancestors());
        }
    }
    // In order, a parent comes before what is in it; times are set from the inside out.
    let mut made = Vec::new();
    for path in wanted {
        if let Some((at, _)) = source(stack, path)? {
            let to = into.join(path);
            if !path.as_os_str().is_empty() {
                std::fs::create_dir(&to)?;
            }
            made.push((stack[at].dir.join(path), to));
        }
    }
    for (from, to) in made.iter().rev() {
        copy_attributes(from, to)?;
    }
    Ok(!made.is_empty())
}

/// The tree whose root looks as the root of the stack does, if it has any layer.
///
/// # Errors
/// As the system calls.
pub fn root_source(stack: &[Layer]) -> io::Result<Option<&Path>> {
    Ok(source(stack, Path::new(""))?.map(|(at, _)| stack[at].dir.as_path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn layer(home: &Path, name: &str, dirs: &[(&str, u32)], implicit: &[&str]) -> Layer {
        let dir = home.join(name);
        std::fs::create_dir(&dir).unwrap();
        for (path, mode) in dirs {
            std::fs::create_dir_all(dir.join(path)).unwrap();
            std::fs::set_permissions(dir.join(path), std::fs::Permissions::from_mode(*mode))
                .unwrap();
        }
        Layer {
            dir,
            implicit: implicit.iter().map(PathBuf::from).collect(),
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_lower_word_on_an_implied_directory_holds() {
        let home = tempfile::tempdir().unwrap();
        let base = layer(home.path(), "a", &[("etc", 0o700), ("etc/x", 0o711)], &[""]);
        let top = layer(
            home.path(),
            "b",
            &[("etc/x", 0o755), ("own", 0o755)],
            &["", "etc", "etc/x", "own"],
        );
        let into = home.path().join("meta");
        std::fs::create_dir(&into).unwrap();
        let stack = [base, top];
        assert!(build(&stack, &into).unwrap());
        assert_eq!(
            (mode(&into.join("etc")), mode(&into.join("etc/x"))),
            (0o700, 0o711)
        );
        assert!(!into.join("own").exists());
        assert!(root_source(&stack).unwrap().is_some());
    }

    #[test]
    fn what_is_hidden_has_no_word() {
        let home = tempfile::tempdir().unwrap();
        let base = layer(home.path(), "a", &[("etc", 0o700)], &[]);
        let middle = layer(home.path(), "b", &[], &[""]);
        std::fs::write(middle.dir.join("etc"), "a file").unwrap();
        let top = layer(home.path(), "c", &[("etc", 0o755)], &["", "etc"]);
        let into = home.path().join("meta");
        std::fs::create_dir(&into).unwrap();
        assert!(!build(&[base, middle, top], &into).unwrap());
    }
}
