//! Settings of the table `[registry]`.

use serde::{Deserialize, Serialize};

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel: 4,
            plain_http: Vec::new(),
            stall_timeout_seconds: 60,
            attempts: 5,
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
