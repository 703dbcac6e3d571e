//! The documents of an archive: `oci-layout`, `index.json`, `manifest.json`. Pure.
//!
//! Invariant: what is written is sorted and has no times, so that equal images give equal bytes.

use gantry_types::Reference;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::manifest::Descriptor;

/// Full name of an image (containerd's annotation).
const FULL_NAME: &str = "io.containerd.image.name";
/// Name or tag (OCI image specification, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image that is written or was read.
#[derive(Debug, Clone)]
pub struct Named {
    /// Normalised; `None` = it has none.
    pub name: Option<String>,
    /// Index or manifest.
    pub target: Descriptor,
}

/// `oci-layout`.
pub fn marker() -> Vec<u8> {
    br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()
}

fn media_type(target: &Descriptor) -> &str {
    match target.media_type.as_str() {
        "" => "application/vnd.oci.image.manifest.v1+json",
        known => known,
    }
}

/// `index.json`.
pub fn index(images: &[Named]) -> Vec<u8> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut entry = json!({
                "mediaType": media_type(&image.target),
                "digest": image.target.digest.to_string(),
                "size": image.target.size,
            });
            if let Some(platform) = &image.target.platform {
                let mut value = json!({
                    "architecture": platform.architecture,
                    "os": platform.os,
                });
                if !platform.variant.is_empty() {
                    value["variant"] = json!(platform.variant);
                }
                entry["platform"] = value;
            }
            if let Some(name) = &image.name {
                let tag = name
                    .parse::<Reference>()
                    .ok()
                    .and_then(|reference| reference.tag().map(str::to_owned));
                entry["annotations"] = json!({FULL_NAME: name});
                if let Some(tag) = tag {
                    entry["annotations"][REF_NAME] = json!(tag);
                }
            }
            entry
        })
        .collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    index.to_string().into_bytes()
}

/// One entry of `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    /// Path of the config.
    pub config: String,
    /// As users type them.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// Paths, lowest first.
    #[serde(default)]
    pub layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    annotations: Option<std::collections::HashMap<String, String>>,
}

/// Reads `index.json`: what it lists, with names where there are whole ones.
///
/// # Errors
/// What is wrong with it.
pub fn read_index(bytes: &[u8]) -> Result<Vec<Named>, String> {
    let index: Index = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let each = index.manifests.into_iter().map(|entry| {
        let annotations = entry.annotations.unwrap_or_default();
        // A bare tag names nothing; a reference has a repository.
        let whole = annotations.get(FULL_NAME).or_else(|| {
            annotations
                .get(REF_NAME)
                .filter(|name| name.contains(['/', ':']))
        });
        let name = match whole {
            Some(text) => {
                let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
                Some(reference.to_string())
            }
            None => None,
        };
        Ok(Named {
            name,
            target: Descriptor {
                media_type: entry.media_type,
                digest: entry.digest.parse().map_err(|error| format!("{error}"))?,
                size: entry.size,
                platform: None,
            },
        })
    });
    each.collect()
}

/// Reads `manifest.json`.
///
/// # Errors
/// What is wrong with it.
pub fn read_docker(bytes: &[u8]) -> Result<Vec<DockerImage>, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// The manifest of an image that came as an old docker archive, which has none.
pub fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    let descriptor = |from: &Descriptor| {
        json!({
            "mediaType": from.media_type,
            "digest": from.digest.to_string(),
            "size": from.size,
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(config),
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}
