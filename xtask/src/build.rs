//! Builds the binaries of a release and puts them together, so that gantryd finds the shim beside itself.
//!
//! Invariant: the shim is always static (it lives in containers' mount namespaces and outlives upgrades of libraries)
//! and always small, in development too: tests and measurements meet the one that ships.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, lanes::call, root};

/// Cargo's name of the package, and of the binary.
const BINARIES: [(&str, &str); 2] = [("gantry-gantryd", "gantryd"), ("gantry-ctl", "ctl")];
const SHIM: (&str, &str) = ("gantry-shim", "gantry-shim");

/// Builds gantryd, ctl and the shim; gives the folder that holds them.
///
/// # Errors
/// When a build fails or a binary cannot be put in its place.
pub fn run(release: bool) -> Result<PathBuf, String> {
    let profile = if release { "release" } else { "debug" };
    let mut command = cargo();
    command.arg("build").arg("--quiet");
    if release {
        command.arg("--release");
    }
    for (package, _) in BINARIES {
        command.args(["--package", package]);
    }
    call(&mut command)?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let shims = root().join("target/shim-build");
    call(
        cargo()
            .args([
                "build",
                "--quiet",
                "--package",
                SHIM.0,
                "--profile",
                "shim",
                "--target",
                &target,
            ])
            .env("CARGO_TARGET_DIR", &shims)
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static"),
    )?;
    let together = root().join("target/gantry").join(profile);
    std::fs::create_dir_all(&together)
        .map_err(|error| format!("make {}: {error}", together.display()))?;
    for (_, binary) in BINARIES {
        place(
            &target_dir().join(profile).join(binary),
            &together.join(binary),
        )?;
    }
    place(
        &shims.join(&target).join("shim").join(SHIM.1),
        &together.join(SHIM.1),
    )?;
    Ok(together)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// By rename, since a binary that runs cannot be written to.
fn place(from: &Path, to: &Path) -> Outcome {
    let part = to.with_extension("part");
    std::fs::copy(from, &part)
        .and_then(|_| std::fs::rename(&part, to))
        .map_err(|error| format!("put {} to {}: {error}", from.display(), to.display()))
}
