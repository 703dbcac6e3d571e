//! The documents of an image that is made: config and manifest. Pure.
//!
//! Invariants: what is built upon keeps its form, docker's or OCI's, and every field that we do not know; a step that made a layer is
//! in the history. Sources: OCI image specification, config.md and manifest.md; docker's schema 2.

use gantry_types::{Digest, Platform};
use serde_json::{Map, Value, json};
use sha2::Digest as _;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layer that is new.
#[derive(Debug, Clone)]
pub struct Layer {
    /// OCI's.
    pub media_type: String,
    /// Of the blob.
    pub digest: Digest,
    /// Bytes of it.
    pub size: u64,
    /// Of the unpacked tar.
    pub diff_id: Digest,
}

/// What a step says of itself.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// What was done.
    pub created_by: String,
    /// Who did it.
    pub author: String,
    /// Why.
    pub comment: String,
}

/// A document with its name.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Of them.
    pub digest: Digest,
}

impl Document {
    fn of(value: &Value) -> Result<Self, gantry_types::DigestError> {
        let bytes = value.to_string().into_bytes();
        let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes))).parse()?;
        Ok(Self { bytes, digest })
    }
}

/// An image that is changed: its config and its manifest.
#[derive(Debug, Clone)]
pub struct Image {
    config: Map<String, Value>,
    layers: Vec<Value>,
    docker: bool,
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Image {
    /// An image of nothing.
    pub fn empty(platform: &Platform) -> Self {
        let mut config = object(json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        }));
        if !platform.variant.is_empty() {
            config.insert("variant".into(), json!(platform.variant));
        }
        Self {
            config,
            layers: Vec::new(),
            docker: false,
        }
    }

    /// From stored documents.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(config: &[u8], manifest: &[u8]) -> Result<Self, String> {
        let config: Value = serde_json::from_slice(config).map_err(|error| error.to_string())?;
        let manifest: Value =
            serde_json::from_slice(manifest).map_err(|error| error.to_string())?;
        let layers = manifest["layers"].as_array().cloned();
        Ok(Self {
            docker: manifest["mediaType"] == DOCKER_MANIFEST,
            layers: layers.ok_or("it has no layers")?,
            config: object(config),
        })
    }

    /// The settings of containers.
    pub fn settings(&mut self) -> &mut Map<String, Value> {
        let entry = self
            .config
            .entry("config".to_owned())
            .or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        match entry {
            Value::Object(map) => map,
            // Just made one.
            _ => unreachable!(),
        }
    }

    /// Puts a layer on top, and says who made it.
    pub fn add(&mut self, layer: &Layer, step: &Step, now: &str) {
        let media_type = if self.docker && layer.media_type.ends_with("+gzip") {
            DOCKER_LAYER
        } else {
            &layer.media_type
        };
        self.layers.push(json!({
            "mediaType": media_type,
            "digest": layer.digest.to_string(),
            "size": layer.size,
        }));
        let rootfs = self
            .config
            .entry("rootfs".to_owned())
            .or_insert_with(|| json!({"type": "layers", "diff_ids": []}));
        if let Some(ids) = rootfs["diff_ids"].as_array_mut() {
            ids.push(json!(layer.diff_id.to_string()));
        }
        let mut entry = json!({"created": now, "created_by": step.created_by});
        if !step.author.is_empty() {
            entry["author"] = json!(step.author);
        }
        if !step.comment.is_empty() {
            entry["comment"] = json!(step.comment);
        }
        let history = self
            .config
            .entry("history".to_owned())
            .or_insert_with(|| json!([]));
        if let Some(steps) = history.as_array_mut() {
            steps.push(entry);
        }
        self.config.insert("created".into(), json!(now));
        if !step.author.is_empty() {
            self.config.insert("author".into(), json!(step.author));
        }
        // What docker's older builder left about the container that it built with.
        self.config.remove("container");
        self.config.remove("container_config");
    }

    /// Config and manifest, and the manifest's media type.
    ///
    /// # Errors
    /// Never in fact: a hash is a digest.
    pub fn write(&self) -> Result<(Document, Document, &'static str), gantry_types::DigestError> {
        let config = Document::of(&Value::Object(self.config.clone()))?;
        let (manifest_type, config_type) = if self.docker {
            (DOCKER_MANIFEST, DOCKER_CONFIG)
        } else {
            (OCI_MANIFEST, OCI_CONFIG)
        };
        let manifest = Document::of(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {
                "mediaType": config_type,
                "digest": config.digest.to_string(),
                "size": config.bytes.len(),
            },
            "layers": self.layers,
        }))?;
        Ok((config, manifest, manifest_type))
    }
}
