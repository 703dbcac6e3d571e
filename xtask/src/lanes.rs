//! The lanes of `cargo xtask test`, in the order that finds a fault soonest.
//!
//! Invariants: a lane that cannot run fails, it is never skipped; a test is never retried.

use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;

use crate::{Outcome, deps, root, tidy};

/// One kind of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lane {
    /// rustfmt finds nothing to change
    Fmt,
    /// Rules of the source tree
    Tidy,
    /// Who depends on whom
    Deps,
    /// Licences, sources and bans of what we depend on
    Deny,
    /// clippy, warnings denied
    Clippy,
    /// Every test
    Unit,
}

/// Debian packages that tests call, and a program of each that shows it is there.
const PACKAGES: [(&str, &str); 4] = [
    ("busybox-static", "busybox"),
    ("umoci", "umoci"),
    ("libcap2-bin", "setcap"),
    ("attr", "setfattr"),
];

/// Runs the lanes, all when none is given, and prints what each took.
///
/// # Errors
/// Names the lanes that failed.
pub fn run(lanes: &[Lane]) -> Outcome {
    let lanes = if lanes.is_empty() {
        Lane::value_variants()
    } else {
        lanes
    };
    let mut failed = Vec::new();
    let mut report = String::new();
    for lane in lanes {
        let started = Instant::now();
        println!("--- {lane:?}");
        let outcome = lane.run();
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        report.push_str(&format!(
            "{:<8} {word:<7} {:>6.1} s\n",
            format!("{lane:?}"),
            started.elapsed().as_secs_f32()
        ));
        if let Err(message) = outcome {
            eprintln!("{message}");
            failed.push(format!("{lane:?}"));
        }
    }
    println!("--- lanes\n{report}");
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}

impl Lane {
    fn run(self) -> Outcome {
        match self {
            Lane::Fmt => cargo(&["fmt", "--all", "--check"]),
            Lane::Tidy => tidy::check(),
            Lane::Deps => deps::check(),
            Lane::Deny => {
                if !on_path("cargo-deny") {
                    println!("installing cargo-deny (once a machine)");
                    cargo(&["install", "cargo-deny", "--locked", "--quiet"])?;
                }
                // Advisories need a database from the network at large; the other checks need only the lock file.
                cargo(&[
                    "deny",
                    "--log-level",
                    "error",
                    "check",
                    "bans",
                    "licenses",
                    "sources",
                ])
            }
            Lane::Clippy => cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
            Lane::Unit => {
                install()?;
                cargo(&["test", "--workspace"])
            }
        }
    }
}

fn on_path(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

fn install() -> Outcome {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| !on_path(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    call(Command::new("apt-get").args(["update", "-qq"]))?;
    call(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn cargo(arguments: &[&str]) -> Outcome {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    call(Command::new(cargo).args(arguments))
}

fn call(command: &mut Command) -> Outcome {
    let status = command.current_dir(root()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
