//! Bytes on disk: staging files and finished blobs.
//!
//! Invariants: a file under `blobs/` was hashed to its name before it got there; a key becomes a file name only through a
//! hash, so no key reaches outside `ingest/`.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_types::{Algorithm, Digest};
use sha2::Digest as _;

use crate::Error;

/// The two folders.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

/// The digest and the length of a file.
pub fn hash_file<H: sha2::Digest>(mut file: &File) -> std::io::Result<(String, u64)> {
    let mut hasher = H::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut size = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok((hex::encode(hasher.finalize()), size));
        }
        size += length as u64;
        hasher.update(&buffer[..length]);
    }
}

impl Files {
    /// Makes the folders, readable by the owner only.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(root: &Path) -> Result<Files, Error> {
        for folder in ["ingest", "blobs/sha256", "blobs/sha512"] {
            let path = root.join(folder);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(Error::io("make", &path))?;
        }
        Ok(Files {
            root: root.to_owned(),
        })
    }

    /// Where a blob is, or would be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Where an ingest is staged.
    pub fn staging(&self, key: &str) -> PathBuf {
        self.root
            .join("ingest")
            .join(hex::encode(sha2::Sha256::digest(key)))
    }

    /// Makes or continues a staging file and says how much is there.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn begin(&self, key: &str) -> Result<(PathBuf, u64), Error> {
        let path = self.staging(key);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(Error::io("stage", &path))?;
        let size = file.metadata().map_err(Error::io("stage", &path))?.len();
        Ok((path, size))
    }

    /// Hashes a staged file and moves it to its name. Wrong bytes are dropped.
    ///
    /// # Errors
    /// [`Error::NoIngest`], [`Error::Mismatch`], or what the file system says.
    pub fn commit(
        &self,
        key: &str,
        expected: Option<&Digest>,
        size: u64,
    ) -> Result<(Digest, u64), Error> {
        let staged = self.staging(key);
        let file = match File::open(&staged) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoIngest(key.to_owned()));
            }
            other => other.map_err(Error::io("open", &staged))?,
        };
        let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
        let (hex, got_size) = match algorithm {
            Algorithm::Sha256 => hash_file::<sha2::Sha256>(&file),
            Algorithm::Sha512 => hash_file::<sha2::Sha512>(&file),
        }
        .map_err(Error::io("read", &staged))?;
        let digest = Digest::new(algorithm, hex)?;
        let mismatch = if size > 0 && size != got_size {
            Some((format!("{size} bytes"), format!("{got_size} bytes")))
        } else {
            expected
                .filter(|expected| **expected != digest)
                .map(|e| (e.to_string(), digest.to_string()))
        };
        if let Some((expected, got)) = mismatch {
            self.abort(key)?;
            return Err(Error::Mismatch { expected, got });
        }
        file.sync_all().map_err(Error::io("write", &staged))?;
        let target = self.blob(&digest);
        match std::fs::rename(&staged, &target) {
            // Another commit of the same key was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoIngest(key.to_owned()));
            }
            other => other.map_err(Error::io("name", &target))?,
        }
        if let Some(folder) = target.parent() {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(Error::io("write", folder))?;
        }
        Ok((digest, got_size))
    }

    /// Bytes of a blob that is under its name, and so was verified.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        Some(std::fs::metadata(self.blob(digest)).ok()?.len())
    }

    /// Drops a staging file; none is fine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn abort(&self, key: &str) -> Result<(), Error> {
        remove(&self.staging(key))
    }

    /// Removes a blob's file; none is fine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        remove(&self.blob(digest))
    }

    /// Reads a blob of at most `most` bytes.
    ///
    /// # Errors
    /// [`Error::NoBlob`], [`Error::TooLarge`], or what the file system says.
    pub fn read(&self, digest: &Digest, most: u64) -> Result<Vec<u8>, Error> {
        let path = self.blob(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoBlob(digest.clone()));
            }
            other => other.map_err(Error::io("open", &path))?,
        };
        let size = file.metadata().map_err(Error::io("read", &path))?.len();
        if size > most {
            return Err(Error::TooLarge {
                digest: digest.clone(),
                size,
                most,
            });
        }
        let mut bytes = Vec::new();
        file.take(most)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        Ok(bytes)
    }

    /// Every blob file with its size; names that are no digest are left alone.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = self.root.join("blobs").join(algorithm.as_str());
            for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let entry = entry.map_err(Error::io("list", &folder))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Ok(digest) = Digest::new(algorithm, name) {
                    found.push((
                        digest,
                        entry.metadata().map_err(Error::io("list", &folder))?.len(),
                    ));
                }
            }
        }
        Ok(found)
    }

    /// Staging files that nobody has written to for this long.
    ///
    /// # Errors
    /// What the file system says.
    pub fn idle_ingests(&self, idle: Duration) -> Result<Vec<(PathBuf, std::fs::Metadata)>, Error> {
        let folder = self.root.join("ingest");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let path = entry.map_err(Error::io("list", &folder))?.path();
            // One that has just been committed is none any more.
            let Ok(meta) = std::fs::metadata(&path) else {
                continue;
            };
            let age = meta
                .modified()
                .ok()
                .and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_some_and(|age| age >= idle) {
                found.push((path, meta));
            }
        }
        Ok(found)
    }

    /// Drops them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sweep_ingests(&self, idle: Duration) -> Result<(), Error> {
        let idle = self.idle_ingests(idle)?;
        idle.iter().try_for_each(|(path, _)| remove(path))
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
