//! Who may depend on whom: the table of crates, and the one crate that may name each big library.
//!
//! Invariant: an arrow that is not in the table is an error until somebody writes its reason down here.

use std::process::Command;

use serde_json::Value;

use crate::{Outcome, root};

/// Crate, what it may use of ours, and why.
const ARROWS: [(&str, &[&str], &str); 16] = [
    ("gantry-types", &[], "plain values, the bottom"),
    (
        "gantry-proto",
        &["gantry-types"],
        "converts the shared values",
    ),
    ("gantry-meta", &["gantry-types"], "error kinds"),
    ("gantry-sys", &[], "knows no noun of ours"),
    (
        "gantry-chassis",
        &["gantry-types", "gantry-proto"],
        "maps error kinds, offers reflection",
    ),
    (
        "gantry-store",
        &[
            "gantry-types",
            "gantry-proto",
            "gantry-chassis",
            "gantry-meta",
            "gantry-sys",
        ],
        "a service with state",
    ),
    (
        "gantry-network",
        &[
            "gantry-types",
            "gantry-proto",
            "gantry-chassis",
            "gantry-meta",
            "gantry-sys",
        ],
        "a service with state",
    ),
    (
        "gantry-snapshotter",
        &[
            "gantry-types",
            "gantry-proto",
            "gantry-chassis",
            "gantry-meta",
            "gantry-sys",
        ],
        "a service with state",
    ),
    (
        "gantry-registry",
        &["gantry-types", "gantry-proto", "gantry-chassis"],
        "a service without state or privileges",
    ),
    (
        "gantry-runtime",
        &[
            "gantry-types",
            "gantry-proto",
            "gantry-chassis",
            "gantry-meta",
            "gantry-sys",
        ],
        "a service with state",
    ),
    (
        "gantry-build",
        &["gantry-types", "gantry-proto", "gantry-chassis"],
        "a service without state or privileges",
    ),
    (
        "gantry-ctl",
        &["gantry-types", "gantry-proto", "gantry-chassis"],
        "a client of all services",
    ),
    (
        "gantry-gantryd",
        &[
            "gantry-types",
            "gantry-chassis",
            "gantry-sys",
            "gantry-store",
            "gantry-network",
            "gantry-snapshotter",
            "gantry-registry",
            "gantry-runtime",
            "gantry-build",
        ],
        "runs the services",
    ),
    (
        "gantry-shim",
        &["gantry-proto", "gantry-sys"],
        "frames and the kernel, nothing that costs memory",
    ),
    ("gantry-tests", &[], "drives the binaries as a user does"),
    ("xtask", &[], "stands outside"),
];

/// Libraries that exactly one crate may name, so that each can be replaced in one place.
const SINGLE: [(&str, &str); 8] = [
    ("sled", "gantry-meta"),
    ("nix", "gantry-sys"),
    ("libc", "gantry-sys"),
    ("oci-client", "gantry-registry"),
    ("reqwest", "gantry-registry"),
    ("syscalls", "gantry-runtime"),
    ("opentelemetry", "gantry-chassis"),
    ("opentelemetry-otlp", "gantry-chassis"),
];

/// Compares the workspace with the tables.
///
/// # Errors
/// Lists each arrow that should not be there.
pub fn check() -> Outcome {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("run cargo metadata: {error}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("read cargo metadata: {error}"))?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let names = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            // A test may stand a lower service up for real instead of pretending to be it.
            .filter(|d| {
                d["kind"] != "dev"
                    || !d["name"]
                        .as_str()
                        .unwrap_or_default()
                        .starts_with("gantry-")
            })
            .filter_map(|d| d["name"].as_str());
        judge(
            package["name"].as_str().unwrap_or_default(),
            names,
            &mut wrong,
        );
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn judge<'a>(name: &str, dependencies: impl Iterator<Item = &'a str>, wrong: &mut Vec<String>) {
    let Some((_, allowed, why)) = ARROWS.iter().find(|(known, ..)| *known == name) else {
        wrong.push(format!("{name}: a crate that the table does not know; add it to xtask/src/deps.rs with a reason"));
        return;
    };
    for dependency in dependencies {
        let ours = dependency.starts_with("gantry-");
        if ours && !allowed.contains(&dependency) && dependency != name {
            wrong.push(format!(
                "{name} -> {dependency}: not allowed ({name} is: {why})"
            ));
        }
        if let Some((library, owner)) = SINGLE.iter().find(|(library, _)| *library == dependency)
            && *owner != name
        {
            wrong.push(format!("{name} -> {library}: only {owner} may name it"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, dependencies: &[&str]) -> usize {
        let mut wrong = Vec::new();
        judge(name, dependencies.iter().copied(), &mut wrong);
        wrong.len()
    }

    #[test]
    fn the_table_decides() {
        assert_eq!(faults("gantry-store", &["gantry-meta", "tokio"]), 0);
        assert_eq!(faults("gantry-store", &["gantry-registry"]), 1);
        assert_eq!(faults("gantry-store", &["sled"]), 1);
        assert_eq!(faults("gantry-unknown", &[]), 1);
    }
}
