//! Content digests (OCI image specification, descriptor: Digests).
//!
//! Invariant: a `Digest` is always of a known algorithm with the right number of lower-case hex digits, so it is
//! safe as a file name.

use std::fmt;
use std::str::FromStr;

/// The hash functions that the OCI image specification registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Number of hex digits of a digest.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// `algorithm:hex`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// Why a text is not a digest.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// No `algorithm:` before the hex digits.
    #[error("digest {0:?}: has no algorithm; write sha256:<64 hex digits>")]
    NoAlgorithm(String),
    /// An algorithm other than sha256 and sha512.
    #[error("digest {0:?}: unknown algorithm; sha256 and sha512 are supported")]
    UnknownAlgorithm(String),
    /// Wrong number of digits, or not lower-case hex.
    #[error("digest {text:?}: needs {want} lower-case hex digits")]
    BadHex {
        /// The text as given.
        text: String,
        /// Digits that the algorithm has.
        want: usize,
    },
}

impl Digest {
    /// Makes a digest of hex digits.
    ///
    /// # Errors
    /// [`DigestError::BadHex`] when the digits are not of the algorithm's length or not lower-case hex.
    pub fn new(algorithm: Algorithm, hex: impl Into<String>) -> Result<Self, DigestError> {
        let hex = hex.into();
        let good = hex.len() == algorithm.hex_len()
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if good {
            Ok(Self { algorithm, hex })
        } else {
            Err(DigestError::BadHex {
                text: format!("{}:{hex}", algorithm.as_str()),
                want: algorithm.hex_len(),
            })
        }
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, as tables show them.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(DigestError::NoAlgorithm(text.to_owned()));
        };
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(text.to_owned())),
        };
        Self::new(algorithm, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let text = format!("sha256:{}", "0a".repeat(32));
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.short(), "0a0a0a0a0a0a");
        assert_eq!(
            format!("sha512:{}", "f".repeat(128))
                .parse::<Digest>()
                .unwrap()
                .algorithm(),
            Algorithm::Sha512
        );
    }

    #[test]
    fn refuses_what_could_be_a_path() {
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:00",
            "sha256:AA",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
        assert!(
            format!("sha256:{}", "A".repeat(64))
                .parse::<Digest>()
                .is_err()
        );
        assert!(
            format!("sha256:{}", "a".repeat(63))
                .parse::<Digest>()
                .is_err()
        );
    }
}
