//! Images as tar streams: `save` and `load`.
//!
//! Invariants: a stream is never held in memory; what goes out is deterministic, an OCI image layout and a docker archive at once; what
//! comes in is verified blob by blob, and names appear last, so a broken archive leaves only blobs that the collector takes.
//! Sources: OCI image specification, image-layout.md; docker's image specification v1.2, "Combined Image JSON + Filesystem
//! Changeset Format".

pub(crate) mod export;
pub(crate) mod import;
mod layout;

/// Repository of images that have no name, each under its digest.
pub(crate) const DANGLING: &str = "localhost/dangling";
/// Holder of the leases of streams; those of an earlier run are dropped at start.
pub(crate) const OWN_LEASES: &str = "store";
