//! Settings of the table `[store]`.

use serde::{Deserialize, Serialize};

/// How the store keeps and collects.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds between two garbage collections.
    pub gc_interval_seconds: u64,
    /// Seconds that a blob without image or lease is kept after it came in.
    pub gc_grace_seconds: u64,
    /// Seconds after which an ingest that nobody writes to is dropped.
    pub ingest_idle_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gc_interval_seconds: 3600,
            gc_grace_seconds: 600,
            ingest_idle_seconds: 86_400,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        if self.gc_interval_seconds == 0 {
            return Err("gc_interval_seconds is 0; write at least 1".into());
        }
        Ok(())
    }
}
