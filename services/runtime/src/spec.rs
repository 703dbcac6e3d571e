//! From a request and an image to what the container is to be. Pure.
//!
//! Invariants: what the user says wins over what the image says; every value is checked here, before anything is made.
//! Source: docker run's reference; OCI image specification, config.md.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use crate::convert::{ContainerConfig, MountSpec};
use crate::error::Error;
use crate::signal;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's smallest memory limit, bytes: below it not even the kernel's own share fits.
const LEAST_MEMORY: i64 = 6 << 20;

/// The part of an image's config that containers are made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    exposed_ports: Option<HashMap<String, serde_json::Value>>,
    volumes: Option<HashMap<String, serde_json::Value>>,
    labels: Option<HashMap<String, String>>,
    stop_signal: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Document {
    config: Option<ImageConfig>,
}

/// Reads an image's config document.
///
/// # Errors
/// [`Error::Image`] when it is not one.
pub fn image_config(image: &str, json: &[u8]) -> Result<ImageConfig, Error> {
    let document: Document = serde_json::from_slice(json).map_err(|error| Error::Image {
        image: image.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(document.config.unwrap_or_default())
}

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, without HOME, which the shim finds out.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// As docker's --user.
    pub user: String,
    /// Signal number.
    pub stop_signal: i32,
    /// Of its UTS namespace; empty = the host's.
    pub hostname: String,
    /// The user's, and an anonymous volume for each that the image wants.
    pub mounts: Vec<MountSpec>,
    /// "80/tcp".
    pub exposed: Vec<String>,
    /// Both.
    pub labels: HashMap<String, String>,
}

/// Puts a request and an image together.
///
/// # Errors
/// [`Error::Field`] naming the field, the value and the remedy.
pub fn resolve(id: &str, config: &ContainerConfig, image: &ImageConfig) -> Result<Spec, Error> {
    check(config)?;
    let (mut args, command) = if config.set_entrypoint {
        (config.entrypoint.clone(), Vec::new())
    } else {
        (
            image.entrypoint.clone().unwrap_or_default(),
            image.cmd.clone().unwrap_or_default(),
        )
    };
    args.extend(if config.command.is_empty() {
        command
    } else {
        config.command.clone()
    });
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::field(
            "command",
            args.join(" "),
            format!(
                "nothing to run: image {} has no command; write one after its name",
                config.image
            ),
        ));
    }
    let cwd = [
        config.workdir.as_str(),
        image.working_dir.as_deref().unwrap_or_default(),
        "/",
    ]
    .into_iter()
    .find(|dir| !dir.is_empty())
    .unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(Error::field("workdir", cwd, "write an absolute path"));
    }
    let stop_signal = match (config.stop_signal.as_str(), image.stop_signal.as_deref()) {
        ("", None | Some("")) => signal::TERM,
        ("", Some(name)) | (name, _) => signal::parse(name)?,
    };
    let hostname = hostname(id, config);
    let mut labels = image.labels.clone().unwrap_or_default();
    labels.extend(config.labels.clone());
    let mut exposed: Vec<String> = image
        .exposed_ports
        .iter()
        .flat_map(|ports| ports.keys().cloned())
        .collect();
    exposed.sort();
    Ok(Spec {
        env: environment(config, image, &hostname),
        cwd: cwd.to_owned(),
        user: if config.user.is_empty() {
            image.user.clone().unwrap_or_default()
        } else {
            config.user.clone()
        },
        stop_signal,
        mounts: mounts(config, image)?,
        hostname,
        exposed,
        labels,
        args,
    })
}

fn hostname(id: &str, config: &ContainerConfig) -> String {
    let security = config.security.clone().unwrap_or_default();
    let host_network = first_network(config) == "host";
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    if security.uts_mode == "host" || host_network {
        return std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
    }
    id.chars().take(12).collect()
}

/// The name of the first network, "bridge" when none is asked for.
pub fn first_network(config: &ContainerConfig) -> &str {
    config
        .network
        .as_ref()
        .and_then(|network| network.endpoints.first())
        .map(|endpoint| endpoint.network.as_str())
        .filter(|name| !name.is_empty() && *name != "default")
        .unwrap_or("bridge")
}

