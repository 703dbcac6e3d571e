//! Where a Gantry instance lives.
//!
//! Invariant: `root` survives a reboot, `run` does not; each service writes only below its own name.

use std::path::PathBuf;

/// The two directories of an instance.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Durable data, by default `/var/lib/gantry`.
    pub root: PathBuf,
    /// Sockets, namespaces and shim directories, by default `/run/gantry`.
    pub run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            root: "/var/lib/gantry".into(),
            run: "/run/gantry".into(),
        }
    }
}

impl Paths {
    /// The data folder of a service.
    pub fn data(&self, service: &str) -> PathBuf {
        self.root.join(service)
    }

    /// The gRPC socket of a service.
    pub fn socket(&self, service: &str) -> PathBuf {
        self.run.join(format!("{service}.sock"))
    }
}
