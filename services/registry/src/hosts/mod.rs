//! Where a repository is reached: its registry, the mirrors in front of it, and how each is spoken to.
//!
//! Invariants: files are read anew for each pull and push, so a change needs no restart; a broken file is an error that names it,
//! never a silent way around it; mirrors come before the registry that they stand for, and only for what the files allow them.
//! Sources: containerd docs/hosts.md (`certs.d/HOST/hosts.toml`, and docker's bare certificate files in the same folders);
//! containers-registries.conf(5).

mod hosts_toml;
mod registries_conf;

use std::path::PathBuf;

use gantry_types::Reference;

use crate::config::Config;
use crate::error::Error;

/// How TLS is set up for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Believe any certificate.
    pub insecure: bool,
    /// Further authorities, PEM files.
    pub authorities: Vec<PathBuf>,
    /// Who we are: certificate and key, PEM files; the key may be in the certificate's file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
}

/// What an endpoint may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Documents and blobs by digest.
    pub pull: bool,
    /// What a tag means.
    pub resolve: bool,
    /// To take something.
    pub push: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// One way to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Root of the API, without a slash at its end: `https://registry-1.docker.io/v2`.
    pub base: String,
    /// Name of the registry, for credentials and messages: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// The repository as this endpoint calls it.
    pub repository: String,
    /// Sent as `ns` to a mirror, which may stand for several registries.
    pub namespace: Option<String>,
    /// What it may be asked.
    pub can: Capabilities,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// How TLS is set up; `None` = without TLS.
    pub tls: Option<Tls>,
    /// A node nearby, which is asked for blobs before others.
    pub near: bool,
}

/// A registry and a repository in it that stand for what the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Location {
    host: String,
    repository: String,
    insecure: bool,
    mirror: bool,
    resolve: bool,
}

/// What a user's short name (`fedora`) is an alias of, when registries.conf has one.
///
/// # Errors
/// [`Error::Hosts`] when the file is broken.
pub fn alias(config: &Config, typed: &str) -> Result<Option<String>, Error> {
    Ok(registries_conf::Conf::read(&config.registries_conf)?.alias(typed))
}

/// The endpoints of a reference, in the order in which they are asked; the last is the registry itself.
///
/// # Errors
/// [`Error::Hosts`] when a file is broken, [`Error::Blocked`] when one forbids the registry.
pub fn route(config: &Config, reference: &Reference, plain: bool) -> Result<Vec<Endpoint>, Error> {
    let conf = registries_conf::Conf::read(&config.registries_conf)?;
    let mut endpoints: Vec<Endpoint> = config
        .peers
        .iter()
        .map(|peer| near(peer, reference))
        .collect();
    for location in conf.locations(reference)? {
        let plain = plain && !location.mirror
            || Reference::is_loopback_host(&location.host)
            || config.plain_http.contains(&location.host);
        match hosts_toml::find(&config.certs_dirs, &location.host)? {
            hosts_toml::Found::Hosts(file) => {
                endpoints.extend(file.endpoints(&location, plain));
            }
            hosts_toml::Found::Certificates(tls) => {
                endpoints.extend(direct(&location, plain, tls));
            }
        }
    }
    Ok(endpoints)
}

/// A node of ours as a mirror: it has what it has by digest, and does not know what a tag means now.
fn near(peer: &str, reference: &Reference) -> Endpoint {
    let base = peer.trim_end_matches('/');
    Endpoint {
        base: format!("{base}/v2"),
        registry: base.split('/').nth(2).unwrap_or(base).to_owned(),
        repository: reference.repository().to_owned(),
        namespace: Some(reference.registry().to_owned()),
        can: Capabilities {
            pull: true,
            resolve: false,
            push: false,
        },
        headers: Vec::new(),
        tls: base.starts_with("https://").then(Tls::default),
        near: true,
    }
}