fn environment(config: &ContainerConfig, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        env.push("TERM=xterm".into());
    }
    let given = image.env.iter().flatten().chain(&config.env);
    for entry in given {
        // A name without a value takes the variable away.
        let (name, value) = match entry.split_once('=') {
            Some((name, _)) => (name, Some(entry)),
            None => (entry.as_str(), None),
        };
        let known = env
            .iter()
            .position(|known| known.split('=').next() == Some(name));
        match (known, value) {
            (Some(at), Some(value)) => env[at].clone_from(value),
            (Some(at), None) => drop(env.remove(at)),
            (None, Some(value)) => env.push(value.clone()),
            (None, None) => {}
        }
    }
    env
}

/// An absolute path without `.`, `..` and doubled slashes.
pub fn clean_target(field: &'static str, path: &str) -> Result<String, Error> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::field(
            field,
            path,
            "write an absolute path in the container",
        ));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    if parts.is_empty() {
        return Err(Error::field(
            field,
            path,
            "the root itself cannot be mounted on; choose a directory below it",
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn mounts(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<MountSpec>, Error> {
    let mut taken = BTreeSet::new();
    let mut out = Vec::new();
    for mount in &config.mounts {
        let target = clean_target("mount target", &mount.target)?;
        if !taken.insert(target.clone()) {
            return Err(Error::field(
                "mount target",
                target,
                "is used twice; give each mount its own",
            ));
        }
        match mount.r#type.as_str() {
            "bind" if !mount.source.starts_with('/') => {
                return Err(Error::field(
                    "mount source",
                    &mount.source,
                    "write an absolute path on the host",
                ));
            }
            "bind" | "volume" | "tmpfs" => {}
            other => {
                return Err(Error::field(
                    "mount type",
                    other,
                    "write bind, volume or tmpfs",
                ));
            }
        }
        let propagations = [
            "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
        ];
        if !propagations.contains(&mount.propagation.as_str()) {
            return Err(Error::field(
                "mount propagation",
                &mount.propagation,
                "write private, shared or slave, or one of them with an r before it",
            ));
        }
        out.push(MountSpec {
            target,
            ..mount.clone()
        });
    }
    let mut wanted: Vec<&String> = image.volumes.iter().flat_map(HashMap::keys).collect();
    wanted.sort();
    for path in wanted {
        let target = clean_target("volume of the image", path)?;
        if taken.insert(target.clone()) {
            out.push(MountSpec {
                r#type: "volume".into(),
                target,
                ..MountSpec::default()
            });
        }
    }
    // A mount below another must come after it.
    out.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(out)
}

fn check(config: &ContainerConfig) -> Result<(), Error> {
    if config.image.is_empty() {
        return Err(Error::field("image", "", "name an image"));
    }
    let restart = config.restart.clone().unwrap_or_default();
    let policies = ["", "no", "always", "on-failure", "unless-stopped"];
    if !policies.contains(&restart.name.as_str()) {
        return Err(Error::field(
            "restart policy",
            &restart.name,
            "write no, always, unless-stopped, on-failure or on-failure:N",
        ));
    }
    if config.auto_remove && !matches!(restart.name.as_str(), "" | "no") {
        return Err(Error::field(
            "restart policy",
            &restart.name,
            "a container that is removed when it ends (--rm) cannot be restarted; leave one of the two out",
        ));
    }
    if config.hostname.len() > 64 || config.hostname.contains(['\0', '/', ' ']) {
        return Err(Error::field(
            "hostname",
            &config.hostname,
            "write at most 64 letters, digits, dots and dashes",
        ));
    }
    for name in config.sysctls.keys() {
        let namespaced = [
            "net.",
            "kernel.msg",
            "kernel.sem",
            "kernel.shm",
            "fs.mqueue.",
        ];
        if !namespaced.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Error::field(
                "sysctl",
                name,
                "it is the host's; only net.*, fs.mqueue.*, kernel.msg*, kernel.sem and kernel.shm* are the container's own",
            ));
        }
    }
    let resources = config.resources.clone().unwrap_or_default();
    let memory = |field, value: i64| {
        if value != 0 && value < LEAST_MEMORY {
            let reason = format!("at least {LEAST_MEMORY} bytes (6m) are needed");
            return Err(Error::field(field, value.to_string(), reason));
        }
        Ok(())
    };
    memory("memory", resources.memory)?;
    if resources.memory_swap > 0 && resources.memory_swap < resources.memory {
        return Err(Error::field(
            "memory-swap",
            resources.memory_swap.to_string(),
            "it counts memory and swap together, so it must be at least the memory limit",
        ));
    }
    if resources.memory_swap > 0 && resources.memory == 0 {
        return Err(Error::field(
            "memory-swap",
            resources.memory_swap.to_string(),
            "set the memory limit too",
        ));
    }
    if resources.nano_cpus < 0 {
        return Err(Error::field(
            "cpus",
            resources.nano_cpus.to_string(),
            "write a positive number such as 1.5",
        ));
    }
    if resources.pids_limit < -1 {
        return Err(Error::field(
            "pids-limit",
            resources.pids_limit.to_string(),
            "write -1 (none) or a number from 1 on",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Resources;

    fn image() -> ImageConfig {
        image_config(
            "i",
            br#"{"config":{"Env":["PATH=/bin","A=image"],"Entrypoint":["entry"],"Cmd":["cmd"],"WorkingDir":"/w",
                "User":"alice","Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGINT","Labels":{"a":"1","b":"2"}}}"#,
        )
        .unwrap()
    }

    fn config() -> ContainerConfig {
        ContainerConfig {
            image: "i".into(),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn the_user_wins_over_the_image() {
        let plain = resolve("0123456789abcdef", &config(), &image()).unwrap();
        assert_eq!(plain.args, ["entry", "cmd"]);
        assert_eq!(plain.env, ["PATH=/bin", "HOSTNAME=0123456789ab", "A=image"]);
        assert_eq!(
            (plain.cwd.as_str(), plain.user.as_str(), plain.stop_signal),
            ("/w", "alice", 2)
        );
        assert_eq!(plain.mounts[0].target, "/data");
        let asked = ContainerConfig {
            entrypoint: vec!["other".into()],
            set_entrypoint: true,
            env: vec!["A=user".into(), "PATH".into()],
            workdir: "/x".into(),
            user: "0".into(),
            stop_signal: "QUIT".into(),
            hostname: "box".into(),
            labels: HashMap::from([("b".to_owned(), "3".to_owned())]),
            mounts: vec![MountSpec {
                r#type: "tmpfs".into(),
                target: "/data/".into(),
                ..MountSpec::default()
            }],
            ..config()
        };
        let spec = resolve("id", &asked, &image()).unwrap();
        assert_eq!(
            spec.args,
            ["other"],
            "the image's command goes with its entrypoint"
        );
        assert_eq!(spec.env, ["HOSTNAME=box", "A=user"]);
        assert_eq!(
            (spec.cwd.as_str(), spec.user.as_str(), spec.stop_signal),
            ("/x", "0", 3)
        );
        assert_eq!(
            (spec.mounts.len(), spec.mounts[0].r#type.as_str()),
            (1, "tmpfs")
        );
        assert_eq!(
            (spec.labels["a"].as_str(), spec.labels["b"].as_str()),
            ("1", "3")
        );
    }

    #[test]
    fn wrong_values_are_named() {
        type Change = fn(&mut ContainerConfig);
        let bare = ImageConfig::default();
        let with = |change: Change| {
            let mut config = ContainerConfig {
                command: vec!["true".into()],
                ..config()
            };
            change(&mut config);
            resolve("id", &config, &bare).unwrap_err().to_string()
        };
        let cases: [(&str, Change); 7] = [
            ("command", |c| c.command.clear()),
            ("workdir", |c| c.workdir = "relative".into()),
            ("memory", |c| {
                c.resources = Some(Resources {
                    memory: 1024,
                    ..Resources::default()
                })
            }),
            ("NOSUCH", |c| c.stop_signal = "NOSUCH".into()),
            ("kernel.panic", |c| {
                drop(c.sysctls.insert("kernel.panic".into(), "1".into()))
            }),
            ("mount source", |c| {
                c.mounts = vec![MountSpec {
                    r#type: "bind".into(),
                    source: "x".into(),
                    target: "/x".into(),
                    ..MountSpec::default()
                }]
            }),
            ("mount target", |c| {
                c.mounts = vec![MountSpec {
                    r#type: "tmpfs".into(),
                    target: "/..".into(),
                    ..MountSpec::default()
                }]
            }),
        ];
        for (word, change) in cases {
            let text = with(change);
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
