//! Ulimits, devices, security options, restart policies, log options, platforms, detach keys.
//!
//! Invariant: what only the engine can judge (does the device exist, is the capability known) is left to it.

use gantry_proto::runtime::{Device, LogConfig, RestartPolicy, Security, Ulimit};
use gantry_proto::types::Platform;

use super::{bad, units};

/// `nofile=1024:2048`.
///
/// # Errors
/// A sentence naming the value and the grammar.
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong = || {
        bad(
            "--ulimit",
            text,
            "write NAME=SOFT[:HARD], such as nofile=1024:2048; -1 is unlimited",
        )
    };
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text {
        "unlimited" => Ok(-1),
        text => text.parse::<i64>().map_err(|_| wrong()),
    };
    Ok(Ulimit {
        name: name.to_owned(),
        soft: number(soft)?,
        hard: number(hard)?,
    })
}

/// `/dev/a[:/dev/b][:rwm]`.
///
/// # Errors
/// A sentence naming the value and the grammar.
pub fn device(text: &str) -> Result<Device, String> {
    let is_permissions =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, second] if is_permissions(second) => (*host, *host, *second),
        [host, second] => (*host, *second, "rwm"),
        [host, container, permissions] if is_permissions(permissions) => {
            (*host, *container, *permissions)
        }
        _ => ("", "", ""),
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        return Err(bad(
            "--device",
            text,
            "write /dev/HOST[:/dev/CONTAINER][:rwm]",
        ));
    }
    Ok(Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    })
}

/// One `--security-opt`.
///
/// # Errors
/// For an option that does not exist, or a profile that cannot be read.
pub fn security(text: &str, into: &mut Security) -> Result<(), String> {
    let (key, value) = text
        .split_once(['=', ':'])
        .map_or((text, None), |(key, value)| (key, Some(value)));
    match (key, value) {
        ("no-new-privileges", None | Some("true")) => into.no_new_privileges = true,
        ("no-new-privileges", Some("false")) => into.no_new_privileges = false,
        ("seccomp", Some("unconfined")) => into.seccomp = "unconfined".into(),
        ("seccomp", Some("builtin")) => into.seccomp.clear(),
        ("seccomp", Some(file)) => {
            into.seccomp = std::fs::read_to_string(file)
                .map_err(|error| bad("--security-opt", text, error))?;
        }
        ("systempaths", Some("unconfined")) => into.unmask_paths = true,
        // There is no such module to confine with; being unconfined is granted.
        ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
        _ => {
            return Err(bad(
                "--security-opt",
                text,
                "write no-new-privileges, seccomp=FILE, seccomp=unconfined or systempaths=unconfined",
            ));
        }
    }
    Ok(())
}

/// `on-failure:3`.
///
/// # Errors
/// A sentence naming the value and the policies.
pub fn restart(text: &str) -> Result<RestartPolicy, String> {
    let (name, count) = text
        .split_once(':')
        .map_or((text, None), |(name, count)| (name, Some(count)));
    let known = ["", "no", "always", "unless-stopped", "on-failure"].contains(&name);
    let retries = match count {
        None => Some(0),
        Some(count) if name == "on-failure" => count.parse().ok().filter(|count| *count >= 0),
        Some(_) => None,
    };
    match (known, retries) {
        (true, Some(maximum_retries)) => Ok(RestartPolicy {
            name: name.to_owned(),
            maximum_retries,
        }),
        _ => Err(bad(
            "--restart",
            text,
            "write no, always, unless-stopped or on-failure[:N]",
        )),
    }
}

/// `max-size=10m`, `max-file=3`.
///
/// # Errors
/// For an option that does not exist.
pub fn log_option(text: &str, into: &mut LogConfig) -> Result<(), String> {
    let wrong = |why: &str| bad("--log-opt", text, why);
    match text.split_once('=') {
        Some(("max-size", size)) => {
            into.max_size = units::size(size).map_err(|why| wrong(&why))?;
        }
        Some(("max-file", count)) => {
            into.max_files = count
                .parse()
                .ok()
                .filter(|count| *count >= 1)
                .ok_or_else(|| wrong("write a number from 1 on"))?;
        }
        // docker's other options of json-file only add fields to the file.
        Some(("mode" | "compress" | "labels" | "tag" | "env", _)) => {}
        _ => return Err(wrong("write max-size=SIZE or max-file=N")),
    }
    Ok(())
}

/// `linux/arm64/v8`.
///
/// # Errors
/// A sentence naming the value and the grammar.
pub fn platform(text: &str) -> Result<Platform, String> {
    let parsed: gantry_types::Platform = text
        .parse()
        .map_err(|error| bad("--platform", text, format!("{error}")))?;
    Ok(parsed.into())
}

/// The bytes of `ctrl-p,ctrl-q`.
///
/// # Errors
/// A sentence naming the value and the grammar.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, String> {
    let key = |part: &str| match part.strip_prefix("ctrl-") {
        Some(rest) => match rest.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@'..=b'_')] => Some(letter & 0x1f),
            _ => None,
        },
        None => match part.as_bytes() {
            [byte] => Some(*byte),
            _ => None,
        },
    };
    let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
    keys.ok_or_else(|| {
        bad(
            "--detach-keys",
            text,
            "write keys with commas between them, such as ctrl-p,ctrl-q or ctrl-a,d",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let limit = ulimit("nofile=1:2").unwrap();
        assert_eq!(
            (limit.name.as_str(), limit.soft, limit.hard),
            ("nofile", 1, 2)
        );
        assert_eq!(ulimit("core=-1").unwrap().hard, -1);
        let two = device("/dev/a:/dev/b:r").unwrap();
        assert_eq!(
            (two.container_path.as_str(), two.permissions.as_str()),
            ("/dev/b", "r")
        );
        assert_eq!(device("/dev/a:rw").unwrap().permissions, "rw");
        assert_eq!(restart("on-failure:3").unwrap().maximum_retries, 3);
        assert_eq!(detach_keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(detach_keys("a").unwrap(), [b'a']);
        let mut log = LogConfig::default();
        log_option("max-size=1k", &mut log).unwrap();
        assert_eq!(log.max_size, 1024);
        let mut security_options = Security::default();
        for option in [
            "no-new-privileges",
            "seccomp=unconfined",
            "systempaths=unconfined",
        ] {
            security(option, &mut security_options).unwrap();
        }
        assert!(security_options.no_new_privileges && security_options.unmask_paths);
        assert_eq!(platform("linux/amd64").unwrap().architecture, "amd64");
    }

    #[test]
    fn wrong_values_name_their_flag() {
        let mut log = LogConfig::default();
        let mut options = Security::default();
        let errors = [
            ulimit("nofile").unwrap_err(),
            device("x").unwrap_err(),
            restart("always:3").unwrap_err(),
            restart("sometimes").unwrap_err(),
            detach_keys("ctrl-").unwrap_err(),
            log_option("size=1", &mut log).unwrap_err(),
            security("nothing", &mut options).unwrap_err(),
            security("seccomp=/no/such", &mut options).unwrap_err(),
        ];
        for (error, flag) in errors.iter().zip([
            "--ulimit",
            "--device",
            "--restart",
            "--restart",
            "--detach-keys",
            "--log-opt",
            "--security-opt",
            "--security-opt",
        ]) {
            assert!(error.contains(flag), "{error}");
        }
    }
}
