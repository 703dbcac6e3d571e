//! Why a database could not be used.

use std::path::PathBuf;

use gantry_types::{Classify, ErrorKind};

/// Errors of opening, reading and writing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the database.
    #[error(
        "open database {path}: another process has it; is a second engine running on the same --root?"
    )]
    Locked {
        /// The database's folder.
        path: PathBuf,
    },
    /// sled refused.
    #[error("{action}: {source}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What sled said.
        source: sled::Error,
    },
    /// Written by a newer Gantry.
    #[error(
        "open database {path}: its schema {found} is newer than {known}, which this version knows; run the newer version, or restore the copy beside it"
    )]
    TooNew {
        /// The database's folder.
        path: PathBuf,
        /// Schema on disk.
        found: u32,
        /// Schema of this program.
        known: u32,
    },
    /// A record cannot be read.
    #[error("read record of table {table}: {reason}")]
    Record {
        /// Tag of the table.
        table: u8,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The thread that flushes is gone.
    #[error("write database: the flush thread has ended")]
    Closed,
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Locked { .. } => ErrorKind::Busy,
            Error::TooNew { .. } => ErrorKind::Unsupported,
            Error::Record { .. } => ErrorKind::Corrupt,
            Error::Engine {
                source: sled::Error::Io(io),
                ..
            }
            | Error::Io { source: io, .. }
                if io.kind() == std::io::ErrorKind::StorageFull =>
            {
                ErrorKind::Exhausted
            }
            Error::Engine {
                source: sled::Error::Corruption { .. },
                ..
            } => ErrorKind::Corrupt,
            Error::Engine { .. } | Error::Io { .. } | Error::Closed => ErrorKind::Bug,
        }
    }
}
