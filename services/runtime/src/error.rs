//! What can go wrong in the runtime service.

use std::path::{Path, PathBuf};

use gantry_chassis::Fault;
use gantry_types::{Classify, DigestError, ErrorKind};

use crate::seccomp::ProfileError;

/// Errors of the runtime service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong.
    #[error("{field} {value:?}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A digest is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// No such container.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// A prefix that fits several.
    #[error("container id {0:?} fits several containers; write more of it")]
    Ambiguous(String),
    /// The name is taken.
    #[error(
        "the name {name:?} is already used by container {id}; remove that one or choose another name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The same request is being worked on.
    #[error("container {0} is being created; try again")]
    Creating(String),
    /// Not possible in this state.
    #[error("cannot {action} container {name}: it is {state}{hint}")]
    State {
        /// The verb.
        action: &'static str,
        /// The container's name.
        name: String,
        /// What it is.
        state: &'static str,
        /// "; remedy", or nothing.
        hint: &'static str,
    },
    /// The shim could not make the container or the exec.
    #[error("{message}")]
    Launch {
        /// 125, 126 or 127, as docker run's exit code.
        code: i32,
        /// Why.
        message: String,
    },
    /// A shim does not do its part.
    #[error("shim of container {id}: {reason}")]
    Shim {
        /// The container.
        id: String,
        /// What happened.
        reason: String,
    },
    /// The container did not end.
    #[error(
        "container {0} did not end within the time after SIGKILL; a process of it may hang in the kernel"
    )]
    DoesNotEnd(String),
    /// The image's config cannot be understood.
    #[error("read the config of image {image}: {reason}")]
    Image {
        /// Which.
        image: String,
        /// Why.
        reason: String,
    },
    /// A seccomp profile is wrong.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A peer failed.
    #[error("{fault}")]
    Peer {
        /// Which service.
        peer: &'static str,
        /// What it said.
        fault: Fault,
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
    /// The service ends.
    #[error("the runtime service is ending; try again")]
    Ending,
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

    /// A wrong field.
    pub(crate) fn field(
        field: &'static str,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> Error {
        Error::Field {
            field,
            value: value.into(),
            reason: reason.into(),
        }
    }

    /// Docker's exit code for a `run` that failed with this.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Launch { code, .. } => *code,
            _ => 125,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Field { .. }
            | Error::Digest(_)
            | Error::Ambiguous(_)
            | Error::Profile(_)
            | Error::Launch { .. } => ErrorKind::InvalidArgument,
            Error::NoContainer(_) => ErrorKind::NotFound,
            Error::NameTaken { .. } => ErrorKind::AlreadyExists,
            Error::Creating(_) => ErrorKind::Busy,
            Error::State { .. } => ErrorKind::WrongState,
            Error::Shim { .. } | Error::Ending => ErrorKind::Unavailable,
            Error::DoesNotEnd(_) => ErrorKind::TimedOut,
            Error::Image { .. } => ErrorKind::Corrupt,
            Error::Peer { fault, .. } => fault.kind,
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::Exhausted
                }
                _ => ErrorKind::Bug,
            },
            Error::Meta(error) => error.kind(),
            Error::Serve(_) => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::NoContainer(name) | Error::State { name, .. } => {
                Some(format!("container/{name}"))
            }
            Error::NameTaken { id, .. } | Error::Shim { id, .. } => Some(format!("container/{id}")),
            // A launch that failed tells its exit code, so that a client need not read the message.
            Error::Launch { code, .. } => Some(format!("exit/{code}")),
            Error::Peer { fault, .. } => fault.resource.clone(),
            _ => None,
        }
    }
}
