//! What can go wrong in the network service.

use std::path::PathBuf;

use gantry_types::{Classify, ErrorKind};

use crate::netlink::Refused;

/// Errors of networks and sandboxes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is wrong.
    #[error("configuration of network: {0}")]
    Config(String),
    /// No such network.
    #[error("no such network: {0}; make it with `ctl network create {0}`")]
    NoNetwork(String),
    /// No such sandbox.
    #[error("no such sandbox: {0}")]
    NoSandbox(String),
    /// A network of that name exists.
    #[error("create network {0}: the name is taken; choose another, or remove that network first")]
    NetworkExists(String),
    /// A network of the engine's own.
    #[error("remove network {0}: it is built in and stays")]
    BuiltIn(String),
    /// Sandboxes are on it.
    #[error("remove network {name}: it is used by {sandboxes}; stop or remove them first")]
    InUse {
        /// The network.
        name: String,
        /// Ids and names, with commas.
        sandboxes: String,
    },
    /// The subnet is somebody else's.
    #[error("create network {network}: subnet {subnet} overlaps {other}; choose another subnet")]
    Overlap {
        /// The network.
        network: String,
        /// What was asked for.
        subnet: String,
        /// Whose it is.
        other: String,
    },
    /// The pool is used up.
    #[error(
        "create network {network}: no free subnet is left in {pool}; give one, or remove networks that are not used"
    )]
    NoSubnet {
        /// The network.
        network: String,
        /// The pool.
        pool: String,
    },
    /// Every address is given.
    #[error(
        "attach to network {network}: no free address is left in {subnet}; remove containers from it, or use a larger subnet"
    )]
    NoAddress {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// An address that was asked for is another's.
    #[error("attach to network {network}: address {address} is used by {owner}; choose another")]
    AddressTaken {
        /// The network.
        network: String,
        /// IPv4, IPv6 or hardware address.
        address: String,
        /// The sandbox that has it.
        owner: String,
    },
    /// A port is published by another sandbox.
    #[error("publish port {port}: it is already published by {owner}; choose another host port")]
    PortTaken {
        /// "127.0.0.1:80/tcp".
        port: String,
        /// The sandbox that has it.
        owner: String,
    },
    /// A process of the host has the port.
    #[error(
        "publish port {port}: a process on this host is using it; stop that process, or choose another host port"
    )]
    PortBusy {
        /// "127.0.0.1:80/tcp".
        port: String,
    },
    /// The port cannot be listened on.
    #[error("publish port {port}: {source}")]
    Port {
        /// "192.0.2.1:80/tcp".
        port: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused a change.
    #[error("{action}: {source}")]
    Kernel {
        /// What was tried, on what.
        action: String,
        /// What the kernel said.
        source: Refused,
    },
    /// A file or namespace operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A record is damaged.
    #[error("read record {path}: {reason}")]
    Record {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The service ends.
    #[error("the network service is ending; try again")]
    Ending,
    /// The database failed.
    #[error(transparent)]
    Meta(#[from] gantry_meta::Error),
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] gantry_chassis::ServeError),
    /// A helper thread ended.
    #[error("a network operation was cut off")]
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

    /// For `map_err` on netlink.
    pub(crate) fn kernel<E: Into<Refused>>(action: impl Into<String>) -> impl FnOnce(E) -> Error {
        let action = action.into();
        move |source| Error::Kernel {
            action,
            source: source.into(),
        }
    }

    pub(crate) fn field(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Field {
            field,
            reason: reason.into(),
        }
    }
}

fn of_io(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        std::io::ErrorKind::StorageFull
        | std::io::ErrorKind::QuotaExceeded
        | std::io::ErrorKind::OutOfMemory => ErrorKind::Exhausted,
        _ => ErrorKind::Bug,
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Field { .. } | Error::Config(_) => ErrorKind::InvalidArgument,
            Error::NoNetwork(_) | Error::NoSandbox(_) => ErrorKind::NotFound,
            Error::NetworkExists(_)
            | Error::Overlap { .. }
            | Error::AddressTaken { .. }
            | Error::PortTaken { .. }
            | Error::PortBusy { .. } => ErrorKind::AlreadyExists,
            Error::BuiltIn(_) | Error::InUse { .. } => ErrorKind::WrongState,
            Error::NoSubnet { .. } | Error::NoAddress { .. } => ErrorKind::Exhausted,
            Error::Port { source, .. } => match source.kind() {
                std::io::ErrorKind::AddrNotAvailable => ErrorKind::InvalidArgument,
                _ => of_io(source),
            },
            Error::Kernel { source, .. } => of_io(&source.source),
            Error::Io { source, .. } => of_io(source),
            Error::Record { .. } => ErrorKind::Corrupt,
            Error::Ending => ErrorKind::Unavailable,
            Error::Meta(error) => error.kind(),
            Error::Serve(_) | Error::CutOff => ErrorKind::Bug,
        }
    }

    fn resource(&self) -> Option<String> {
        match self {
            Error::NoNetwork(name)
            | Error::NetworkExists(name)
            | Error::BuiltIn(name)
            | Error::InUse { name, .. }
            | Error::Overlap { network: name, .. }
            | Error::NoSubnet { network: name, .. }
            | Error::NoAddress { network: name, .. }
            | Error::AddressTaken { network: name, .. } => Some(format!("network/{name}")),
            Error::NoSandbox(id) => Some(format!("sandbox/{id}")),
            Error::PortTaken { port, .. } | Error::PortBusy { port } | Error::Port { port, .. } => {
                Some(format!("port/{port}"))
            }
            _ => None,
        }
    }
}
