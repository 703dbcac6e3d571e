//! The lanes of `cargo xtask test`, in the order that finds a fault soonest.
//!
//! Invariants: a lane that cannot run fails, it is never skipped; a test is never retried.

use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;

use crate::{Outcome, build, deps, root, tidy};

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
    /// The tests of each crate
    Unit,
    /// The whole engine, as a user drives it
    E2e,
    /// The whole engine, killed at random moments
    Crash,
}

/// Debian packages that tests call, and a program of each that shows it is there.
const PACKAGES: [(&str, &str); 10] = [
    ("busybox-static", "busybox"),
    ("debootstrap", "debootstrap"),
    ("docker-registry", "docker-registry"),
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("python3", "python3"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("libcap2-bin", "setcap"),
    ("attr", "setfattr"),
];

/// The test programs of the end-to-end lane.
const E2E: [&str; 13] = [
    "smoke",
    "streams",
    "life",
    "image",
    "network",
    "volume",
    "push",
    "archive",
    "registry",
    "commit",
    "space",
    "isolation",
    "hostile",
];

/// The main job: builds everything as it ships and shows a container that runs.
///
/// # Errors
/// When a step fails; what was started is put away.
pub fn dev(arguments: &[String]) -> Outcome {
    driver("gantry-dev", arguments).and_then(|()| leaks())
}

/// Measures.
///
/// # Errors
/// When a step fails.
pub fn bench(arguments: &[String]) -> Outcome {
    driver("gantry-bench", arguments).and_then(|()| leaks())
}

/// Cold pulls.
///
/// # Errors
/// As [`bench`].
pub fn bench_pull(arguments: &[String]) -> Outcome {
    driver("gantry-bench-pull", arguments).and_then(|()| leaks())
}

/// Runs a program of the tests crate on an optimised engine.
fn driver(program: &str, arguments: &[String]) -> Outcome {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.lines().any(|line| line.starts_with("Uid:\t0\t")) {
        return Err("an engine needs root; run it with sudo -E".into());
    }
    install()?;
    println!("building (optimised)");
    let binaries = build::run(true)?;
    // Cargo passes a Ctrl-C on to the program and waits for it, as we do.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    call(
        Command::new(cargo)
            .args([
                "run",
                "--quiet",
                "--package",
                "gantry-tests",
                "--bin",
                program,
                "--",
            ])
            .args(arguments)
            .env("GANTRY_BIN", binaries),
    )
}

/// What whole-system tests must not have left on the host: anything with the marks of their nodes.
fn leaks() -> Outcome {
    let script = "
grep -o ' /tmp/gantry-[^ ]*' /proc/self/mountinfo
ls /sys/class/net | grep -E '^gt[0-9]+x'
nft list tables 2>/dev/null | grep gantry_test_
ls -d /sys/fs/cgroup/gantry-test-* /sys/fs/cgroup/*/gantry-test-* 2>/dev/null
for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -E '^[^ ]*(gantryd|gantry-shim) .*/gantry-'; done
true";
    let output = Command::new("sh")
        .args(["-c", script])
        .output()
        .map_err(|error| format!("look for leaks: {error}"))?;
    let left = String::from_utf8_lossy(&output.stdout);
    if left.trim().is_empty() {
        println!("nothing is left on the host");
        Ok(())
    } else {
        Err(format!("left on the host:\n{left}"))
    }
}

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
                cargo(&["test", "--workspace", "--exclude", "gantry-tests"])
            }
            Lane::E2e => {
                install()?;
                build::run(false)?;
                let mut arguments = vec!["test", "--package", "gantry-tests", "--lib"];
                for test in E2E {
                    arguments.extend(["--test", test]);
                }
                arguments.extend(["--", "--test-threads=2"]);
                cargo(&arguments).and_then(|()| leaks())
            }
            Lane::Crash => {
                install()?;
                build::run(false)?;
                cargo(&[
                    "test",
                    "--package",
                    "gantry-tests",
                    "--test",
                    "crash",
                    "--",
                    "--test-threads=1",
                    "--nocapture",
                ])
                .and_then(|()| leaks())
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

/// Runs a command in the workspace.
///
/// # Errors
/// When it cannot be started or fails.
pub fn call(command: &mut Command) -> Outcome {
    let status = command.current_dir(root()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
