//! Manifests, indexes and configs, as far as a pull has to understand them. Pure.
//!
//! Invariants: a document is believed only under its digest; numbers of entries are bounded; docker's and OCI's forms are the same
//! here. Sources: OCI image specification, manifest.md, image-index.md, config.md; docker's schema 2.

use gantry_types::{Digest, Platform};
use serde::Deserialize;
use sha2::Digest as _;

/// Most layers of an image; overlayfs stacks no more.
const MOST_LAYERS: usize = 500;
/// Most entries of an index.
const MOST_ENTRIES: usize = 1000;
/// Largest config, bytes.
pub const MOST_CONFIG: u64 = 8 << 20;

/// A piece of content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// As the document says.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Of the image.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
    /// What it is, when it is no image.
    pub artifact_type: String,
}

impl Manifest {
    /// Whether it can be run; else it is an artifact, whose layers are files of any kind.
    pub fn is_image(&self) -> bool {
        let config = self.config.media_type.as_str();
        let known = [
            "",
            "application/octet-stream",
            oci_distribution::manifest::IMAGE_CONFIG_MEDIA_TYPE,
            oci_distribution::manifest::IMAGE_DOCKER_CONFIG_MEDIA_TYPE,
        ];
        self.artifact_type.is_empty() && known.contains(&config)
    }
}

/// What a tag leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Vec<(Descriptor, Option<Platform>)>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    artifact_type: String,
    config: Option<JsonDescriptor>,
    #[serde(default)]
    layers: Option<Vec<JsonDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<JsonDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<JsonPlatform>,
}

#[derive(Deserialize)]
struct JsonPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

fn descriptor(json: JsonDescriptor) -> Result<Descriptor, String> {
    Ok(Descriptor {
        digest: json.digest.parse().map_err(|error| format!("{error}"))?,
        media_type: json.media_type,
        size: json.size,
    })
}

/// Reads a manifest or an index.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Document, String> {
    let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if json.schema_version == 1 {
        return Err("it is of docker's schema 1, which was retired in 2017; push the image again with a current client".into());
    }
    if let Some(manifests) = json.manifests {
        if manifests.len() > MOST_ENTRIES {
            return Err(format!("it lists more than {MOST_ENTRIES} images"));
        }
        let mut entries = Vec::new();
        for mut entry in manifests {
            let platform = entry.platform.take().map(|platform| {
                Platform::new(&platform.os, &platform.architecture, &platform.variant)
            });
            entries.push((descriptor(entry)?, platform));
        }
        return Ok(Document::Index(entries));
    }
    let config = json
        .config
        .ok_or("it has neither a config nor a list of images")?;
    let layers = json.layers.unwrap_or_default();
    if layers.len() > MOST_LAYERS {
        return Err(format!("it has more than {MOST_LAYERS} layers"));
    }
    let layers: Result<Vec<Descriptor>, String> = layers.into_iter().map(descriptor).collect();
    let manifest = Manifest {
        config: descriptor(config)?,
        layers: layers?,
        artifact_type: json.artifact_type,
    };
    if manifest.config.size > MOST_CONFIG {
        return Err(format!(
            "its config is larger than {} MiB",
            MOST_CONFIG >> 20
        ));
    }
    let foreign = |layer: &&Descriptor| {
        layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable")
    };
    if let Some(layer) = manifest.layers.iter().find(foreign) {
        return Err(format!(
            "layer {} is not distributed by registries",
            layer.digest
        ));
    }
    Ok(Document::Manifest(manifest))
}

/// The entry of an index for a platform: the first that fits, an exact variant before others.
pub fn choose<'a>(
    entries: &'a [(Descriptor, Option<Platform>)],
    wanted: &Platform,
) -> Option<&'a Descriptor> {
    let fitting = |exact: bool| {
        entries.iter().find(|(_, platform)| {
            platform.as_ref().is_some_and(|platform| {
                wanted.matches(platform) && (!exact || platform.variant == wanted.variant)
            })
        })
    };
    fitting(true)
        .or_else(|| fitting(false))
        .map(|(descriptor, _)| descriptor)
}

/// The platforms of an index, for an error message.
pub fn platforms(entries: &[(Descriptor, Option<Platform>)]) -> String {
    let known: Vec<String> = entries
        .iter()
        .filter_map(|(_, platform)| Some(platform.as_ref()?.to_string()))
        .filter(|platform| !platform.starts_with("unknown"))
        .collect();
    if known.is_empty() {
        "no platform that it names".into()
    } else {
        known.join(", ")
    }
}

/// The part of a config that a pull needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the image is for.
    pub platform: Platform,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct JsonConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    rootfs: JsonRootfs,
}

#[derive(Deserialize, Default)]
struct JsonRootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Reads a config.
///
/// # Errors
/// What is wrong with it.
pub fn config(bytes: &[u8]) -> Result<Config, String> {
    let json: JsonConfig = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let diff_ids: Result<Vec<Digest>, _> = json
        .rootfs
        .diff_ids
        .iter()
        .map(|text| text.parse())
        .collect();
    Ok(Config {
        platform: Platform::new(&json.os, &json.architecture, &json.variant),
        diff_ids: diff_ids.map_err(|error| error.to_string())?,
    })
}

/// Whether bytes have a digest.
pub fn has_digest(bytes: &[u8], digest: &Digest) -> bool {
    let got = match digest.algorithm() {
        gantry_types::Algorithm::Sha256 => hex::encode(sha2::Sha256::digest(bytes)),
        gantry_types::Algorithm::Sha512 => hex::encode(sha2::Sha512::digest(bytes)),
    };
    got == digest.hex()
}

/// The digest under which a document is stored.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(architecture: &str, variant: &str, fill: char) -> (Descriptor, Option<Platform>) {
        let descriptor = Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", fill.to_string().repeat(64))
                .parse()
                .unwrap(),
            size: 1,
        };
        (
            descriptor,
            Some(Platform::new("linux", architecture, variant)),
        )
    }

    #[test]
    fn the_best_fit_is_chosen() {
        let entries = [
            entry("arm", "v6", 'a'),
            entry("arm", "v7", 'b'),
            entry("amd64", "", 'c'),
        ];
        let pick = |architecture, variant| {
            choose(&entries, &Platform::new("linux", architecture, variant))
                .map(|descriptor| descriptor.digest.hex().chars().next().unwrap())
        };
        assert_eq!(pick("arm", "v7"), Some('b'));
        assert_eq!(pick("amd64", ""), Some('c'));
        assert_eq!(pick("riscv64", ""), None);
        assert!(platforms(&entries).contains("linux/arm/v7"));
    }

    #[test]
    fn documents_are_read_or_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = format!(r#"{{"mediaType":"l","digest":"{digest}","size":5}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#);
        assert!(
            matches!(parse(manifest.as_bytes()), Ok(Document::Manifest(m)) if m.layers.len() == 1)
        );
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{layer}]}}"#);
        assert!(
            matches!(parse(index.as_bytes()), Ok(Document::Index(entries)) if entries.len() == 1)
        );
        let many = format!(
            r#"{{"schemaVersion":2,"config":{layer},"layers":[{}]}}"#,
            vec![layer.clone(); 501].join(",")
        );
        for bad in [
            "{\"layers\": 3",
            "{}",
            r#"{"schemaVersion":1}"#,
            &many,
            &manifest.replace("sha256:", "md5:"),
            &manifest.replace(":5", ":-5"),
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }
}
