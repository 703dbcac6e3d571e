//! What the store keeps, in one sled tree.
//!
//! ```text
//! 1 <digest>      -> BlobRecord    waits for its flush: the file is there before
//! 2 <image name>  -> ImageRecord   waits
//! 3 <lease id>    -> LeaseRecord   waits
//! ```
//! Files: `blobs/<algorithm>/<hex>`, `ingest/<hash of the key>`.

use std::collections::HashMap;

/// Version of this page; raise it with a migration.
pub const VERSION: u32 = 1;
/// Table tags.
pub const BLOBS: u8 = 1;
/// Images by normalised name.
pub const IMAGES: u8 = 2;
/// Leases by id.
pub const LEASES: u8 = 3;

/// A blob on disk.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlobRecord {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Unix time, seconds, of its last commit; starts its grace period.
    #[prost(int64, tag = "2")]
    pub committed_at: i64,
}

/// What a name points to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageRecord {
    /// Media type of the target.
    #[prost(string, tag = "1")]
    pub media_type: String,
    /// Digest of the target.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// Size of the target, bytes.
    #[prost(int64, tag = "3")]
    pub size: i64,
    /// The user's.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "6")]
    pub updated_at: i64,
}

/// Who needs which digests.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseRecord {
    /// The service that holds it.
    #[prost(string, tag = "1")]
    pub holder: String,
    /// What it keeps, with everything that those refer to.
    #[prost(string, repeated, tag = "2")]
    pub digests: Vec<String>,
    /// Unix time, seconds; 0 = never.
    #[prost(int64, tag = "3")]
    pub expires_at: i64,
}
