//! Typed errors to gRPC status and back (google.rpc.ErrorInfo, ResourceInfo, RetryInfo).
//!
//! Invariant: this is the only table between [`ErrorKind`] and gRPC codes; nobody matches on text.

use std::fmt;
use std::time::Duration;

use gantry_types::{Classify, ErrorKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const DOMAIN: &str = "gantry";
const RETRY_AFTER: Duration = Duration::from_millis(200);

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::WrongState => Code::FailedPrecondition,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::TimedOut => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Bug => Code::Internal,
    }
}

fn kind_of_code(code: Code) -> ErrorKind {
    match code {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidArgument,
        Code::FailedPrecondition => ErrorKind::WrongState,
        Code::Aborted => ErrorKind::Busy,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::PermissionDenied => ErrorKind::Denied,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::TimedOut,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Ok | Code::Unknown | Code::Internal => ErrorKind::Bug,
    }
}

/// The whole chain of causes on one line, without saying the same thing twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a client is told of an error: the chain on one line, its kind, its resource, and when to try again.
pub fn to_status(error: &impl Classify) -> Status {
    let kind = error.kind();
    if kind == ErrorKind::Bug {
        tracing::error!(error = %chain(error), "request failed by a fault of the engine");
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(kind.as_str(), DOMAIN, std::collections::HashMap::new());
    if let Some(resource) = error.resource() {
        let noun = resource.split('/').next().unwrap_or_default().to_owned();
        details.set_resource_info(noun, resource, "", "");
    }
    if kind.is_retryable() {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    // Headers have a limit; a message that is longer says so instead of breaking the reply.
    let mut message = chain(error);
    if message.len() > 3000 {
        let cut = (0..=3000)
            .rev()
            .find(|&at| message.is_char_boundary(at))
            .unwrap_or(0);
        message.truncate(cut);
        message.push_str("...");
    }
    Status::with_error_details(code(kind), message, details)
}

/// An error that a peer reported, as a typed value.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What the caller may act on.
    pub kind: ErrorKind,
    /// The whole story on one line.
    pub message: String,
    /// `noun/name`, when the peer said.
    pub resource: Option<String>,
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let told = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .and_then(|info| ErrorKind::from_name(&info.reason));
        // A transport error carries its cause as the source only.
        let mut message = status.message().to_owned();
        if told.is_none() {
            let mut source = std::error::Error::source(&status);
            while let Some(cause) = source {
                let text = cause.to_string();
                if !message.contains(&text) {
                    message = format!("{message}: {text}");
                }
                source = cause.source();
            }
        }
        let transport = told.is_none()
            && matches!(
                status.code(),
                Code::Unknown | Code::Internal | Code::Cancelled
            )
            && std::error::Error::source(&status).is_some();
        let kind = told.unwrap_or_else(|| {
            if transport {
                ErrorKind::Unavailable
            } else {
                kind_of_code(status.code())
            }
        });
        Self {
            kind,
            message,
            resource: details.resource_info().map(|r| r.resource_name.clone()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Classify for Fault {
    fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn resource(&self) -> Option<String> {
        self.resource.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Example(ErrorKind);
    impl fmt::Display for Example {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "open container: it hides")
        }
    }
    impl std::error::Error for Example {}
    impl Classify for Example {
        fn kind(&self) -> ErrorKind {
            self.0
        }
        fn resource(&self) -> Option<String> {
            Some("container/web".into())
        }
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let fault = Fault::from(to_status(&Example(kind)));
            assert_eq!(fault.kind, kind);
            assert_eq!(fault.message, "open container: it hides");
            assert_eq!(fault.resource.as_deref(), Some("container/web"));
        }
    }

    #[test]
    fn foreign_statuses_get_a_kind() {
        assert_eq!(
            Fault::from(Status::unavailable("x")).kind,
            ErrorKind::Unavailable
        );
        assert_eq!(Fault::from(Status::internal("x")).kind, ErrorKind::Bug);
    }
}
