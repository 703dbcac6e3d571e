//! Records to wire values.

use gantry_proto::snapshotter as pb;
use gantry_proto::types::{Descriptor, Mount};
use gantry_types::Digest;

use crate::error::Error;
use crate::files::Files;
use crate::peers::Stored;
use crate::schema::{LayerRecord, SnapshotRecord, VolumeRecord};
use crate::snapshot;

/// Nanoseconds since 1970 as a timestamp.
fn timestamp(nanos: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

/// A layer.
pub fn layer(diff_id: &Digest, record: &LayerRecord) -> pb::Layer {
    pb::Layer {
        diff_id: diff_id.to_string(),
        blob_digest: record.blob.clone(),
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        inodes: i64::try_from(record.inodes).unwrap_or(i64::MAX),
    }
}

/// A snapshot with its mounts.
///
/// # Errors
/// When the record holds no digest.
pub fn snapshot(files: &Files, key: &str, record: SnapshotRecord) -> Result<pb::Snapshot, Error> {
    let mounts = snapshot::mounts(files, key, &record)?;
    Ok(pb::Snapshot {
        key: key.to_owned(),
        layers: record.layers,
        holder: record.holder,
        readonly: record.readonly,
        mounts: mounts
            .into_iter()
            .map(|mount| Mount {
                r#type: mount.kind.to_owned(),
                source: mount.source,
                target: String::new(),
                options: mount.options,
            })
            .collect(),
        created_at: Some(timestamp(record.created_at)),
    })
}

/// A volume.
pub fn volume(files: &Files, name: &str, record: VolumeRecord) -> pb::Volume {
    pb::Volume {
        name: name.to_owned(),
        path: files
            .volume(name)
            .join("data")
            .to_string_lossy()
            .into_owned(),
        labels: record.labels,
        anonymous: record.anonymous,
        created_at: Some(timestamp(record.created_at)),
        users: record.users,
    }
}

/// The answer to a commit.
pub fn committed(stored: &Stored, diff_id: &Digest) -> pb::CommitResponse {
    pb::CommitResponse {
        blob: Some(Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: stored.digest.to_string(),
            size: stored.size,
            ..Descriptor::default()
        }),
        diff_id: diff_id.to_string(),
    }
}
