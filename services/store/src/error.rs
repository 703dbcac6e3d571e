//! What can go wrong in the store.

use std::path::PathBuf;

use gantry_types::{Classify, Digest, DigestError, ErrorKind, PlatformError, ReferenceError};

/// Errors of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A digest of the request is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A reference of the request is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A platform of the request is none.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image.
    #[error("no such image: {0}; pull it with `ctl pull {0}`")]
    NoImage(String),
    /// An id prefix that fits several images.
    #[error("image id {0:?} fits several images; write more of it")]
    Ambiguous(String),
    /// The image has nothing for the platform.
    #[error("image {name} has nothing for {platform}; it has {available}")]
    NoPlatform {
        /// The image.
        name: String,
        /// What was asked for.
        platform: String,
        /// What there is.
        available: String,
    },
    /// No such blob.
    #[error("no such blob: {0}")]
    NoBlob(Digest),
    /// A part of an image is not held.
    #[error(
        "image {name} is not complete: blob {digest} is missing; pull it again with `ctl pull {name}`"
    )]
    Incomplete {
        /// The image.
        name: String,
        /// What is missing.
        digest: Digest,
    },
    /// Nothing was begun under this key.
    #[error("no such ingest: {0}; begin it again")]
    NoIngest(String),
    /// The bytes are not what was promised.
    #[error("commit blob: expected {expected}, got {got}; the staged bytes were dropped")]
    Mismatch {
        /// Digest or size promised.
        expected: String,
        /// Digest or size found.
        got: String,
    },
    /// A manifest, index or config cannot be understood.
    #[error("read {digest}: {reason}")]
    Manifest {
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive is not what it should be.
    #[error("archive, entry {entry:?}: {reason}")]
    Archive {
        /// Its path in the archive.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// An archive has nothing to load.
    #[error("archive: {0}")]
    NoArchive(String),
    /// Whoever sent or took the archive has gone.
    #[error("the archive's stream was cut off")]
    Gone,
    /// A blob that is too large to be sent whole.
    #[error(
        "read blob {digest}: {size} bytes are more than the {most} that are sent whole; read it by its path"
    )]
    TooLarge {
        /// Which.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        most: u64,
    },
    /// The file system failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Meta(#[from] gantry_meta::Error),
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] gantry_chassis::ServeError),
    /// A helper thread ended.
    #[error("a file operation was cut off")]
    CutOff,
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Digest(_)
            | Error::Reference(_)
            | Error::Platform(_)
            | Error::Field { .. }
            | Error::Ambiguous(_) => ErrorKind::InvalidArgument,
            Error::NoImage(_)
            | Error::NoPlatform { .. }
            | Error::NoBlob(_)
            | Error::Incomplete { .. }
            | Error::NoIngest(_) => ErrorKind::NotFound,
            Error::Mismatch { .. } | Error::Manifest { .. } | Error::Archive { .. } => {
                ErrorKind::Corrupt
            }
            Error::NoArchive(_) => ErrorKind::InvalidArgument,
            Error::Gone => ErrorKind::Cancelled,
            Error::TooLarge { .. } => ErrorKind::InvalidArgument,
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::Exhausted
                }
                _ => ErrorKind::Bug,
            },
            Error::Meta(error) => error.kind(),
            Error::Serve(_) | Error::CutOff => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::NoImage(name)
            | Error::NoPlatform { name, .. }
            | Error::Incomplete { name, .. } => Some(format!("image/{name}")),
            Error::NoBlob(digest) | Error::Manifest { digest, .. } => {
                Some(format!("blob/{digest}"))
            }
            Error::NoIngest(key) => Some(format!("ingest/{key}")),
            _ => None,
        }
    }
}
