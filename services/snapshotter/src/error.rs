//! What can go wrong in the snapshotter.

use std::path::{Path, PathBuf};

use gantry_chassis::Fault;
use gantry_types::{Classify, Digest, DigestError, ErrorKind};

use crate::apply::ApplyError;

/// Errors of the snapshotter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A digest of the request is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A field of the request is wrong.
    #[error("{field} {value:?}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: &'static str,
    },
    /// A layer's archive cannot be unpacked.
    #[error("unpack layer {diff_id}: {source}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: Box<ApplyError>,
    },
    /// A layer is not what its image says.
    #[error(
        "unpack layer {diff_id}: its content is {got}; the image's config or the layer is wrong"
    )]
    Mismatch {
        /// Promised.
        diff_id: Digest,
        /// Found.
        got: String,
    },
    /// A layer is not unpacked.
    #[error("layer {0} is not unpacked; pull the image again")]
    NoLayer(Digest),
    /// No such snapshot.
    #[error("no such snapshot: {0}")]
    NoSnapshot(String),
    /// The key is taken by another snapshot.
    #[error("snapshot {0} exists with other layers; choose another key")]
    Taken(String),
    /// No such volume.
    #[error("no such volume: {0}")]
    NoVolume(String),
    /// Containers use the volume.
    #[error("volume {name} is used by {users}; remove them first")]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Snapshot keys, which are the containers' ids.
        users: String,
    },
    /// A peer failed.
    #[error("{peer}: {fault}")]
    Peer {
        /// Which service.
        peer: &'static str,
        /// What it said.
        fault: Fault,
    },
    /// The same layer was asked for by another caller, and it failed.
    #[error("{message}")]
    Shared {
        /// What it failed with.
        message: String,
        /// Its kind.
        kind: ErrorKind,
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
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }

    /// The same for each caller that waits.
    pub(crate) fn shared(&self) -> Error {
        Error::Shared {
            message: self.to_string(),
            kind: self.kind(),
        }
    }
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Bug,
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Digest(_) | Error::Field { .. } => ErrorKind::InvalidArgument,
            Error::Layer { source, .. } => match &**source {
                // What the archive asks for cannot be made (a name too long, a file in the way), or the disk is full.
                ApplyError::Entry { source, .. } if io_kind(source) == ErrorKind::Exhausted => {
                    ErrorKind::Exhausted
                }
                _ => ErrorKind::Corrupt,
            },
            Error::Mismatch { .. } => ErrorKind::Corrupt,
            Error::NoLayer(_) | Error::NoSnapshot(_) | Error::NoVolume(_) => ErrorKind::NotFound,
            Error::Taken(_) => ErrorKind::AlreadyExists,
            Error::VolumeInUse { .. } => ErrorKind::WrongState,
            Error::Peer { fault, .. } => fault.kind,
            Error::Shared { kind, .. } => *kind,
            Error::Io { source, .. } => io_kind(source),
            Error::Meta(error) => error.kind(),
            Error::Serve(_) | Error::CutOff => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::Layer { diff_id, .. }
            | Error::Mismatch { diff_id, .. }
            | Error::NoLayer(diff_id) => Some(format!("layer/{diff_id}")),
            Error::NoSnapshot(key) | Error::Taken(key) => Some(format!("snapshot/{key}")),
            Error::NoVolume(name) | Error::VolumeInUse { name, .. } => {
                Some(format!("volume/{name}"))
            }
            _ => None,
        }
    }
}
