//! What can go wrong when images are fetched.
//!
//! Invariant: no message carries a password or a token.

use std::path::PathBuf;

use gantry_chassis::Fault;
use gantry_types::{Classify, Digest, DigestError, ErrorKind, ReferenceError};

/// Errors of the registry service.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A reference of the request is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A digest in a document is none.
    #[error("{document} has a digest that is none: {source}")]
    Digest {
        /// Which document.
        document: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// The registry does not have it.
    #[error(
        "{image}: {registry} has no such {what}; check the name and the tag, or log in if it is private"
    )]
    NoImage {
        /// As users type it.
        image: String,
        /// Whom we asked.
        registry: String,
        /// "manifest", "blob ...".
        what: String,
    },
    /// The registry wants to know who asks, or refuses who does.
    #[error(
        "{image}: {registry} refuses access ({status}); put credentials for it into ~/.docker/config.json or containers' auth.json, for example with `docker login {registry}`"
    )]
    Denied {
        /// As users type it.
        image: String,
        /// Whom we asked.
        registry: String,
        /// HTTP status.
        status: u16,
    },
    /// A file that says where registries are is broken.
    #[error("{}: {reason}", path.display())]
    Hosts {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file forbids the registry.
    #[error("{image}: {} blocks {prefix:?}", path.display())]
    Blocked {
        /// As users type it.
        image: String,
        /// The rule.
        prefix: String,
        /// Which file.
        path: PathBuf,
    },
    /// The credential files are no use.
    #[error("credentials for {registry}: {reason}")]
    Credentials {
        /// For whom.
        registry: String,
        /// What is wrong, without secrets.
        reason: String,
    },
    /// The registry cannot be reached, or breaks off again and again.
    #[error("{image}: {registry}: {reason}")]
    Away {
        /// As users type it.
        image: String,
        /// Whom we asked.
        registry: String,
        /// What happened.
        reason: String,
    },
    /// The registry sends nothing.
    #[error("{image}: {registry} sent nothing for {seconds} s, {attempts} times")]
    Stalled {
        /// As users type it.
        image: String,
        /// Whom we asked.
        registry: String,
        /// The limit.
        seconds: u64,
        /// How often it was tried.
        attempts: u32,
    },
    /// What the registry sends is not what it should be.
    #[error("{image}: {what}: {reason}")]
    Wrong {
        /// As users type it.
        image: String,
        /// "manifest sha256:...", "layer sha256:...".
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is not for the platform.
    #[error("{image} has nothing for {platform}; it has {available}")]
    NoPlatform {
        /// As users type it.
        image: String,
        /// What was asked for.
        platform: String,
        /// What there is.
        available: String,
    },
    /// The store does not have what is to be pushed.
    #[error("no such image here: {image}; see `ctl images`")]
    NotHere {
        /// As users type it.
        image: String,
    },
    /// A kind of image that cannot be run.
    #[error("{image}: {reason}")]
    Unsupported {
        /// As users type it.
        image: String,
        /// Why.
        reason: String,
    },
    /// The bytes cannot be written.
    #[error("write layer {digest} to {path}: {reason}")]
    Write {
        /// Of what.
        digest: Digest,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
        /// The disk is full.
        full: bool,
    },
    /// A peer failed.
    #[error("{image}: {fault}")]
    Peer {
        /// As users type it.
        image: String,
        /// What it said.
        fault: Fault,
    },
    /// The HTTP client cannot be made.
    #[error("start the HTTP client: {0}; certificates come with the package ca-certificates")]
    Client(String),
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The address to serve on cannot be had.
    #[error("listen on {address}: {reason}; choose another with --listen or serve.listen")]
    Listen {
        /// Which.
        address: String,
        /// What the kernel said.
        reason: String,
    },
    /// The server failed.
    #[error("{0}")]
    Serve(String),
}

impl Error {
    /// Whether the same download may succeed when it is tried again.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::Away { .. } | Error::Stalled { .. })
    }

    /// The same, with how often it was tried.
    pub fn after(self, tries: u32) -> Self {
        match self {
            Error::Stalled {
                image,
                registry,
                seconds,
                ..
            } => Error::Stalled {
                image,
                registry,
                seconds,
                attempts: tries,
            },
            other => other,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Reference(_) | Error::Setting(_) => ErrorKind::InvalidArgument,
            Error::NoImage { .. } | Error::NoPlatform { .. } | Error::NotHere { .. } => {
                ErrorKind::NotFound
            }
            Error::Denied { status: 401, .. } | Error::Credentials { .. } => {
                ErrorKind::Unauthenticated
            }
            Error::Denied { .. } | Error::Blocked { .. } => ErrorKind::Denied,
            Error::Hosts { .. } | Error::Listen { .. } => ErrorKind::WrongState,
            // Not `Unavailable`, which would make clients ask our own service again; it has tried enough.
            Error::Away { .. } => ErrorKind::WrongState,
            Error::Stalled { .. } => ErrorKind::TimedOut,
            Error::Wrong { .. } | Error::Digest { .. } => ErrorKind::Corrupt,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::Write { full: true, .. } => ErrorKind::Exhausted,
            Error::Peer { fault, .. } => fault.kind,
            Error::Client(_) => ErrorKind::Unsupported,
            Error::Write { .. } | Error::Serve(_) => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::NoImage { image, .. }
            | Error::Denied { image, .. }
            | Error::Away { image, .. }
            | Error::Stalled { image, .. }
            | Error::Wrong { image, .. }
            | Error::NoPlatform { image, .. }
            | Error::Unsupported { image, .. } => Some(format!("image/{image}")),
            _ => None,
        }
    }
}
