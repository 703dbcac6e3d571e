//! Wire values to plain ones and back, at the border only.

use gantry_proto::{store as pb, types};
use gantry_types::{Digest, Platform};

use crate::Error;
use crate::blob::Files;
use crate::check;
use crate::index::Blob;
use crate::manifest::Descriptor;
use crate::resolve::{Facts, Resolved, Summary};
use crate::schema::ImageRecord;
use crate::tree::Member;

pub(crate) fn digest(text: &str) -> Result<Option<Digest>, Error> {
    if text.is_empty() {
        Ok(None)
    } else {
        Ok(Some(text.parse()?))
    }
}

pub(crate) fn size(value: i64) -> Result<u64, Error> {
    u64::try_from(value).map_err(|_| Error::Field {
        field: "size",
        reason: format!("{value} is negative"),
    })
}

pub(crate) fn platform(platform: Option<types::Platform>) -> Platform {
    platform.map_or_else(Platform::host, Platform::from)
}

pub(crate) fn from_descriptor(wire: types::Descriptor) -> Result<Descriptor, Error> {
    Ok(Descriptor {
        media_type: wire.media_type,
        digest: wire.digest.parse()?,
        size: wire.size,
        platform: wire.platform.map(Platform::from),
    })
}

pub(crate) fn to_descriptor(plain: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: plain.media_type.clone(),
        digest: plain.digest.to_string(),
        size: plain.size,
        platform: plain.platform.clone().map(Into::into),
        ..types::Descriptor::default()
    }
}

pub(crate) fn to_member(plain: Member) -> pb::ImageMember {
    pb::ImageMember {
        descriptor: Some(to_descriptor(&plain.at)),
        parent: plain
            .parent
            .map_or(String::new(), |digest| digest.to_string()),
        index: plain.index,
        attestation: plain.attestation,
        held: plain.held,
        artifact_type: plain.artifact_type,
        config: plain.config.as_ref().map(to_descriptor),
        layers: plain
            .layers
            .iter()
            .map(|(layer, id)| pb::Layer {
                blob: Some(to_descriptor(layer)),
                diff_id: id.as_ref().map_or(String::new(), ToString::to_string),
            })
            .collect(),
        held_bytes: i64::try_from(plain.held_bytes).unwrap_or(i64::MAX),
    }
}

pub(crate) fn to_finding(plain: check::Finding) -> pb::Finding {
    let kind = match plain.kind {
        check::Kind::Lost => pb::FindingKind::Lost,
        check::Kind::Corrupt => pb::FindingKind::Corrupt,
        check::Kind::Unknown => pb::FindingKind::Unknown,
        check::Kind::Incomplete => pb::FindingKind::Incomplete,
        check::Kind::Abandoned => pb::FindingKind::Abandoned,
    };
    pb::Finding {
        kind: kind.into(),
        subject: plain.subject,
        problem: plain.problem,
        remedy: plain.remedy,
        repaired: plain.repaired,
        bytes: bytes(plain.bytes),
    }
}

fn bytes(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn to_usage(plain: check::Usage) -> pb::Usage {
    pb::Usage {
        images: plain
            .images
            .into_iter()
            .map(|image| pb::ImageUsage {
                name: image.name,
                id: image.id,
                total_bytes: bytes(image.total),
                unique_bytes: bytes(image.unique),
            })
            .collect(),
        total_bytes: bytes(plain.total),
        blobs: bytes(plain.blobs as u64),
        unreachable_bytes: bytes(plain.unreachable),
    }
}

pub(crate) fn timestamp(nanoseconds: i64) -> Option<prost_types::Timestamp> {
    let nanos = i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0);
    Some(prost_types::Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos,
    })
}

pub(crate) fn to_blob(files: &Files, blob: &Blob) -> pb::BlobInfo {
    pb::BlobInfo {
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        path: files.blob(&blob.digest).to_string_lossy().into_owned(),
    }
}

pub(crate) fn to_image(name: String, record: ImageRecord) -> pb::Image {
    pb::Image {
        name,
        target: Some(types::Descriptor {
            media_type: record.media_type,
            digest: record.digest,
            size: record.size,
            ..types::Descriptor::default()
        }),
        labels: record.labels,
        created_at: timestamp(record.created_at),
        updated_at: timestamp(record.updated_at),
    }
}

pub(crate) fn to_summary(summary: Summary) -> pb::ImageSummary {
    let mut wire = pb::ImageSummary {
        image: Some(to_image(summary.name, summary.record)),
        ..Default::default()
    };
    if let Some(resolved) = summary.resolved
        && let Facts::Manifest {
            config,
            layers,
            platform,
            created,
            labels,
            ..
        } = &*resolved.facts
    {
        wire.manifest_digest = resolved.manifest.digest.to_string();
        wire.id = config.digest.to_string();
        wire.size = layers.iter().map(|(layer, _)| layer.size).sum::<i64>()
            + config.size
            + resolved.manifest.size;
        wire.platform = Some(platform.clone().into());
        wire.config_labels.clone_from(labels);
        wire.built_at = created.as_ref().and_then(|text| text.parse().ok());
    }
    wire
}

pub(crate) fn to_resolved(resolved: &Resolved, config_json: Vec<u8>) -> pb::ResolvedImage {
    let mut wire = pb::ResolvedImage {
        name: resolved.name.clone(),
        target: Some(to_descriptor(&resolved.target)),
        manifest: Some(to_descriptor(&resolved.manifest)),
        ..pb::ResolvedImage::default()
    };
    if let Facts::Manifest { config, layers, .. } = &*resolved.facts {
        wire.config = Some(to_descriptor(config));
        wire.config_json = config_json;
        let layer = |(blob, id): &(Descriptor, Digest)| pb::Layer {
            blob: Some(to_descriptor(blob)),
            diff_id: id.to_string(),
        };
        wire.layers = layers.iter().map(layer).collect();
    }
    wire
}
