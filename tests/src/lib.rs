//! Whole-system tests: a private set of daemons, real images, a real registry, and a check that nothing is left.
//!
//! Invariants: the engine is driven as a user drives it, by `ctl`; every test has its own node (directories, interface
//! names, nft table, address pool, cgroup); a node that ends without having been cleaned fails its test.
#![allow(clippy::unwrap_used)] // test code: a failed step is a failed test

pub mod clean;
pub mod command;
pub mod fault;
pub mod fixture;
pub mod http;
pub mod image;
pub mod node;
pub mod registry;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use command::Out;
pub use fault::Dice;
pub use image::{Compression, Image, Layer};
pub use node::Node;
pub use registry::Registry;

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where `cargo xtask build` has put gantryd, ctl and gantry-shim; `GANTRY_BIN` chooses another folder.
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("GANTRY_BIN")
        .map_or_else(|| workspace().join("target/gantry/debug"), PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing; run: cargo xtask build",
        path.display()
    );
    path
}

/// A time limit, on this machine: `GANTRY_PATIENCE` says how many times longer a slow one (an emulated one) may take.
pub fn patience(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        std::env::var("GANTRY_PATIENCE").map_or(1, |text| {
            text.parse().expect("GANTRY_PATIENCE is a whole number")
        })
    });
    limit * *times
}

/// Waits until `check` gives a value, at most `limit` (in [`patience`]).
///
/// # Panics
/// With `what` when the time is over.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let limit = patience(limit);
    let give_up = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < give_up, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// [`within`] 20 seconds, for a plain condition.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    within(Duration::from_secs(20), what, || check().then_some(()));
}
