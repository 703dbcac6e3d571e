//! Settings of the table `[snapshotter]`.

use serde::{Deserialize, Serialize};

/// How layers are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Layers that are unpacked at once; 0 = one a processor.
    pub parallel: usize,
    /// Wait until an unpacked layer is on disk before it counts.
    pub sync_layers: bool,
    /// Seconds between two searches for layers that nobody needs.
    pub gc_interval_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel: 0,
            sync_layers: true,
            gc_interval_seconds: 3600,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        if self.parallel > 64 {
            return Err(format!(
                "parallel is {}; write 0 (one a processor) to 64",
                self.parallel
            ));
        }
        if self.gc_interval_seconds == 0 {
            return Err("gc_interval_seconds is 0; write at least 1".into());
        }
        Ok(())
    }
}
