//! What a client is told when it gets nothing: a status and one of the specification's codes.
//!
//! Invariant: the body is the specification's, so that other clients show the message. Source: distribution specification v1.1,
//! "Error Codes".

use gantry_chassis::Fault;
use gantry_types::ErrorKind;
use hyper::{Response, StatusCode};
use serde_json::json;

use super::{Body, full, set};

/// A request that gets nothing.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// 405.
    pub fn unsupported(message: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// The repository's name is none.
    pub fn name(name: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            format!("{name:?} is no name of a repository"),
        )
    }

    /// No such repository.
    pub fn no_name(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            format!("no repository {name:?} here"),
        )
    }

    /// A path of no meaning.
    pub fn no_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            format!("{path:?} means nothing here"),
        )
    }

    /// A digest that is none, or bytes that are not of it.
    pub fn digest(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    /// No such blob.
    pub fn no_blob(digest: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UNKNOWN",
            format!("no blob {digest} here"),
        )
    }

    /// No such manifest.
    pub fn no_manifest(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            format!("no manifest {name} here"),
        )
    }

    /// A manifest that is none.
    pub fn manifest(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    /// A manifest that names what is not here.
    pub fn incomplete(digest: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "MANIFEST_BLOB_UNKNOWN",
            format!("{digest} is not here; push it before the manifest"),
        )
    }

    /// A body that is too long.
    pub fn too_large(most: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "SIZE_INVALID",
            format!("more than {} MiB", most >> 20),
        )
    }

    /// No such upload.
    pub fn no_upload() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UPLOAD_UNKNOWN",
            "no such upload; begin it anew",
        )
    }

    /// A chunk that does not follow.
    pub fn range(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "BLOB_UPLOAD_INVALID",
            message,
        )
    }

    /// An upload that cannot be understood.
    pub fn upload(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// Who are you?
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "user and password are wanted",
        )
        .with("www-authenticate", r#"Basic realm="gantry""#)
    }

    /// Our own fault, or the disk's.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    /// With a header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        if self.status.is_server_error() {
            tracing::warn!(message = self.message, "a request to the registry failed");
        }
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = self.status;
        set(&mut response, "content-type", "application/json");
        for (name, value) in &self.headers {
            set(&mut response, name, value);
        }
        response
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let status = match fault.kind {
            ErrorKind::Unavailable | ErrorKind::TimedOut => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, "UNKNOWN", fault.message)
    }
}
