//! Questions to a registry that move no image: whether it knows us, which tags there are, what refers to an image.
//!
//! Invariants: lists are bounded; a registry without the referrers API is asked by its fallback tag.
//! Source: OCI distribution specification v1.1, "Listing Tags", "Listing Referrers", "Unavailable Referrers API".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_types::{Digest, Reference};
use reqwest::Method;
use serde::Deserialize;

use crate::clients::Clients;
use crate::config::Config;
use crate::credentials::{self, Credentials};
use crate::document::{self, Descriptor};
use crate::error::Error;
use crate::hosts;
use crate::remote::Remote;
use crate::remotes::{Access, Remotes};

/// Most pages of a list that are read.
const MOST_PAGES: usize = 1000;
/// Most entries of a list.
const MOST_ENTRIES: usize = 100_000;

/// Something that refers to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// Its manifest.
    pub at: Descriptor,
    /// What it is.
    pub artifact_type: String,
    /// The maker's.
    pub annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonReferrer {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct JsonIndex {
    #[serde(default)]
    manifests: Vec<JsonReferrer>,
}

#[derive(Deserialize)]
struct JsonTags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// Asks registries.
pub struct Asker {
    config: Config,
    clients: Arc<Clients>,
}

impl Asker {
    /// Nothing is connected yet.
    pub fn new(config: Config, clients: Arc<Clients>) -> Arc<Self> {
        Arc::new(Self { config, clients })
    }

    async fn remotes(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        plain_http: bool,
    ) -> Result<Remotes, Error> {
        let access = Access {
            actions: "pull",
            credentials,
            plain_http,
        };
        Remotes::new(&self.config, &self.clients, reference, &access).await
    }

    /// Whether a registry takes credentials; those of the files when none are given.
    ///
    /// # Errors
    /// [`Error::Denied`] when it does not, others when it cannot be asked.
    pub async fn login(
        &self,
        registry: &str,
        given: Option<Credentials>,
        plain_http: bool,
    ) -> Result<(), Error> {
        // The repository is only there to find the registry's endpoints.
        let reference: Reference = format!("{registry}/login").parse()?;
        let stall = Duration::from_secs(self.config.stall_timeout_seconds);
        let mut last = None;
        for endpoint in hosts::route(&self.config, &reference, plain_http)? {
            if endpoint.registry != reference.registry() {
                continue;
            }
            let credentials = match &given {
                Some(given) => given.clone(),
                None => credentials::find(registry, "").await?,
            };
            let http = self.clients.get(endpoint.tls.as_ref())?;
            let url = format!("{}/", endpoint.base);
            let remote = Remote::for_login(http, endpoint, registry, credentials, stall);
            let asked = remote
                .send(Method::GET, &url, "login", |request| request)
                .await;
            match asked {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => return Err(remote.refused("login", response).await),
                Err(error) if error.is_passing() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Unsupported {
            image: registry.to_owned(),
            reason: "the files of hosts name no endpoint for it".into(),
        }))
    }

    /// Tags of a repository, sorted.
    ///
    /// # Errors
    /// When there is none, or the registry cannot be asked.
    pub async fn tags(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
    ) -> Result<(String, Vec<String>), Error> {
        let reference: Reference = reference.parse()?;
        let remotes = self.remotes(&reference, credentials, plain_http).await?;
        let mut tags: Vec<String> = Vec::new();
        let mut path = "tags/list?n=1000".to_owned();
        for _ in 0..MOST_PAGES {
            let page = remotes.read(false, &path, "list of tags").await?;
            let read: JsonTags = serde_json::from_slice(&page.bytes)
                .map_err(|error| wrong(&reference, "list of tags", &error.to_string()))?;
            let new = read.tags.unwrap_or_default();
            let last = new.last().cloned();
            tags.extend(new);
            // The address of the next page is the registry's business; `last` means the same everywhere.
            match (page.next, last) {
                (true, Some(last)) if tags.len() < MOST_ENTRIES => {
                    path = format!("tags/list?n=1000&last={last}");
                }
                _ => break,
            }
        }
        tags.sort();
        tags.dedup();
        Ok((reference.name(), tags))
    }

    /// What refers to an image.
    ///
    /// # Errors
    /// When the image is not there, or the registry cannot be asked.
    pub async fn referrers(
        &self,
        reference: &str,
        artifact_type: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
    ) -> Result<(Digest, Vec<Referrer>), Error> {
        let reference: Reference = reference.parse()?;
        let remotes = self.remotes(&reference, credentials, plain_http).await?;
        let subject = match reference.digest() {
            Some(digest) => digest.clone(),
            None => {
                let tag = reference.tag().unwrap_or("latest");
                let found = remotes.document(tag).await?;
                let text = document::digest_of(&found.bytes);
                text.parse().map_err(|source| Error::Digest {
                    document: format!("manifest {tag}"),
                    source,
                })?
            }
        };
        let what = "list of referrers";
        let path = format!("referrers/{subject}");
        let found = match remotes.read(true, &path, what).await {
            Err(Error::NoImage { .. } | Error::Wrong { .. }) => {
                let tag = format!("{}-{}", subject.algorithm().as_str(), subject.hex());
                match remotes.document(&tag).await {
                    Err(Error::NoImage { .. }) => return Ok((subject, Vec::new())),
                    other => other?,
                }
            }
            other => other?,
        };
        let index: JsonIndex = serde_json::from_slice(&found.bytes)
            .map_err(|error| wrong(&reference, what, &error.to_string()))?;
        let mut referrers = Vec::new();
        for entry in index.manifests {
            if !artifact_type.is_empty() && entry.artifact_type != artifact_type {
                continue;
            }
            referrers.push(Referrer {
                at: Descriptor {
                    digest: entry.digest.parse().map_err(|source| Error::Digest {
                        document: what.into(),
                        source,
                    })?,
                    media_type: entry.media_type,
                    size: entry.size,
                },
                artifact_type: entry.artifact_type,
                annotations: entry.annotations.unwrap_or_default(),
            });
        }
        Ok((subject, referrers))
    }
}

fn wrong(reference: &Reference, what: &str, reason: &str) -> Error {
    Error::Wrong {
        image: reference.familiar(),
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Whether a Link header names a further page (RFC 5988).
pub fn has_next(link: Option<&str>) -> bool {
    link.is_some_and(|link| link.contains("rel=\"next\"") || link.contains("rel=next"))
}