/// The host of a registry's API: docker.io's is another.
fn api_host(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// The registry itself; an insecure one by TLS with any certificate, and then without TLS.
fn direct(location: &Location, plain: bool, tls: Tls) -> Vec<Endpoint> {
    let host = api_host(&location.host);
    let endpoint = |scheme: &str, tls| Endpoint {
        base: format!("{scheme}://{host}/v2"),
        registry: location.host.clone(),
        repository: location.repository.clone(),
        namespace: None,
        can: Capabilities {
            pull: true,
            resolve: location.resolve,
            push: !location.mirror,
        },
        headers: Vec::new(),
        tls,
        near: false,
    };
    if plain {
        return vec![endpoint("http", None)];
    }
    if location.insecure {
        let any = Tls {
            insecure: true,
            ..tls
        };
        return vec![endpoint("https", Some(any)), endpoint("http", None)];
    }
    vec![endpoint("https", Some(tls))]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir, Config);

    impl Home {
        fn new(files: &[(&str, &str)]) -> Self {
            let home = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = home.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let config = Config {
                certs_dirs: vec![home.path().join("none"), home.path().join("certs.d")],
                registries_conf: home.path().join("registries.conf"),
                ..Config::default()
            };
            Home(home, config)
        }

        fn route(&self, reference: &str) -> Result<Vec<Endpoint>, Error> {
            route(&self.1, &reference.parse().unwrap(), false)
        }

        fn bases(&self, reference: &str) -> Vec<String> {
            let route = self.route(reference).unwrap();
            route
                .into_iter()
                .map(|one| format!("{}/{}", one.base, one.repository))
                .collect()
        }
    }

    #[test]
    fn without_files_the_registry_itself() {
        let home = Home::new(&[]);
        assert_eq!(
            home.bases("busybox"),
            ["https://registry-1.docker.io/v2/library/busybox"]
        );
        assert_eq!(
            home.bases("localhost:5000/a"),
            ["http://localhost:5000/v2/a"]
        );
    }

    #[test]
    fn hosts_toml_names_mirrors_in_order() {
        let home = Home::new(&[
            (
                "certs.d/docker.io/hosts.toml",
                r#"
server = "https://registry-1.docker.io"
[host."https://z.example/prefix"]
  capabilities = ["pull", "resolve"]
  ca = "ca.pem"
  [host."https://z.example/prefix".header]
    x-one = "1"
    x-two = ["a", "b"]
[host."http://a.example:5000/v2/hub"]
  capabilities = ["pull"]
  override_path = true
"#,
            ),
            ("certs.d/docker.io/ca.pem", "-"),
            (
                "certs.d/_default/hosts.toml",
                "[host.\"https://all.example\"]\n skip_verify = true\n client = [[\"c.pem\", \"k.pem\"]]\n",
            ),
        ]);
        assert_eq!(
            home.bases("busybox"),
            [
                "https://z.example/prefix/v2/library/busybox",
                "http://a.example:5000/v2/hub/library/busybox",
                "https://registry-1.docker.io/v2/library/busybox",
            ]
        );
        let route = home.route("busybox").unwrap();
        assert_eq!(route[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(route[0].headers.len(), 3);
        assert!(route[0].can.resolve && !route[0].can.push && !route[1].can.resolve);
        let tls = route[0].tls.clone().unwrap();
        assert_eq!(
            tls.authorities,
            [home.0.path().join("certs.d/docker.io/ca.pem")]
        );
        assert!(route[1].tls.is_none());
        assert_eq!(route[2].namespace, None);
        let other = home.route("ghcr.io/x/y").unwrap();
        assert_eq!(other[0].base, "https://all.example/v2");
        let tls = other[0].tls.clone().unwrap();
        assert!(tls.insecure && tls.client.is_some());
        assert_eq!(other[1].base, "https://ghcr.io/v2");
    }

    #[test]
    fn dockers_certificate_files_are_found() {
        let home = Home::new(&[
            ("certs.d/r.example:5000/ca.crt", "-"),
            ("certs.d/r.example:5000/client.cert", "-"),
            ("certs.d/r.example:5000/client.key", "-"),
        ]);
        let tls = home.route("r.example:5000/x").unwrap()[0]
            .tls
            .clone()
            .unwrap();
        assert_eq!(tls.authorities.len(), 1);
        let (cert, key) = tls.client.unwrap();
        assert!(cert.ends_with("client.cert") && key.unwrap().ends_with("client.key"));
    }

    #[test]
    fn registries_conf_moves_mirrors_and_blocks() {
        let home = Home::new(&[
            (
                "registries.conf",
                r#"
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"
[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
[[registry]]
prefix = "example.com/foo"
location = "internal.example:5000/bar"
[[registry.mirror]]
location = "mirror.example/m"
insecure = true
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry]]
location = "bad.example"
blocked = true
[[registry]]
prefix = "*.wild.example"
insecure = true
"#,
            ),
            (
                "registries.conf.d/10.conf",
                "[aliases]\n\"short\" = \"quay.io/a/short\"\n[[registry]]\nprefix=\"bad.example/good\"\nlocation=\"bad.example/good\"\n",
            ),
        ]);
        assert_eq!(
            home.bases("example.com/foo/app:1"),
            [
                "https://mirror.example/v2/m/app",
                "http://mirror.example/v2/m/app",
                "https://internal.example:5000/v2/bar/app"
            ]
        );
        let digest = format!("example.com/foo/app@sha256:{}", "a".repeat(64));
        assert_eq!(home.bases(&digest)[2], "https://digests.example/v2/app");
        assert_eq!(
            home.bases("example.com/foobar"),
            ["https://example.com/v2/foobar"]
        );
        let error = home.route("bad.example/x").unwrap_err();
        assert!(matches!(&error, Error::Blocked { .. }), "{error}");
        assert_eq!(
            home.bases("bad.example/good/x"),
            ["https://bad.example/v2/good/x"]
        );
        let wild = home.route("a.wild.example/x").unwrap();
        assert!(wild[0].tls.as_ref().unwrap().insecure && wild[1].tls.is_none());
        let named = |typed: &str| alias(&home.1, typed).unwrap();
        assert_eq!(
            named("fedora:40").as_deref(),
            Some("registry.fedoraproject.org/fedora:40")
        );
        assert_eq!(named("short").as_deref(), Some("quay.io/a/short"));
        assert_eq!(named("docker.io/library/fedora"), None);
        assert_eq!(named("other"), None);
    }

    #[test]
    fn broken_files_are_named() {
        for (file, text, part) in [
            ("certs.d/docker.io/hosts.toml", "server = 3", "hosts.toml"),
            (
                "certs.d/docker.io/hosts.toml",
                "[host.\"ftp://x\"]",
                "ftp://x",
            ),
            (
                "certs.d/docker.io/hosts.toml",
                "[host.\"https://x\"]\ncapabilities = [\"fly\"]",
                "fly",
            ),
            (
                "registries.conf",
                "[[registry]]\ninsecure = true",
                "registries.conf",
            ),
            ("registries.conf", "[[registry]", "registries.conf"),
            (
                "registries.conf",
                "[[registry]]\nlocation = \"https://x\"",
                "https://x",
            ),
            ("registries.conf.d/x.conf", "= 1", "x.conf"),
        ] {
            let error = Home::new(&[(file, text)]).route("busybox").unwrap_err();
            assert!(matches!(&error, Error::Hosts { .. }), "{text}: {error}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
