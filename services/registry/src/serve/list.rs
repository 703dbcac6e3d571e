//! Lists: repositories, tags, what refers to a manifest.
//!
//! Invariants: sorted, in pages; what a manifest refers to is read once, since a digest's content never changes. Source: distribution
//! specification v1.1, "Listing Tags", "Listing Referrers".

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_types::{Digest, Reference};
use hyper::Response;
use serde_json::{Value, json};

use super::error::Refusal;
use super::manifest::Facts;
use super::route::{Of, Page};
use super::{Answer, Registry, full, set};
use crate::document::Descriptor;

/// Manifests that are remembered.
const MOST: usize = 10_000;

/// What manifests refer to.
#[derive(Debug, Default)]
pub struct Subjects(Mutex<HashMap<Digest, Option<Arc<Referring>>>>);

/// A manifest that refers to another.
#[derive(Debug)]
struct Referring {
    subject: Digest,
    artifact_type: String,
    descriptor: Value,
}

impl Subjects {
    /// A manifest has gone.
    pub fn forget(&self, digest: &Digest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(digest);
    }
}

/// A page of a sorted list, and whether there is more.
fn cut(all: BTreeSet<String>, page: &Page) -> (Vec<String>, bool) {
    let mut rest = all.into_iter().filter(|one| *one > page.last);
    let shown: Vec<String> = rest.by_ref().take(page.most).collect();
    let more = !shown.is_empty() && rest.next().is_some();
    (shown, more)
}

fn listed(body: &Value, next: Option<String>) -> Response<super::Body> {
    let mut response = Response::new(full(body.to_string()));
    set(&mut response, "content-type", "application/json");
    if let Some(next) = next {
        set(&mut response, "link", &format!("<{next}>; rel=\"next\""));
    }
    response
}

impl Registry {
    async fn stored(&self) -> Result<Vec<(Reference, Descriptor)>, Refusal> {
        let images = self.peers.images().await?;
        Ok(images
            .into_iter()
            .filter_map(|(name, target)| Some((name.parse().ok()?, target)))
            .collect())
    }

    /// Repositories.
    pub(super) async fn catalog(&self, page: &Page) -> Answer {
        let stored = self.stored().await?;
        let all = stored
            .iter()
            .filter_map(|(reference, _)| self.names.offered(reference))
            .collect();
        let (shown, more) = cut(all, page);
        let last = shown.last().cloned().unwrap_or_default();
        let next = more.then(|| format!("/v2/_catalog?n={}&last={last}", page.most));
        Ok(listed(&json!({"repositories": shown}), next))
    }

    /// Tags of a repository.
    pub(super) async fn tags(&self, repository: &str, page: &Page) -> Answer {
        let candidates = self.names.candidates(repository, "");
        let stored = self.stored().await?;
        let mut known = false;
        let mut all = BTreeSet::new();
        for (reference, _) in &stored {
            if candidates.contains(&reference.name()) {
                known = true;
                all.extend(reference.tag().map(str::to_owned));
            }
        }
        if !known {
            return Err(Refusal::no_name(repository));
        }
        let (shown, more) = cut(all, page);
        let last = shown.last().cloned().unwrap_or_default();
        let next = more.then(|| format!("/v2/{repository}/tags/list?n={}&last={last}", page.most));
        Ok(listed(&json!({"name": repository, "tags": shown}), next))
    }

    /// What refers to a digest, in the order of digests.
    pub(super) async fn referrers(&self, of: &Of) -> Answer {
        let subject = of
            .digest()
            .ok_or_else(|| Refusal::digest(format!("{:?} is no digest", of.reference)))?;
        let candidates = self.names.candidates(&of.repository, &of.namespace);
        let mut found: Vec<(String, Value)> = Vec::new();
        for (reference, at) in self.stored().await? {
            if !candidates.contains(&reference.name()) {
                continue;
            }
            let Some(referring) = self.referring(&at).await? else {
                continue;
            };
            let wanted = of.artifact_type.is_empty() || of.artifact_type == referring.artifact_type;
            if referring.subject == subject && wanted {
                found.push((at.digest.to_string(), referring.descriptor.clone()));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found.dedup_by(|(a, _), (b, _)| a == b);
        let manifests: Vec<Value> = found.into_iter().map(|(_, value)| value).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": oci_distribution::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
            "manifests": manifests,
        });
        let mut response = listed(&index, None);
        set(
            &mut response,
            "content-type",
            oci_distribution::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
        );
        if !of.artifact_type.is_empty() {
            set(&mut response, "oci-filters-applied", "artifactType");
        }
        Ok(response)
    }

    async fn referring(&self, at: &Descriptor) -> Result<Option<Arc<Referring>>, Refusal> {
        {
            let known = self
                .subjects
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(&at.digest) {
                return Ok(found.clone());
            }
        }
        // A document that has gone meanwhile refers to nothing.
        let Ok(bytes) = self.peers.read(&at.digest).await else {
            return Ok(None);
        };
        let facts = serde_json::from_slice::<Facts>(&bytes).ok();
        let referring = facts.and_then(|facts| {
            let subject = facts.subject?.digest;
            let artifact_type = if facts.artifact_type.is_empty() {
                facts
                    .config
                    .map(|config| config.media_type)
                    .unwrap_or_default()
            } else {
                facts.artifact_type
            };
            let mut descriptor = json!({
                "mediaType": at.media_type,
                "digest": at.digest.to_string(),
                "size": at.size,
                "artifactType": artifact_type,
            });
            if let Some(annotations) = facts.annotations {
                descriptor["annotations"] = json!(annotations);
            }
            Some(Arc::new(Referring {
                subject,
                artifact_type,
                descriptor,
            }))
        });
        let mut known = self
            .subjects
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(at.digest.clone(), referring.clone());
        Ok(referring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other() {
        let all = || ["a", "b", "c"].map(str::to_owned).into_iter().collect();
        let page = |most, last: &str| Page {
            most,
            last: last.into(),
        };
        assert_eq!(
            cut(all(), &page(2, "")),
            (vec!["a".into(), "b".into()], true)
        );
        assert_eq!(cut(all(), &page(2, "b")), (vec!["c".into()], false));
        assert_eq!(cut(all(), &page(0, "")), (vec![], false));
    }
}
