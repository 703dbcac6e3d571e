//! `commit`: a container's changes and settings as an image.
//!
//! Invariants: the container stands still while its changes are packed, unless that was not wanted, and goes on whatever happens here;
//! its settings are those that it was made with, over its image's. Source: docker commit's reference.

use gantry_types::Reference;
use serde_json::json;

use crate::change;
use crate::document::{Image, Step};
use crate::error::Error;
use crate::peers::{Peers, Set};

/// Repository of images that have no name, each under its digest.
const DANGLING: &str = "localhost/dangling";

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Id or name.
    pub container: String,
    /// Empty = none.
    pub reference: String,
    /// For the history.
    pub author: String,
    /// For the history.
    pub message: String,
    /// Instructions.
    pub changes: Vec<String>,
    /// Do not freeze it.
    pub no_pause: bool,
}

/// An image that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// Normalised.
    pub name: String,
    /// Digest of the config.
    pub id: String,
    /// Of the manifest.
    pub digest: String,
}

/// RFC 3339, with nanoseconds.
pub fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// The normalised name that was given, `None` = none was.
///
/// # Errors
/// When it is no name, or names a digest.
pub fn name(reference: &str) -> Result<Option<String>, Error> {
    if reference.is_empty() {
        return Ok(None);
    }
    let parsed: Reference = reference.parse()?;
    if parsed.digest().is_some() {
        return Err(Error::Change {
            line: reference.to_owned(),
            reason: "a new image has no digest yet; name it by a tag".into(),
        });
    }
    Ok(Some(parsed.to_string()))
}

/// Stores the documents of an image and gives it its name.
///
/// # Errors
/// When the store fails.
pub async fn finish(
    peers: &Peers,
    image: &Image,
    name: Option<String>,
    lease: &str,
) -> Result<Made, Error> {
    let (config, manifest, media_type) = image.write()?;
    peers.keep(&config, lease).await?;
    peers.keep(&manifest, lease).await?;
    let name = name.unwrap_or_else(|| format!("{DANGLING}@{}", manifest.digest));
    let name = peers.name(&name, &manifest, media_type).await?;
    Ok(Made {
        name,
        id: config.digest.to_string(),
        digest: manifest.digest.to_string(),
    })
}

fn merge(image: &mut Image, set: &Set) {
    let settings = image.settings();
    for pair in &set.env {
        if let Some((key, value)) = pair.split_once('=') {
            change::set_env(settings, key, value);
        }
    }
    if let Some(entrypoint) = &set.entrypoint {
        settings.insert("Entrypoint".into(), json!(entrypoint));
        settings.remove("Cmd");
    }
    if !set.command.is_empty() {
        settings.insert("Cmd".into(), json!(set.command));
    }
    if !set.workdir.is_empty() {
        settings.insert("WorkingDir".into(), json!(set.workdir));
    }
    if !set.user.is_empty() {
        settings.insert("User".into(), json!(set.user));
    }
    for (key, value) in &set.labels {
        let labels = settings
            .entry("Labels".to_owned())
            .or_insert_with(|| json!({}));
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(key.clone(), json!(value));
        }
    }
}

/// Makes the image.
///
/// # Errors
/// [`Error`].
pub async fn commit(peers: &Peers, wanted: &Wanted) -> Result<Made, Error> {
    let name = name(&wanted.reference)?;
    // A wrong instruction is found before anything is packed.
    let mut scratch = serde_json::Map::new();
    for line in &wanted.changes {
        change::apply(&mut scratch, line)?;
    }
    let source = peers.container(&wanted.container).await?;
    let lease = format!("commit-{:016x}", rand::random::<u64>());
    peers
        .hold(&lease, vec![source.manifest.to_string()])
        .await?;
    let result = async {
        let (config, manifest) = (
            peers.read(&source.config).await?,
            peers.read(&source.manifest).await?,
        );
        let mut image = Image::read(&config, &manifest).map_err(|reason| Error::Document {
            digest: source.manifest.clone(),
            reason,
        })?;
        let frozen = if source.running && !wanted.no_pause {
            Some(peers.freeze(&source.id).await?)
        } else {
            None
        };
        let layer = peers.commit(&source.id, &lease).await;
        drop(frozen);
        merge(&mut image, &source.set);
        for line in &wanted.changes {
            change::apply(image.settings(), line)?;
        }
        let step = Step {
            created_by: source.args.join(" "),
            author: wanted.author.clone(),
            comment: wanted.message.clone(),
        };
        image.add(&layer?, &step, &now());
        finish(peers, &image, name, &lease).await
    }
    .await;
    if let Err(fault) = peers.release(&lease).await {
        tracing::debug!(%fault, "the lease ends by itself");
    }
    result
}
