//! Manifests and indexes, OCI and Docker (OCI image specification, "Image Manifest", "Image Index").
//!
//! Invariants: a document is at most 4 MiB; what it refers to is a list of valid digests or the document is refused.

use gantry_types::{Digest, Platform};
use serde::Deserialize;

/// Largest manifest, index or config that is read (the distribution specification asks registries for 4 MiB).
pub const LARGEST: u64 = 4 << 20;

/// A reference to content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// How to read it.
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: i64,
    /// For entries of an index.
    pub platform: Option<Platform>,
}

/// What a document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several platforms.
    Index(Vec<Descriptor>),
    /// One platform.
    Manifest {
        /// Image config.
        config: Descriptor,
        /// Lowest first.
        layers: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: i64,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: i64,
    #[serde(default)]
    artifact_type: String,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

fn descriptor(raw: RawDescriptor) -> Result<Descriptor, String> {
    if raw.size < 0 {
        return Err(format!("size {} of {} is negative", raw.size, raw.digest));
    }
    Ok(Descriptor {
        digest: raw.digest.parse().map_err(|error| format!("{error}"))?,
        media_type: raw.media_type,
        size: raw.size,
        platform: raw
            .platform
            .map(|p| Platform::new(&p.os, &p.architecture, &p.variant)),
    })
}

/// An attestation rides in an index beside the platforms (BuildKit); it is no image to run.
fn is_attestation(raw: &RawDescriptor) -> bool {
    raw.annotations.contains_key("vnd.docker.reference.type")
        || raw
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
}

/// Reads a document by its shape, since media types of old registries are not to be trusted.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Document, String> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    match raw {
        Raw { manifests: Some(_), layers: Some(_), .. } | Raw { manifests: Some(_), config: Some(_), .. } => {
            Err("both an index and a manifest; such a document means different things to different readers".into())
        }
        Raw { manifests: Some(manifests), .. } => {
            let entries = manifests.into_iter().filter(|entry| !is_attestation(entry)).map(descriptor);
            Ok(Document::Index(entries.collect::<Result<_, _>>()?))
        }
        Raw { config: Some(config), layers: Some(layers), .. } => Ok(Document::Manifest {
            config: descriptor(config)?,
            layers: layers.into_iter().map(descriptor).collect::<Result<_, _>>()?,
        }),
        Raw { schema_version: 1, .. } => {
            Err("a schema 1 manifest, which registries have given up; push the image again with a current tool".into())
        }
        _ => Err("neither a manifest nor an index".into()),
    }
}

/// One entry of an index, attestations too.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it names.
    pub at: Descriptor,
    /// No image to run, but something about one.
    pub attestation: bool,
}

/// A document with everything that it names.
#[derive(Debug, Clone)]
pub enum Whole {
    /// Of an index.
    Index(Vec<Entry>),
    /// Of a manifest.
    Manifest {
        /// Image config, or an artifact's.
        config: Descriptor,
        /// Lowest first.
        layers: Vec<Descriptor>,
        /// What it is, when it is no image.
        artifact_type: String,
    },
}

/// Reads a document with its attestations and kinds.
///
/// # Errors
/// What is wrong with it.
pub fn parse_whole(bytes: &[u8]) -> Result<Whole, String> {
    // The shape is checked in one place.
    parse(bytes)?;
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    if let Some(manifests) = raw.manifests {
        let entries = manifests.into_iter().map(|entry| {
            Ok(Entry {
                attestation: is_attestation(&entry),
                at: descriptor(entry)?,
            })
        });
        return Ok(Whole::Index(entries.collect::<Result<_, String>>()?));
    }
    let config = raw.config.ok_or("it has no config")?;
    let layers = raw.layers.unwrap_or_default().into_iter().map(descriptor);
    Ok(Whole::Manifest {
        config: descriptor(config)?,
        layers: layers.collect::<Result<_, _>>()?,
        artifact_type: raw.artifact_type,
    })
}

/// Every digest that a document names, attestations too: what must be kept with it.
pub fn children(bytes: &[u8]) -> Vec<Digest> {
    let Ok(raw) = serde_json::from_slice::<Raw>(bytes) else {
        return Vec::new();
    };
    let all = raw
        .config
        .into_iter()
        .chain(raw.layers.into_iter().flatten())
        .chain(raw.manifests.into_iter().flatten());
    all.filter_map(|entry| entry.digest.parse().ok()).collect()
}

/// The parts of an image config that the store needs.
#[derive(Debug, Deserialize)]
pub struct ConfigFacts {
    /// When it was built, RFC 3339.
    pub created: Option<String>,
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    rootfs: RootFs,
    #[serde(default)]
    config: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(default)]
    labels: Option<std::collections::HashMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl ConfigFacts {
    /// Reads a config.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<ConfigFacts, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("not an image config: {error}"))
    }

    /// The image's labels.
    pub fn labels(&self) -> std::collections::HashMap<String, String> {
        self.config.labels.clone().unwrap_or_default()
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }

    /// Digests of the uncompressed layers, lowest first.
    ///
    /// # Errors
    /// When one is no digest, or there is not one a layer.
    pub fn diff_ids(&self, layers: usize) -> Result<Vec<Digest>, String> {
        if self.rootfs.diff_ids.len() != layers {
            return Err(format!(
                "the config has {} diff_ids for {layers} layers",
                self.rootfs.diff_ids.len()
            ));
        }
        self.rootfs
            .diff_ids
            .iter()
            .map(|id| id.parse().map_err(|error| format!("{error}")))
            .collect()
    }
}
