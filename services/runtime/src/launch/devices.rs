//! Device nodes of a container, and which devices it may open.
//!
//! Invariant: a node that is in /dev may be opened as its permissions say; nothing else may, whoever makes a node for it.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::convert::ContainerConfig;
use crate::error::Error;
use crate::peers::plan;

/// Name, minor (major 1 or 5), as every container has them.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// What may always be opened: the above, terminals, and making (not opening) of any node.
const ALLOWED: [&str; 12] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:200 rwm",
];

fn is_privileged(config: &ContainerConfig) -> bool {
    config.security.as_ref().is_some_and(|s| s.privileged)
}

fn node(host: &Path, path: &str) -> std::io::Result<Option<plan::DeviceNode>> {
    let meta = std::fs::metadata(host)?;
    let kind = if meta.file_type().is_char_device() {
        "c"
    } else if meta.file_type().is_block_device() {
        "b"
    } else {
        return Ok(None);
    };
    let number = meta.rdev();
    // makedev(3): 12 + 32 bits of major, 8 + 24 of minor.
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
    let minor = (number & 0xff) | ((number >> 12) & !0xff);
    let small = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap_or(0);
    Ok(Some(plan::DeviceNode {
        path: path.to_owned(),
        r#type: kind.to_owned(),
        major: small(major),
        minor: small(minor),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

/// The devices that the user asked for, with their permissions; a directory means all in it.
fn asked(config: &ContainerConfig) -> Result<Vec<(plan::DeviceNode, String)>, Error> {
    let mut found = Vec::new();
    for device in config.resources.iter().flat_map(|all| &all.devices) {
        let target = if device.container_path.is_empty() {
            &device.host_path
        } else {
            &device.container_path
        };
        let permissions = if device.permissions.is_empty() {
            "rwm".to_owned()
        } else {
            device.permissions.clone()
        };
        if !permissions.bytes().all(|byte| b"rwm".contains(&byte)) {
            return Err(Error::field(
                "device permissions",
                &device.permissions,
                "write some of r, w and m",
            ));
        }
        let mut one = |host: &Path, path: &str| {
            let node = node(host, path)
                .map_err(|error| Error::field("device", &device.host_path, error.to_string()))?;
            found.extend(node.map(|node| (node, permissions.clone())));
            Ok::<_, Error>(())
        };
        let host = Path::new(&device.host_path);
        if host.is_dir() {
            let entries = std::fs::read_dir(host).map_err(Error::io("list", host))?;
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                one(&entry.path(), &format!("{target}/{name}"))?;
            }
        } else {
            let before = found.len();
            let node = node(host, target)
                .map_err(|error| Error::field("device", &device.host_path, error.to_string()))?;
            found.extend(node.map(|node| (node, permissions.clone())));
            if found.len() == before {
                return Err(Error::field(
                    "device",
                    &device.host_path,
                    "is no device node",
                ));
            }
        }
    }
    Ok(found)
}

/// Checks the devices of a request.
///
/// # Errors
/// Names the device that is missing or none.
pub fn check(config: &ContainerConfig) -> Result<(), Error> {
    asked(config).map(drop)
}

/// Every device node of the host's /dev, for a privileged container.
fn all_of_host() -> Vec<plan::DeviceNode> {
    let mut found = Vec::new();
    let mut open = vec![std::path::PathBuf::from("/dev")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let text = path.to_string_lossy().into_owned();
            let own = [
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/dev/fd",
                "/dev/console",
            ];
            if own.contains(&text.as_str()) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                    found.extend(node(&path, &text).ok().flatten());
                }
                _ => {}
            }
        }
    }
    found
}

/// The nodes to make.
///
/// # Errors
/// When a device that was asked for is gone.
pub fn nodes(config: &ContainerConfig) -> Result<Vec<plan::DeviceNode>, Error> {
    let default = |(name, major, minor): &(&str, u32, u32)| plan::DeviceNode {
        path: format!("/dev/{name}"),
        r#type: "c".into(),
        major: *major,
        minor: *minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut nodes: Vec<plan::DeviceNode> = DEFAULT.iter().map(default).collect();
    if is_privileged(config) {
        let known: Vec<String> = nodes.iter().map(|node| node.path.clone()).collect();
        nodes.extend(
            all_of_host()
                .into_iter()
                .filter(|node| !known.contains(&node.path)),
        );
    }
    for (node, _) in asked(config)? {
        nodes.retain(|known| known.path != node.path);
        nodes.push(node);
    }
    Ok(nodes)
}

/// What is written to the v1 devices controller, in order: file, rule.
pub fn rules(config: &ContainerConfig) -> Vec<(&'static str, String)> {
    if is_privileged(config) {
        return vec![("devices.allow", "a *:* rwm".into())];
    }
    let mut rules = vec![("devices.deny", "a *:* rwm".to_owned())];
    rules.extend(
        ALLOWED
            .iter()
            .map(|rule| ("devices.allow", (*rule).to_owned())),
    );
    // Checked when the container was made; one that has gone since fails where nodes are made.
    for (node, permissions) in asked(config).unwrap_or_default() {
        let rule = format!(
            "{} {}:{} {permissions}",
            node.r#type, node.major, node.minor
        );
        rules.push(("devices.allow", rule));
    }
    rules
}
