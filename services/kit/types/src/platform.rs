//! Platforms (OCI image index, `platform`): parsing, normalising, choosing.
//!
//! Invariant: `os` and `architecture` are never empty and always in Go's spelling (amd64, arm64, ...).

use std::fmt;
use std::str::FromStr;

/// An operating system, processor and its variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// "linux", "windows", ...
    pub os: String,
    /// "amd64", "arm64", "arm", ...
    pub architecture: String,
    /// "v7", "v8", or empty.
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "platform {0:?}: write os/architecture or os/architecture/variant, for example linux/amd64"
)]
pub struct PlatformError(pub String);

impl Platform {
    /// Makes a platform in normal spelling (`x86_64` becomes `amd64`, `arm64/v8` becomes `arm64`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", if v == "v1" { "" } else { v }),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("i386" | "i486" | "i586" | "i686" | "x86", v) => ("386", v),
            (other, v) => (other, v),
        };
        Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// The machine this runs on.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// Whether an image for `other` runs where `self` is asked for: same system and processor, and the same
    /// variant unless `self` names none.
    pub fn matches(&self, other: &Platform) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant == other.variant || self.variant.is_empty())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let clean = |s: &&str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if !parts.iter().all(clean) {
            return Err(PlatformError(text.to_owned()));
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_and_matches() {
        let host: Platform = "linux/x86_64".parse().unwrap();
        assert_eq!(host.to_string(), "linux/amd64");
        assert!(host.matches(&Platform::new("linux", "amd64", "")));
        assert!(!host.matches(&Platform::new("linux", "arm64", "")));
        assert_eq!(
            "linux/arm64/v8".parse::<Platform>().unwrap(),
            "linux/arm64".parse().unwrap()
        );
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().variant, "v7");
        let old: Platform = "linux/arm/v6".parse().unwrap();
        assert!(!old.matches(&Platform::new("linux", "arm", "v7")));
    }

    #[test]
    fn refuses_nonsense() {
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/../x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
