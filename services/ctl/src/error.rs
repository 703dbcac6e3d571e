//! What a command can fail with, and the text and exit code that the user gets for it.
//!
//! Invariant: a message names the thing, the cause and, where there is one, the remedy.

use gantry_chassis::Fault;
use gantry_types::{Classify, ErrorKind};

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag or argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// The engine refused or failed.
    #[error("{0}")]
    Engine(#[from] Fault),
    /// Nobody listens on the socket.
    #[error("cannot connect to the engine at {path}: {cause}")]
    Away {
        /// The socket.
        path: String,
        /// What the kernel said.
        cause: String,
    },
    /// A file or terminal of this side.
    #[error("{what}: {source}")]
    Io {
        /// Verb and object.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Whoever read our output reads no more.
    #[error("the reader of the output has gone")]
    Closed,
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Error::Engine(Fault::from(status))
    }
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// Whether the connection to the engine broke, so that trying again may help.
    pub fn is_away(&self) -> bool {
        self.kind() == ErrorKind::Unavailable
    }

    /// Docker's exit code for a `run` that failed with this: the engine says it for a program that could not be started.
    pub fn run_code(&self) -> u8 {
        let told = match self {
            Error::Engine(fault) => fault.resource.as_deref(),
            _ => None,
        };
        told.and_then(|resource| resource.strip_prefix("exit/")?.parse().ok())
            .unwrap_or(125)
    }

    /// Whether the store does not have the image, so that a pull would help.
    pub fn is_missing_image(&self) -> bool {
        matches!(self, Error::Engine(fault) if fault.kind == ErrorKind::NotFound
            && fault.resource.as_deref().is_some_and(|resource| resource.starts_with("image/")))
    }

    /// A second line that says what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Away { .. } => Some(
                "is gantryd running? Start it with: gantryd   (or: systemctl start gantryd). \
                 Another engine is chosen with --host unix://DIRECTORY or GANTRY_RUN."
                    .into(),
            ),
            Error::Engine(fault) if fault.kind == ErrorKind::Unavailable => {
                Some("the engine or one of its services is away; is gantryd running?".into())
            }
            Error::Engine(fault) if fault.kind == ErrorKind::Bug => {
                Some("this is a fault of the engine; its log tells more".into())
            }
            _ => None,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Usage(_) => ErrorKind::InvalidArgument,
            Error::Engine(fault) => fault.kind,
            Error::Away { .. } => ErrorKind::Unavailable,
            Error::Io { .. } | Error::Closed => ErrorKind::WrongState,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::Engine(fault) => fault.resource.clone(),
            _ => None,
        }
    }
}

/// The result of a command.
pub type Result<T> = std::result::Result<T, Error>;
