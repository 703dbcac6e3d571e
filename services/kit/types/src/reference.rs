//! Image references: `[registry/]repository[:tag][@digest]`, normalised as docker does
//! (distribution/reference grammar; OCI distribution specification, "Pulling manifests").
//!
//! Invariant: a `Reference` always has a registry and a repository, and a tag or a digest (or both).

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";

/// Where an image is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty; write [registry/]name[:tag][@digest]")]
    Empty,
    /// Longer than 255 characters before the tag.
    #[error("image reference {0:?}: the name is longer than 255 characters")]
    TooLong(String),
    /// Upper case in the repository.
    #[error("image reference {0:?}: the repository name must be lower case")]
    UpperCase(String),
    /// Characters that a repository may not have.
    #[error(
        "image reference {0:?}: a repository is made of a-z, 0-9 and single separators . _ __ - between them, in parts divided by /"
    )]
    BadRepository(String),
    /// Characters that a host may not have.
    #[error(
        "image reference {0:?}: the registry must be a host name or address, with an optional :port"
    )]
    BadRegistry(String),
    /// Characters that a tag may not have.
    #[error(
        "image reference {0:?}: a tag is at most 128 of A-Z a-z 0-9 _ . - and does not start with . or -"
    )]
    BadTag(String),
    /// What follows `@` is not a digest.
    #[error("image reference {text:?}: {source}")]
    BadDigest {
        /// The reference as given.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

impl Reference {
    /// Host and optional port: "docker.io", "localhost:5000".
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// "library/busybox".
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, when one was given or no digest was (then "latest").
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, when one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same image by digest, without the tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Registry and repository, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// As users type it: without docker.io/ and library/.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
            None => full,
        }
    }

    /// Whether the registry is on this machine, so that plain http is expected.
    pub fn is_loopback(&self) -> bool {
        Self::is_loopback_host(&self.registry)
    }

    /// The same for a registry's host and optional port.
    pub fn is_loopback_host(registry: &str) -> bool {
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => registry,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn registry_ok(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.parse::<u16>().is_ok());
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    port_ok && host_ok
}

fn component_ok(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn tag_ok(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let own = || text.to_owned();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::BadDigest {
                    text: own(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !tag_ok(tag)) {
            return Err(ReferenceError::BadTag(own()));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, repository)) if is_registry(first) => (first, repository),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" {
            DEFAULT_REGISTRY
        } else {
            registry
        };
        if !registry_ok(registry) {
            return Err(ReferenceError::BadRegistry(own()));
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(own()));
        }
        if !repository.split('/').all(component_ok) {
            return Err(ReferenceError::BadRepository(own()));
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > 255 {
            return Err(ReferenceError::TooLong(own()));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn normalises_like_docker() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("a/b:1"), "docker.io/a/b:1");
        assert_eq!(
            full("index.docker.io/busybox"),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(full("localhost/x"), "localhost/x:latest");
        assert_eq!(full("localhost:5000/x/y"), "localhost:5000/x/y:latest");
        assert_eq!(full("[::1]:5000/x"), "[::1]:5000/x:latest");
        let by_digest = format!("quay.io/a/b@sha256:{}", "0".repeat(64));
        assert_eq!(full(&by_digest), by_digest);
        assert_eq!(
            "busybox:1".parse::<Reference>().unwrap().familiar(),
            "busybox:1"
        );
        assert!(
            "127.0.0.1:5000/x"
                .parse::<Reference>()
                .unwrap()
                .is_loopback()
        );
        assert!("[::1]:5000/x".parse::<Reference>().unwrap().is_loopback());
        assert!(!"docker.io/x".parse::<Reference>().unwrap().is_loopback());
    }

    #[test]
    fn refuses_what_the_grammar_does_not_have() {
        for bad in [
            "",
            "UPPER",
            "a//b",
            "a/../b",
            "-a",
            "a-",
            "a___b",
            "a:",
            "a:.x",
            "a@b",
            "a@sha256:zz",
            "h:99999999/x",
            "a b",
            "/a",
            "a/",
            ".x/y",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        assert!(
            format!("x/{}", "a".repeat(300))
                .parse::<Reference>()
                .is_err()
        );
    }
}
