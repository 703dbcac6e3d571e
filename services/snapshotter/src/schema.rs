//! What the snapshotter keeps, in one sled tree.
//!
//! ```text
//! 1 <diff_id>       -> LayerRecord      waits for its flush: the tree is on disk before
//! 2 <snapshot key>  -> SnapshotRecord   waits
//! 3 <volume name>   -> VolumeRecord     waits
//! ```
//! Files: `layers/<algorithm>-<hex>`, `snapshots/<key>/{upper,work,meta}`, `volumes/<name>/data`, `empty`, `new/*` (being
//! made), `trash/*` (being removed). A removal moves the files into the trash first: a record without files is dropped at start-up.

use std::collections::HashMap;

/// Version of this page; raise it with a migration.
pub const VERSION: u32 = 1;
/// Layers by diff_id.
pub const LAYERS: u8 = 1;
/// Snapshots by key.
pub const SNAPSHOTS: u8 = 2;
/// Volumes by name.
pub const VOLUMES: u8 = 3;

/// An unpacked layer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LayerRecord {
    /// The blob that it came from.
    #[prost(string, tag = "1")]
    pub blob: String,
    /// Bytes of its files.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Names in it.
    #[prost(uint64, tag = "3")]
    pub inodes: u64,
    /// Directories that its archive did not describe; "" is the root.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub implicit: Vec<Vec<u8>>,
}

/// A snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRecord {
    /// diff_ids, lowest first.
    #[prost(string, repeated, tag = "1")]
    pub layers: Vec<String>,
    /// The service that holds it.
    #[prost(string, tag = "2")]
    pub holder: String,
    /// A view.
    #[prost(bool, tag = "3")]
    pub readonly: bool,
    /// Has a `meta` directory on top of the layers.
    #[prost(bool, tag = "4")]
    pub meta: bool,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
}

/// A volume.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeRecord {
    /// The user's.
    #[prost(map = "string, string", tag = "1")]
    pub labels: HashMap<String, String>,
    /// Nobody named it.
    #[prost(bool, tag = "2")]
    pub anonymous: bool,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "3")]
    pub created_at: i64,
    /// Snapshots whose containers use it.
    #[prost(string, repeated, tag = "4")]
    pub users: Vec<String>,
}
