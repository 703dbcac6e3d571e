//! What a container may ask of the kernel: docker's default profile or one in docker's JSON format, as a filter program.
//!
//! Invariants: a profile is a pure function of the container's capabilities and the host's processor; a system call that no
//! rule names gets the profile's default; the program decides by binary search, in at most a dozen steps.
//! Source: docker's profile format (moby, profiles/seccomp) and seccomp(2).

mod bpf;
mod default;
mod profile;

use std::collections::BTreeSet;

pub use profile::ProfileError;

use bpf::Filter;

/// Compiles the profile that the user asked for: "" = the default, "unconfined" = none, else JSON.
///
/// # Errors
/// [`ProfileError`] naming what in the JSON is wrong.
pub fn compile(wanted: &str, caps: &BTreeSet<String>) -> Result<Vec<u8>, ProfileError> {
    let rules = match wanted {
        "unconfined" => return Ok(Vec::new()),
        "" => default::profile(caps),
        json => profile::parse(json, caps)?,
    };
    Ok(Filter::new(&rules).assemble())
}

#[cfg(test)]
mod tests;
