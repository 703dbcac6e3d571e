//! What can go wrong when images are made.

use std::path::PathBuf;

use gantry_chassis::Fault;
use gantry_types::{Classify, Digest, DigestError, ErrorKind, PlatformError, ReferenceError};

/// Errors of the build service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A reference of the request is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A platform of the request is none.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// A digest of a document is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A change of settings cannot be understood.
    #[error("change {line:?}: {reason}")]
    Change {
        /// As it was given.
        line: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A document of the image that is built upon is broken.
    #[error("read {digest}: {reason}")]
    Document {
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// What came in is no archive.
    #[error("import: {0}")]
    Archive(String),
    /// A file of ours failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A peer failed.
    #[error("{fault}")]
    Peer {
        /// What it said.
        fault: Fault,
    },
    /// Whoever asked has gone.
    #[error("the request was cut off")]
    Gone,
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] gantry_chassis::ServeError),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Peer { fault }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Reference(_) | Error::Platform(_) | Error::Change { .. } => {
                ErrorKind::InvalidArgument
            }
            Error::Digest(_) | Error::Document { .. } | Error::Archive(_) => ErrorKind::Corrupt,
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::Exhausted
                }
                _ => ErrorKind::Bug,
            },
            Error::Peer { fault } => fault.kind,
            Error::Gone => ErrorKind::Cancelled,
            Error::Serve(_) => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::Peer { fault } => fault.resource.clone(),
            Error::Document { digest, .. } => Some(format!("blob/{digest}")),
            _ => None,
        }
    }
}
