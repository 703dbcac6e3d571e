//! What the runtime service keeps, in one sled tree.
//!
//! ```text
//! 1 <container id> -> ContainerRecord   waits: name, id and everything that a start needs are one commit
//! 2 <container id> -> RunRecord         an exit and a stop wait; a start does not (the shim's folder tells of it)
//! ```
//! Files: `containers/<id>/{hosts,hostname,resolv.conf,container.log}`; while a shim lives, `<run>/shim/<id, 16 digits>/`.

use std::collections::HashMap;

use crate::convert::{ContainerConfig, MountSpec};

/// Version of this page; raise it with a migration.
pub const VERSION: u32 = 1;
/// Containers by id.
pub const CONTAINERS: u8 = 1;
/// How they ran, by id.
pub const RUNS: u8 = 2;

/// A mount that makes the root file system.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RootMount {
    /// "overlay" or "bind".
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// As in mount(8).
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// What was asked for, and what it came to with the image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRecord {
    /// Unique.
    #[prost(string, tag = "1")]
    pub name: String,
    /// As the user gave it.
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    /// Entrypoint and command.
    #[prost(string, repeated, tag = "3")]
    pub args: Vec<String>,
    /// The image's and the user's.
    #[prost(string, repeated, tag = "4")]
    pub env: Vec<String>,
    /// Working directory.
    #[prost(string, tag = "5")]
    pub cwd: String,
    /// As docker's --user.
    #[prost(string, tag = "6")]
    pub user: String,
    /// Signal number that asks it to end.
    #[prost(int32, tag = "7")]
    pub stop_signal: i32,
    /// Of its UTS namespace.
    #[prost(string, tag = "8")]
    pub hostname: String,
    /// Volumes with their host path as `source`.
    #[prost(message, repeated, tag = "9")]
    pub mounts: Vec<MountSpec>,
    /// Volume name by target.
    #[prost(map = "string, string", tag = "10")]
    pub volumes: HashMap<String, String>,
    /// Volumes that go with the container.
    #[prost(string, repeated, tag = "11")]
    pub anonymous_volumes: Vec<String>,
    /// "80/tcp", from the image.
    #[prost(string, repeated, tag = "12")]
    pub exposed: Vec<String>,
    /// The image's and the user's.
    #[prost(map = "string, string", tag = "13")]
    pub labels: HashMap<String, String>,
    /// Normalised name of the image.
    #[prost(string, tag = "14")]
    pub image_name: String,
    /// Digest of its config.
    #[prost(string, tag = "15")]
    pub image_id: String,
    /// Digest of its manifest.
    #[prost(string, tag = "16")]
    pub image_manifest: String,
    /// Mounts of the root file system.
    #[prost(message, repeated, tag = "17")]
    pub root: Vec<RootMount>,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "18")]
    pub created_at: i64,
    /// The caller's key.
    #[prost(string, tag = "19")]
    pub idempotency_key: String,
}

/// How a container ran last, and whether it should run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RunRecord {
    /// It should run: set by a start, cleared by a stop.
    #[prost(bool, tag = "1")]
    pub wanted: bool,
    /// It ended, or a start failed.
    #[prost(bool, tag = "2")]
    pub ended: bool,
    /// Its removal has begun.
    #[prost(bool, tag = "3")]
    pub removing: bool,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "4")]
    pub started_at: i64,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "5")]
    pub finished_at: i64,
    /// The process's own, or 128 + signal, or docker's 125 to 127.
    #[prost(int32, tag = "6")]
    pub exit_code: i32,
    /// The kernel killed for want of memory.
    #[prost(bool, tag = "7")]
    pub oom_killed: bool,
    /// Why a start failed.
    #[prost(string, tag = "8")]
    pub error: String,
    /// Starts by the restart policy.
    #[prost(int32, tag = "9")]
    pub restart_count: i32,
}
