//! Which names of the store a repository stands for.
//!
//! Invariants: what is pushed gets a name of this registry; what is pulled may be of another, when the settings let it.

use gantry_types::{Digest, Reference};

use super::route::Of;

/// Name of the registry where none is set.
const DEFAULT_NAME: &str = "gantry.local";

/// The rules.
#[derive(Debug, Clone)]
pub struct Names {
    own: String,
    mirror: bool,
}

fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

impl Names {
    /// `own` may be empty.
    pub fn new(own: &str, mirror: bool) -> Self {
        Self {
            own: if own.is_empty() { DEFAULT_NAME } else { own }.to_owned(),
            mirror,
        }
    }

    /// The name of a pushed repository.
    pub fn own(&self, repository: &str) -> String {
        format!("{}/{repository}", self.own)
    }

    /// A tag of it.
    pub fn tag(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.own)
    }

    /// A manifest of it by digest.
    pub fn pinned(&self, repository: &str, digest: &Digest) -> String {
        format!("{}/{repository}@{digest}", self.own)
    }

    /// The repositories that a client may mean, first the own.
    pub fn candidates(&self, repository: &str, namespace: &str) -> Vec<String> {
        let mut names = vec![self.own(repository)];
        if !self.mirror {
            return names;
        }
        let first = repository.split('/').next().unwrap_or_default();
        let other = if !namespace.is_empty() {
            format!("{namespace}/{repository}")
        } else if is_host(first) && repository.contains('/') {
            repository.to_owned()
        } else {
            format!("docker.io/{repository}")
        };
        // As the store writes it: docker.io/x is docker.io/library/x.
        let other = other
            .parse::<Reference>()
            .map_or(other, |reference| reference.name());
        if other != names[0] {
            names.push(other);
        }
        names
    }

    /// What is fetched from an upstream when it is not here: registry and reference.
    pub fn upstream(&self, of: &Of) -> Option<(String, String)> {
        let name = self
            .candidates(&of.repository, &of.namespace)
            .into_iter()
            .nth(1)?;
        let join = if of.digest().is_some() { '@' } else { ':' };
        let registry = name.split('/').next().unwrap_or_default().to_owned();
        Some((registry, format!("{name}{join}{}", of.reference)))
    }

    /// The repository of a stored name, as clients of this registry call it; `None` = it is not offered.
    pub fn offered(&self, stored: &Reference) -> Option<String> {
        if stored.registry() == self.own {
            return Some(stored.repository().to_owned());
        }
        if !self.mirror {
            return None;
        }
        match stored.registry() {
            "docker.io" => Some(stored.repository().to_owned()),
            // A port has no place in a path: only who says `ns` gets at these.
            registry if registry.contains(':') => None,
            _ => Some(stored.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_come_first() {
        let names = Names::new("", true);
        assert_eq!(
            names.candidates("team/app", ""),
            ["gantry.local/team/app", "docker.io/team/app"]
        );
        assert_eq!(
            names.candidates("busybox", "")[1],
            "docker.io/library/busybox"
        );
        assert_eq!(names.candidates("ghcr.io/a/b", "")[1], "ghcr.io/a/b");
        assert_eq!(names.candidates("a/b", "quay.io")[1], "quay.io/a/b");
        assert_eq!(Names::new("", false).candidates("a", "").len(), 1);
        let offered = |name: &str| names.offered(&name.parse().unwrap());
        assert_eq!(offered("gantry.local/a/b:1").as_deref(), Some("a/b"));
        assert_eq!(offered("busybox").as_deref(), Some("library/busybox"));
        assert_eq!(offered("ghcr.io/x").as_deref(), Some("ghcr.io/x"));
    }
}
