//! Settings of the table `[runtime]`.

use serde::{Deserialize, Serialize};

/// How containers are run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The shim's binary; empty = `gantry-shim` beside gantryd, else in PATH.
    pub shim: String,
    /// Control group above all containers, relative to each hierarchy.
    pub cgroup_parent: String,
    /// Processes and threads of a container that asks for no limit of its own; -1 = no limit.
    pub default_pids_limit: i64,
    /// Bytes after which a container's log is rotated, unless it says otherwise.
    pub log_max_size: i64,
    /// Log files that are kept, the current one included.
    pub log_max_files: i32,
    /// Seconds between the stop signal and the kill, unless the container says otherwise.
    pub stop_timeout_seconds: i64,
    /// Events that are kept for those who ask for the past.
    pub events_kept: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shim: String::new(),
            cgroup_parent: "gantry".into(),
            default_pids_limit: 32_768,
            log_max_size: 10 << 20,
            log_max_files: 5,
            stop_timeout_seconds: 10,
            events_kept: 4096,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        let parent = self.cgroup_parent.trim_matches('/');
        if parent.is_empty()
            || parent
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(format!(
                "cgroup_parent {:?}: write a relative path such as \"gantry\"",
                self.cgroup_parent
            ));
        }
        if self.log_max_size < 4096 {
            return Err(format!(
                "log_max_size is {}; write at least 4096 bytes",
                self.log_max_size
            ));
        }
        if !(1..=1000).contains(&self.log_max_files) {
            return Err(format!(
                "log_max_files is {}; write 1 to 1000",
                self.log_max_files
            ));
        }
        if self.default_pids_limit < -1 || self.default_pids_limit == 0 {
            return Err(format!(
                "default_pids_limit is {}; write -1 (none) or a number from 1 on",
                self.default_pids_limit
            ));
        }
        if self.stop_timeout_seconds < 0 {
            return Err("stop_timeout_seconds is negative; write 0 or more".into());
        }
        Ok(())
    }
}
