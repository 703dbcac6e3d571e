//! Where things are on disk, and the two ways in and out: `new/` and `trash/`.
//!
//! Invariant: a thing appears under its name by a rename, whole, and disappears from it by a rename.

use std::path::{Path, PathBuf};

use gantry_types::Digest;

use crate::error::Error;

/// The folder of the service.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Makes the folders, and empties what was half made or half removed.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let files = Self {
            root: root.to_owned(),
        };
        for name in ["layers", "snapshots", "volumes", "empty", "new", "trash"] {
            let path = root.join(name);
            std::fs::create_dir_all(&path).map_err(Error::io("make", &path))?;
        }
        for half in files.list("new")? {
            files.discard(&files.root.join("new").join(half))?;
        }
        Ok(files)
    }

    /// An unpacked layer.
    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}-{}", diff_id.algorithm().as_str(), diff_id.hex());
        self.root.join("layers").join(name)
    }

    /// A snapshot's folder.
    pub fn snapshot(&self, key: &str) -> PathBuf {
        self.root.join("snapshots").join(key)
    }

    /// A volume's folder; its tree is `data` in there.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    /// A directory that stays empty.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// A fresh directory to make something in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn fresh(&self) -> Result<PathBuf, Error> {
        let path = self
            .root
            .join("new")
            .join(format!("{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).map_err(Error::io("make", &path))?;
        Ok(path)
    }

    /// Gives what was made its name.
    ///
    /// # Errors
    /// When the rename fails.
    pub fn publish(&self, fresh: &Path, name: &Path) -> Result<(), Error> {
        std::fs::rename(fresh, name).map_err(Error::io("publish", name))
    }

    /// Moves something into the trash. What is gone already is a success.
    ///
    /// # Errors
    /// When the rename fails.
    pub fn discard(&self, path: &Path) -> Result<(), Error> {
        let to = self
            .root
            .join("trash")
            .join(format!("{:016x}", rand::random::<u64>()));
        match std::fs::rename(path, to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Error::io("remove", path)),
        }
    }

    /// Removes what is in the trash. Blocks.
    ///
    /// # Errors
    /// The first thing that cannot be removed; the rest is.
    pub fn empty_trash(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for name in self.list("trash")? {
            let path = self.root.join("trash").join(name);
            if let Err(source) = std::fs::remove_dir_all(&path) {
                outcome = Err(Error::io("remove", &path)(source));
            }
        }
        outcome
    }

    /// The names in one of the folders.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.root.join(folder);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}
