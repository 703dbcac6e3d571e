//! Ids, and names for containers that nobody named.
//!
//! Invariant: a name is [a-zA-Z0-9][a-zA-Z0-9_.-]+, docker's rule.

use crate::error::Error;

const FIRST: [&str; 32] = [
    "amber", "brave", "calm", "clever", "crisp", "dapper", "eager", "fair", "fleet", "frank",
    "gentle", "glad", "golden", "humble", "jolly", "keen", "kind", "lively", "lucid", "merry",
    "neat", "noble", "patient", "plucky", "proud", "quick", "quiet", "silver", "steady", "swift",
    "vivid", "witty",
];
const SECOND: [&str; 32] = [
    "anchor", "beacon", "boom", "bridge", "cable", "crane", "davit", "derrick", "dock", "ferry",
    "girder", "harbor", "hawser", "hoist", "jetty", "jib", "keel", "lever", "mast", "pier",
    "pontoon", "portal", "pulley", "quay", "rigger", "rudder", "signal", "sluice", "tackle",
    "trestle", "winch", "yard",
];

/// 64 hexadecimal digits.
pub fn id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name that `is_free` accepts.
pub fn generate(is_free: impl Fn(&str) -> bool) -> String {
    loop {
        let dice: u32 = rand::random();
        let first = FIRST[dice as usize % FIRST.len()];
        let second = SECOND[(dice >> 8) as usize % SECOND.len()];
        let plain = format!("{first}_{second}");
        if is_free(&plain) {
            return plain;
        }
        let numbered = format!("{plain}{}", dice >> 20);
        if is_free(&numbered) {
            return numbered;
        }
    }
}

/// Checks a name that somebody chose.
///
/// # Errors
/// Names the value and the rule.
pub fn check(name: &str) -> Result<(), Error> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if first && name.len() >= 2 && name.len() <= 200 && name.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::field(
        "name",
        name,
        "write 2 to 200 of [a-zA-Z0-9_.-], beginning with a letter or digit",
    ))
}
