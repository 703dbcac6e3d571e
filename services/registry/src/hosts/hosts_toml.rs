//! `certs.d/HOST/hosts.toml` and bare certificate files beside it.
//!
//! Invariants: hosts keep the order of the file; paths are relative to the file; what a key cannot mean is an error that names the
//! file, the host and the value. Source: containerd docs/hosts.md.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Capabilities, Endpoint, Location, Tls, api_host, direct};
use crate::error::Error;

/// Largest file that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// What the folders say of a host.
pub enum Found {
    /// A hosts.toml.
    Hosts(File),
    /// Certificates, or nothing.
    Certificates(Tls),
}

/// A hosts.toml that was understood.
pub struct File {
    server: Option<Host>,
    hosts: Vec<Host>,
}

struct Host {
    base: String,
    plain: bool,
    can: Capabilities,
    headers: Vec<(String, String)>,
    tls: Tls,
}

#[derive(Deserialize)]
struct Raw {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: RawHost,
}

#[derive(Deserialize)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<toml::Value>,
    client: Option<toml::Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: toml::Table,
}

/// Reads a small file; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read as _;
    let broken = |reason: String| Error::Hosts {
        path: path.to_owned(),
        reason,
    };
    let file = match std::fs::File::open(path) {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        other => other.map_err(|error| broken(error.to_string()))?,
    };
    let mut text = String::new();
    file.take(LONGEST)
        .read_to_string(&mut text)
        .map_err(|error| broken(error.to_string()))?;
    Ok(Some(text))
}

/// The first folder that knows the host decides; `_default` is asked last.
pub fn find(dirs: &[PathBuf], host: &str) -> Result<Found, Error> {
    // A port may be written with underscores where a colon cannot be in a name.
    let escaped = host
        .rsplit_once(':')
        .map(|(name, port)| format!("{name}_{port}_"));
    let names = [Some(host.to_owned()), escaped, Some("_default".into())];
    for name in names.iter().flatten() {
        for dir in dirs {
            let dir = dir.join(name);
            if let Some(text) = read(&dir.join("hosts.toml"))? {
                return parse(&dir, &text).map(Found::Hosts);
            }
            let tls = certificates(&dir)?;
            if tls != Tls::default() {
                return Ok(Found::Certificates(tls));
            }
        }
    }
    Ok(Found::Certificates(Tls::default()))
}

/// Docker's files: `*.crt` are authorities, `*.cert` with `*.key` say who we are.
fn certificates(dir: &Path) -> Result<Tls, Error> {
    let mut names = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(Tls::default());
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::Hosts {
            path: dir.to_owned(),
            reason: error.to_string(),
        })?;
        names.push(entry.path());
    }
    names.sort();
    let has = |path: &&PathBuf, end: &str| path.extension().is_some_and(|own| own == end);
    let client = names.iter().find(|path| has(path, "cert"));
    Ok(Tls {
        insecure: false,
        authorities: names
            .iter()
            .filter(|path| has(path, "crt"))
            .cloned()
            .collect(),
        client: client.map(|cert| {
            let key = cert.with_extension("key");
            (cert.clone(), names.contains(&key).then_some(key))
        }),
    })
}

fn parse(dir: &Path, text: &str) -> Result<File, Error> {
    let broken = |reason: String| Error::Hosts {
        path: dir.join("hosts.toml"),
        reason,
    };
    let raw: Raw = toml::from_str(text).map_err(|error| broken(error.to_string()))?;
    let mut hosts = Vec::new();
    for (url, value) in raw.host {
        let own: RawHost = value
            .try_into()
            .map_err(|error| broken(format!("host {url:?}: {error}")))?;
        hosts.push(
            host(dir, &url, own).map_err(|reason| broken(format!("host {url:?}: {reason}")))?,
        );
    }
    let server = match raw.server {
        Some(url) => Some(
            host(dir, &url, raw.own)
                .map_err(|reason| broken(format!("server {url:?}: {reason}")))?,
        ),
        None => None,
    };
    Ok(File { server, hosts })
}

fn host(dir: &Path, url: &str, raw: RawHost) -> Result<Host, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    if !matches!(scheme, "http" | "https") || rest.is_empty() || rest.contains(char::is_whitespace)
    {
        return Err("write https://HOST or http://HOST, with a path if need be".into());
    }
    let rest = rest.trim_end_matches('/');
    let base = if raw.override_path {
        format!("{scheme}://{rest}")
    } else {
        let rest = rest.strip_suffix("/v2").unwrap_or(rest);
        format!("{scheme}://{rest}/v2")
    };
    let mut can = Capabilities {
        pull: false,
        resolve: false,
        push: false,
    };
    for word in raw.capabilities.iter().flatten() {
        match word.as_str() {
            "pull" => can.pull = true,
            "resolve" => can.resolve = true,
            "push" => can.push = true,
            "referrers" => {}
            other => {
                return Err(format!(
                    "capability {other:?} is none; write pull, resolve or push"
                ));
            }
        }
    }
    if raw.capabilities.is_none() {
        can = Capabilities::ALL;
    }
    let mut headers = Vec::new();
    for (name, value) in raw.header {
        for value in strings(value).ok_or_else(|| format!("header {name:?} is no text"))? {
            headers.push((name.clone(), value));
        }
    }
    let ca = raw.ca.map(strings).unwrap_or(Some(Vec::new()));
    let authorities = ca
        .ok_or("ca is neither a path nor a list of paths")?
        .into_iter()
        .map(|path| dir.join(path))
        .collect();
    let client = match raw.client {
        Some(value) => {
            Some(pair(dir, value).ok_or("client is neither a path nor a pair of paths")?)
        }
        None => None,
    };
    Ok(Host {
        plain: scheme == "http",
        base,
        can,
        headers,
        tls: Tls {
            insecure: raw.skip_verify,
            authorities,
            client,
        },
    })
}

/// A text or a list of texts.
fn strings(value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(one) => Some(vec![one]),
        toml::Value::Array(many) => many
            .into_iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// "file", ["file", "key"] or [["file", "key"], ...], of which the first counts.
fn pair(dir: &Path, value: toml::Value) -> Option<(PathBuf, Option<PathBuf>)> {
    if let toml::Value::Array(many) = &value
        && let Some(first @ toml::Value::Array(_)) = many.first()
    {
        return pair(dir, first.clone());
    }
    let mut files = strings(value)?.into_iter().map(|path| dir.join(path));
    Some((files.next()?, files.next()))
}

impl File {
    /// The hosts in their order, then the server: as the file says, or the registry itself.
    pub fn endpoints(&self, location: &Location, plain: bool) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        let server = api_host(&location.host);
        let each = self.hosts.iter().map(|host| (host, true));
        for (host, mirror) in each.chain(self.server.iter().map(|host| (host, false))) {
            let name = host.base.split('/').nth(2).unwrap_or_default().to_owned();
            let itself = name == server || name == location.host;
            endpoints.push(Endpoint {
                base: host.base.clone(),
                registry: if itself || !mirror {
                    location.host.clone()
                } else {
                    name
                },
                repository: location.repository.clone(),
                namespace: (mirror && !itself).then(|| location.host.clone()),
                can: Capabilities {
                    resolve: host.can.resolve && location.resolve,
                    ..host.can
                },
                headers: host.headers.clone(),
                tls: (!host.plain).then(|| host.tls.clone()),
                near: false,
            });
        }
        if self.server.is_none() {
            endpoints.extend(direct(location, plain, Tls::default()));
        }
        endpoints
    }
}
