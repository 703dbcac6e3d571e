//! Profiles in docker's JSON format, and the table of system calls that rules are written by.
//!
//! Invariant: a name that this processor does not have is left out, as libseccomp does; a name that no processor has, too,
//! since profiles are older and newer than kernels.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use serde::Deserialize;

use super::bpf::{Action, Cases, Check, Compare, Rules, Table};

/// Error numbers that profiles use.
pub mod errno {
    /// Operation not permitted.
    pub const EPERM: u16 = 1;
    /// Function not implemented.
    pub const ENOSYS: u16 = 38;
}

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not JSON of the right shape.
    #[error("the seccomp profile is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// An action or operator is unknown.
    #[error("the seccomp profile has the unknown {what} {value:?}")]
    Unknown {
        /// Action or operator.
        what: &'static str,
        /// As written.
        value: String,
    },
    /// An argument that does not exist.
    #[error("the seccomp profile checks argument {0}; there are 0 to 5")]
    Argument(u32),
}

type Number = fn(&str) -> Option<u32>;

/// AUDIT_ARCH and the numbers of the host's own calls, and of the 32-bit ones that it runs too.
const ARCHITECTURES: &[(u32, Number, usize)] = if cfg!(target_arch = "aarch64") {
    &[
        (
            0xC000_00B7,
            |name| {
                syscalls::aarch64::Sysno::from_str(name)
                    .ok()
                    .and_then(|call| u32::try_from(call.id()).ok())
            },
            syscalls::aarch64::Sysno::last().id() as usize,
        ),
        (
            0x4000_0028,
            |name| {
                syscalls::arm::Sysno::from_str(name)
                    .ok()
                    .and_then(|call| u32::try_from(call.id()).ok())
            },
            syscalls::arm::Sysno::last().id() as usize,
        ),
    ]
} else {
    &[
        (
            0xC000_003E,
            |name| {
                syscalls::x86_64::Sysno::from_str(name)
                    .ok()
                    .and_then(|call| u32::try_from(call.id()).ok())
            },
            syscalls::x86_64::Sysno::last().id() as usize,
        ),
        (
            0x4000_0003,
            |name| {
                syscalls::x86::Sysno::from_str(name)
                    .ok()
                    .and_then(|call| u32::try_from(call.id()).ok())
            },
            syscalls::x86::Sysno::last().id() as usize,
        ),
    ]
};

/// The number of a call on this host.
#[cfg(test)]
pub fn number(name: &str) -> Option<u32> {
    ARCHITECTURES[0].1(name)
}

/// Collects rules by name.
#[derive(Debug)]
pub struct Builder {
    default: Action,
    calls: Vec<BTreeMap<u32, Cases>>,
    newest: u32,
}

impl Builder {
    /// A profile in which everything meets the default.
    pub fn new(default: Action) -> Self {
        Self {
            default,
            calls: vec![BTreeMap::new(); ARCHITECTURES.len()],
            newest: u32::MAX - 1,
        }
    }

    /// The newest call (the same number on every architecture since Linux 5.1) that the author of the profile knew.
    pub fn written_for(&mut self, newest: u32) {
        self.newest = newest;
    }

    /// One more rule; an unconditional one wins over those with conditions.
    pub fn rule(&mut self, name: &str, checks: Vec<Check>, action: Action) {
        for ((_, number, _), calls) in ARCHITECTURES.iter().zip(&mut self.calls) {
            let Some(number) = number(name) else { continue };
            let cases = &mut calls.entry(number).or_default().0;
            if checks.is_empty() {
                cases.insert(0, (Vec::new(), Some(action)));
            } else {
                cases.push((checks.clone(), Some(action)));
            }
        }
    }

    /// The profile.
    pub fn finish(self) -> Rules {
        let newest = self.newest;
        let tables = ARCHITECTURES
            .iter()
            .zip(self.calls)
            .map(|((arch, _, last), calls)| Table {
                arch: *arch,
                calls,
                last: u32::try_from(*last).unwrap_or(u32::MAX - 1).min(newest),
            });
        Rules {
            default: self.default,
            tables: tables.collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<JsonArgument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArgument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl Filter {
    fn has_capability(&self, caps: &BTreeSet<String>) -> bool {
        self.caps
            .iter()
            .any(|cap| caps.contains(cap.strip_prefix("CAP_").unwrap_or(cap)))
    }

    fn has_architecture(&self) -> bool {
        let mine = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        self.arches.iter().any(|arch| arch == mine)
    }
}

fn action(text: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    Ok(match text {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(errno::EPERM)),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => {
            return Err(ProfileError::Unknown {
                what: "action",
                value: other.to_owned(),
            });
        }
    })
}

fn check(argument: &JsonArgument) -> Result<Check, ProfileError> {
    let (compare, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Compare::Equal, argument.value),
        "SCMP_CMP_NE" => (Compare::NotEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Compare::Masked(argument.value), argument.value_two),
        "SCMP_CMP_GT" => (Compare::Greater, argument.value),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, argument.value),
        "SCMP_CMP_LT" => (Compare::Less, argument.value),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, argument.value),
        other => {
            return Err(ProfileError::Unknown {
                what: "operator",
                value: other.to_owned(),
            });
        }
    };
    let index = u8::try_from(argument.index)
        .ok()
        .filter(|index| *index < 6)
        .ok_or(ProfileError::Argument(argument.index))?;
    Ok(Check {
        index,
        compare,
        value,
    })
}

/// Reads a profile for a container with these capabilities.
///
/// # Errors
/// [`ProfileError`].
pub fn parse(json: &str, caps: &BTreeSet<String>) -> Result<Rules, ProfileError> {
    let json: Json = serde_json::from_str(json)?;
    let mut builder = Builder::new(action(&json.default_action, json.default_errno_ret)?);
    for rule in &json.syscalls {
        let included = (rule.includes.caps.is_empty() || rule.includes.has_capability(caps))
            && (rule.includes.arches.is_empty() || rule.includes.has_architecture());
        if !included || rule.excludes.has_capability(caps) || rule.excludes.has_architecture() {
            continue;
        }
        let action = action(&rule.action, rule.errno_ret)?;
        let checks: Result<Vec<Check>, _> = rule.args.iter().flatten().map(check).collect();
        let checks = checks?;
        for name in rule.names.iter().chain(&rule.name) {
            builder.rule(name, checks.clone(), action);
        }
    }
    Ok(builder.finish())
}
