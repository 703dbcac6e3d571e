//! The closed set of error kinds that callers may act on, free of any transport.
//!
//! Invariant: a kind exists only where a caller does something different on seeing it.

/// What went wrong, as far as a caller needs to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// A field of the request is wrong; the message names it.
    InvalidArgument,
    /// The thing is not in a state that allows this.
    WrongState,
    /// Another operation holds the thing; try again.
    Busy,
    /// Disk, memory, addresses or ports ran out.
    Exhausted,
    /// The caller may not do this.
    Denied,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// A peer is away; try again.
    Unavailable,
    /// A deadline passed.
    TimedOut,
    /// The caller went away.
    Cancelled,
    /// Stored or received data is not what it claims to be.
    Corrupt,
    /// Not possible on this host or with this input.
    Unsupported,
    /// A fault of Gantry itself.
    Bug,
}

impl ErrorKind {
    /// Every kind, for tables and tests.
    pub const ALL: [ErrorKind; 14] = [
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::InvalidArgument,
        ErrorKind::WrongState,
        ErrorKind::Busy,
        ErrorKind::Exhausted,
        ErrorKind::Denied,
        ErrorKind::Unauthenticated,
        ErrorKind::Unavailable,
        ErrorKind::TimedOut,
        ErrorKind::Cancelled,
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::Bug,
    ];

    /// The stable name that goes over the wire as `ErrorInfo.reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NOT_FOUND",
            ErrorKind::AlreadyExists => "ALREADY_EXISTS",
            ErrorKind::InvalidArgument => "INVALID_ARGUMENT",
            ErrorKind::WrongState => "WRONG_STATE",
            ErrorKind::Busy => "BUSY",
            ErrorKind::Exhausted => "EXHAUSTED",
            ErrorKind::Denied => "DENIED",
            ErrorKind::Unauthenticated => "UNAUTHENTICATED",
            ErrorKind::Unavailable => "UNAVAILABLE",
            ErrorKind::TimedOut => "TIMED_OUT",
            ErrorKind::Cancelled => "CANCELLED",
            ErrorKind::Corrupt => "CORRUPT",
            ErrorKind::Unsupported => "UNSUPPORTED",
            ErrorKind::Bug => "BUG",
        }
    }

    /// The kind with this wire name.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether the same request may succeed later without a change.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorKind::Busy | ErrorKind::Unavailable)
    }
}

/// What every service's error says about itself.
pub trait Classify: std::error::Error {
    /// The kind a caller may act on.
    fn kind(&self) -> ErrorKind;

    /// The thing it is about, as `noun/name`: `container/web`, `image/docker.io/library/busybox:latest`.
    fn resource(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_come_back() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(ErrorKind::from_name("NO_SUCH"), None);
    }
}
