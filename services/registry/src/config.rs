//! Settings of the table `[registry]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::serve::Settings;

/// How images are fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Layers of one image that are fetched at once.
    pub parallel: usize,
    /// Registries ("host" or "host:port") that are spoken to without TLS; loopback addresses always are.
    pub plain_http: Vec<String>,
    /// Seconds without a byte after which a download is tried again.
    pub stall_timeout_seconds: u64,
    /// How often a download that makes no progress is tried.
    pub attempts: u32,
    /// Folders with a folder a registry in them: containerd's hosts.toml, docker's certificates. The first that knows it decides.
    pub certs_dirs: Vec<PathBuf>,
    /// Mirrors, prefixes, what is blocked: containers-registries.conf(5); files of the folder of the same name with `.d` are read too.
    pub registries_conf: PathBuf,
    /// Nodes that serve what they have ("http://node2:5000"): blobs are fetched from them first.
    pub peers: Vec<String>,
    /// Our own registry.
    pub serve: Settings,
    /// Pieces of one large layer that are fetched at once, where the registry allows.
    pub ranges: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel: 4,
            plain_http: Vec::new(),
            stall_timeout_seconds: 60,
            attempts: 5,
            certs_dirs: [
                "/etc/gantry/certs.d",
                "/etc/containerd/certs.d",
                "/etc/docker/certs.d",
                "/etc/containers/certs.d",
            ]
            .map(PathBuf::from)
            .to_vec(),
            registries_conf: "/etc/containers/registries.conf".into(),
            peers: Vec::new(),
            serve: Settings::default(),
            ranges: 4,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=64).contains(&self.parallel) {
            return Err(format!("parallel is {}; write 1 to 64", self.parallel));
        }
        if self.stall_timeout_seconds == 0 {
            return Err("stall_timeout_seconds is 0; write at least 1".into());
        }
        if self.attempts == 0 {
            return Err("attempts is 0; write at least 1".into());
        }
        self.serve.validate()?;
        let is_url = |peer: &&String| {
            !["http://", "https://"]
                .iter()
                .any(|scheme| peer.len() > scheme.len() && peer.starts_with(scheme))
        };
        if let Some(peer) = self.peers.iter().find(is_url) {
            return Err(format!(
                "peers has {peer:?}; write http://HOST:PORT or https://HOST:PORT"
            ));
        }
        if !(1..=16).contains(&self.ranges) {
            return Err(format!("ranges is {}; write 1 to 16", self.ranges));
        }
        for host in &self.plain_http {
            if host.is_empty() || host.contains('/') {
                return Err(format!(
                    "plain_http has {host:?}; write host or host:port, without http://"
                ));
            }
        }
        Ok(())
    }
}
