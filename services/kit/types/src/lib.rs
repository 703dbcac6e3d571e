//! Plain values that two or more services speak about: digests, references, platforms, error kinds.
//!
//! Invariants: no IO, no service nouns, nothing here knows the wire or the disk.

mod digest;
mod error;
mod platform;
mod reference;

pub use digest::{Algorithm, Digest, DigestError};
pub use error::{Classify, ErrorKind};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
