//! From a path to what it means. Pure.
//!
//! Invariant: a repository's name keeps to the specification's grammar before it goes anywhere. Source: distribution specification
//! v1.1, "Endpoints".

use gantry_types::Digest;
use hyper::Uri;

use super::error::Refusal;

/// Most entries of a page.
const MOST_PAGE: usize = 1000;

/// What part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// How many at most.
    pub most: usize,
    /// Only those after this one.
    pub last: String,
}

/// A manifest: repository, tag or digest, and the registry that the client means (`ns`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Of {
    /// As the client calls it.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// Registry that a mirror stands for.
    pub namespace: String,
    /// Only of this kind.
    pub artifact_type: String,
}

impl Of {
    /// The digest, when it is one.
    pub fn digest(&self) -> Option<Digest> {
        self.reference.parse().ok()
    }
}

/// Where an upload goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// As the client calls it.
    pub repository: String,
    /// Of the session.
    pub session: String,
    /// At its end, the digest.
    pub digest: Option<String>,
}

/// How an upload begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begin {
    /// A blob of another repository is to be taken over.
    pub mount: Option<String>,
    /// The whole blob comes with the request.
    pub digest: Option<String>,
}

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Whether this is a registry.
    Root,
    /// Repositories.
    Catalog(Page),
    /// Tags of a repository.
    Tags(String, Page),
    /// What refers to a digest.
    Referrers(Of),
    /// A manifest.
    Manifest(Of),
    /// A blob.
    Blob(String, Digest),
    /// A new upload.
    Begin(String, Begin),
    /// One that runs.
    Upload(At),
}

fn queries(uri: &Uri) -> Vec<(String, String)> {
    let Ok(mut url) = reqwest::Url::parse("http://query.invalid/") else {
        return Vec::new();
    };
    url.set_query(uri.query());
    url.query_pairs()
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect()
}

/// Parts of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_repository(name: &str) -> bool {
    name.len() <= 255
        && format!("a.example/{name}")
            .parse::<gantry_types::Reference>()
            .is_ok_and(|reference| reference.repository() == name && reference.digest().is_none())
}

impl Route {
    /// Reads a path with its query.
    ///
    /// # Errors
    /// What is wrong with it, as a client is told.
    pub fn of(uri: &Uri) -> Result<Self, Refusal> {
        let path = uri.path();
        let queries = queries(uri);
        let query = |wanted: &str| {
            queries
                .iter()
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.clone())
        };
        let page = || {
            let most = query("n").and_then(|n| n.parse().ok());
            Page {
                most: most.unwrap_or(MOST_PAGE).min(MOST_PAGE),
                last: query("last").unwrap_or_default(),
            }
        };
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Route::Root),
            Some(rest) => rest.strip_prefix('/').unwrap_or(rest),
            None => return Err(Refusal::no_path(path)),
        };
        if rest == "_catalog" {
            return Ok(Route::Catalog(page()));
        }
        let named = |name: &str| {
            if is_repository(name) {
                Ok(name.to_owned())
            } else {
                Err(Refusal::name(name))
            }
        };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Route::Tags(named(name)?, page()));
        }
        if let Some((name, last)) = rest.rsplit_once("/blobs/uploads/") {
            let repository = named(name)?;
            return Ok(if last.is_empty() {
                Route::Begin(
                    repository,
                    Begin {
                        mount: query("mount"),
                        digest: query("digest"),
                    },
                )
            } else {
                Route::Upload(At {
                    repository,
                    session: last.to_owned(),
                    digest: query("digest"),
                })
            });
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            let mount = query("mount");
            let digest = query("digest");
            return Ok(Route::Begin(named(name)?, Begin { mount, digest }));
        }
        let of = |name: &str, reference: &str| -> Result<Of, Refusal> {
            Ok(Of {
                repository: named(name)?,
                reference: reference.to_owned(),
                namespace: query("ns").unwrap_or_default(),
                artifact_type: query("artifactType").unwrap_or_default(),
            })
        };
        if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
            let digest = digest
                .parse()
                .map_err(|error| Refusal::digest(format!("{error}")))?;
            return Ok(Route::Blob(named(name)?, digest));
        }
        if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
            return Ok(Route::Manifest(of(name, reference)?));
        }
        if let Some((name, digest)) = rest.rsplit_once("/referrers/") {
            let of = of(name, digest)?;
            if of.digest().is_none() {
                return Err(Refusal::digest(format!("{digest:?} is no digest")));
            }
            return Ok(Route::Referrers(of));
        }
        Err(Refusal::no_path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str) -> Result<Route, Refusal> {
        Route::of(&path.parse().unwrap())
    }

    #[test]
    fn paths_are_understood() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(route("/v2/").unwrap(), Route::Root);
        assert!(matches!(
            route("/v2/a/b/tags/list?n=2&last=x").unwrap(),
            Route::Tags(name, Page { most: 2, last }) if name == "a/b" && last == "x"
        ));
        assert!(matches!(
            route(&format!("/v2/blobs/manifests/blobs/{digest}")).unwrap(),
            Route::Blob(name, _) if name == "blobs/manifests"
        ));
        assert!(matches!(
            route("/v2/a/manifests/1.0?ns=docker.io").unwrap(),
            Route::Manifest(of) if of.reference == "1.0" && of.namespace == "docker.io"
        ));
        assert!(matches!(
            route(&format!("/v2/a/blobs/uploads/?mount={digest}&from=b")).unwrap(),
            Route::Begin(
                _,
                Begin {
                    mount: Some(_),
                    digest: None
                }
            )
        ));
        assert!(matches!(
            route("/v2/a/blobs/uploads/x").unwrap(),
            Route::Upload(_)
        ));
        for bad in [
            "/",
            "/v2/A/tags/list",
            "/v2/../tags/list",
            "/v2/a//b/manifests/x",
            "/v2/a/blobs/sha256:x",
            "/v2/a/referrers/latest",
            "/v2/a/other",
        ] {
            assert!(route(bad).is_err(), "{bad}");
        }
    }
}
