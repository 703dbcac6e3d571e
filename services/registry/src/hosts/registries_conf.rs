//! `registries.conf` and the files of `registries.conf.d`: prefixes, locations, mirrors, what is blocked, aliases.
//!
//! Invariants: the longest prefix decides; a later file replaces an entry of the same prefix; keys that only other engines act on
//! are let through. Source: containers-registries.conf(5), version 2 of the format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_types::Reference;
use serde::Deserialize;

use super::Location;
use super::hosts_toml::read;
use crate::error::Error;

#[derive(Deserialize, Default)]
struct Raw {
    #[serde(default)]
    registry: Vec<RawRegistry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct RawRegistry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Deserialize, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// The files together.
#[derive(Default)]
pub struct Conf {
    /// By prefix, with the file that says so.
    registries: BTreeMap<String, (RawRegistry, PathBuf)>,
    aliases: BTreeMap<String, String>,
}

/// Whether a name begins with a prefix, at a border; what is left of it.
fn after<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    if let Some(suffix) = prefix.strip_prefix("*.") {
        let host = name.split('/').next().unwrap_or_default();
        let fits = host
            .strip_suffix(suffix)
            .is_some_and(|before| before.ends_with('.'));
        return fits.then(|| &name[host.len()..]);
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(rest)
}

impl Conf {
    /// Reads the file and what is in the folder `FILE.d`.
    ///
    /// # Errors
    /// [`Error::Hosts`] names the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut folder = path.as_os_str().to_owned();
        folder.push(".d");
        let mut files = vec![path.to_owned()];
        let mut more: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "conf"))
            .collect();
        more.sort();
        files.append(&mut more);
        let mut conf = Conf::default();
        for file in files {
            if let Some(text) = read(&file)? {
                conf.add(&file, &text).map_err(|reason| Error::Hosts {
                    path: file.clone(),
                    reason,
                })?;
            }
        }
        Ok(conf)
    }

    fn add(&mut self, file: &Path, text: &str) -> Result<(), String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        for mut registry in raw.registry {
            let wild = registry.prefix.starts_with("*.");
            if registry.prefix.is_empty() {
                registry.prefix = registry.location.clone();
            }
            let mirrors = registry.mirror.iter().map(|mirror| &mirror.location);
            for location in mirrors.chain([&registry.location]) {
                if location.contains("://") || location.starts_with('/') {
                    return Err(format!(
                        "location {location:?} has a scheme; write host[:port][/path]"
                    ));
                }
            }
            if registry.prefix.is_empty() {
                return Err("a [[registry]] has neither prefix nor location".into());
            }
            if registry.location.is_empty() && !wild {
                registry.location = registry.prefix.clone();
            }
            self.registries
                .insert(registry.prefix.clone(), (registry, file.to_owned()));
        }
        self.aliases.extend(raw.aliases);
        Ok(())
    }

    /// What a short name is an alias of, with the tag that was typed.
    pub fn alias(&self, typed: &str) -> Option<String> {
        let end = typed.find([':', '@']).unwrap_or(typed.len());
        let target = self.aliases.get(&typed[..end])?;
        Some(format!("{target}{}", &typed[end..]))
    }

    /// Mirrors, then the registry.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub fn locations(&self, reference: &Reference) -> Result<Vec<Location>, Error> {
        let name = reference.name();
        let whole = reference.to_string();
        let best = self
            .registries
            .values()
            .filter_map(|(registry, file)| {
                let rest = after(&registry.prefix, &whole)?;
                // The prefix may name a tag: what is left of the name itself is what counts.
                let rest = after(&registry.prefix, &name).unwrap_or(rest);
                Some((registry, file, rest))
            })
            .max_by_key(|(registry, ..)| registry.prefix.len());
        let place = |location: &str, rest: &str| {
            let full = format!("{location}{rest}");
            match full.split_once('/') {
                Some((host, repository)) => (host.to_owned(), repository.to_owned()),
                None => (full, reference.repository().to_owned()),
            }
        };
        let itself = |insecure| Location {
            host: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            insecure,
            mirror: false,
            resolve: true,
        };
        let Some((registry, file, rest)) = best else {
            return Ok(vec![itself(false)]);
        };
        if registry.blocked {
            return Err(Error::Blocked {
                image: reference.familiar(),
                prefix: registry.prefix.clone(),
                path: file.clone(),
            });
        }
        let pinned = reference.digest().is_some();
        let mut locations = Vec::new();
        for mirror in &registry.mirror {
            let wanted = match mirror.pull_from_mirror {
                PullFrom::All => pinned || !registry.mirror_by_digest_only,
                PullFrom::DigestOnly => pinned,
                PullFrom::TagOnly => !pinned,
            };
            if wanted {
                let (host, repository) = place(&mirror.location, rest);
                locations.push(Location {
                    host,
                    repository,
                    insecure: mirror.insecure,
                    mirror: true,
                    resolve: true,
                });
            }
        }
        if registry.location.is_empty() {
            locations.push(itself(registry.insecure));
        } else {
            let (host, repository) = place(&registry.location, rest);
            locations.push(Location {
                host,
                repository,
                insecure: registry.insecure,
                mirror: false,
                resolve: true,
            });
        }
        Ok(locations)
    }
}
