//! What is mounted in a container, in order.
//!
//! Invariant: a mount below another comes after it; the first makes the root file system.

use std::path::Path;

use gantry_sys::cgroup::Layout;

use super::{Host, Now};
use crate::convert::{ContainerConfig, MountSpec};
use crate::error::Error;
use crate::peers::plan;
use crate::schema::ContainerRecord;

/// Bytes of /dev/shm.
const SHM_SIZE: i64 = 64 << 20;

fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> plan::MountPlan {
    plan::MountPlan {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        create: "dir".to_owned(),
    }
}

/// The mounts of a start.
///
/// # Errors
/// When a bind mount's source is gone.
pub fn plan(
    host: &Host,
    record: &ContainerRecord,
    config: &ContainerConfig,
    now: &Now,
) -> Result<Vec<plan::MountPlan>, Error> {
    let security = config.security.clone().unwrap_or_default();
    let open = if security.privileged { "rw" } else { "ro" };
    let size = config
        .resources
        .as_ref()
        .map_or(0, |resources| resources.shm_size);
    let shm = format!("size={}", if size > 0 { size } else { SHM_SIZE });
    let mut mounts: Vec<plan::MountPlan> = record
        .root
        .iter()
        .map(|root| plan::MountPlan {
            r#type: root.kind.clone(),
            source: root.source.clone(),
            target: "/".into(),
            options: root.options.clone(),
            create: "dir".into(),
        })
        .collect();
    let plain = ["nosuid", "noexec", "nodev"];
    mounts.push(mount("proc", "proc", "/proc", &plain));
    mounts.push(mount(
        "tmpfs",
        "tmpfs",
        "/dev",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ));
    mounts.push(mount(
        "devpts",
        "devpts",
        "/dev/pts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ));
    mounts.push(mount(
        "sysfs",
        "sysfs",
        "/sys",
        &["nosuid", "noexec", "nodev", open],
    ));
    cgroup(host, &mut mounts);
    mounts.push(mount("mqueue", "mqueue", "/dev/mqueue", &plain));
    if security.ipc_mode == "host" {
        mounts.push(mount("bind", "/dev/shm", "/dev/shm", &["rbind"]));
    } else {
        mounts.push(mount(
            "tmpfs",
            "shm",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ));
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if record.mounts.iter().any(|own| own.target == target) {
            continue;
        }
        let source = now.home.join(name).to_string_lossy().into_owned();
        mounts.push(plan::MountPlan {
            create: "file".into(),
            ..mount("bind", &source, &target, &["bind", "rprivate"])
        });
    }
    for own in &record.mounts {
        mounts.push(users(own)?);
    }
    Ok(mounts)
}

/// What the container sees of its control groups: with a cgroup namespace, its own as the root.
fn cgroup(host: &Host, mounts: &mut Vec<plan::MountPlan>) {
    let plain = ["nosuid", "noexec", "nodev"];
    match &host.layout {
        Layout::V2 { .. } => mounts.push(mount("cgroup2", "cgroup", "/sys/fs/cgroup", &plain)),
        Layout::V1 { .. } => {
            mounts.push(mount(
                "tmpfs",
                "cgroup",
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
            ));
            for (controllers, _) in super::directories(host, "") {
                // One place a controller, also where the host has several in one hierarchy.
                for controller in controllers.split(',') {
                    let target = format!("/sys/fs/cgroup/{controller}");
                    let mut options = plain.to_vec();
                    options.extend(controllers.split(','));
                    mounts.push(mount("cgroup", "cgroup", &target, &options));
                }
            }
        }
    }
}

/// A mount that the user asked for.
fn users(own: &MountSpec) -> Result<plan::MountPlan, Error> {
    if own.r#type == "tmpfs" {
        let mut options: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        if own.tmpfs_size > 0 {
            options.push(format!("size={}", own.tmpfs_size));
        }
        if own.tmpfs_mode > 0 {
            options.push(format!("mode={:o}", own.tmpfs_mode));
        }
        options.extend(own.options.iter().cloned());
        if own.readonly {
            options.push("ro".into());
        }
        return Ok(plan::MountPlan {
            options,
            ..mount("tmpfs", "tmpfs", &own.target, &[])
        });
    }
    let source = Path::new(&own.source);
    let meta = std::fs::metadata(source).map_err(|error| {
        let reason = format!("{error}; make it first, or use -v, which makes a directory");
        Error::field("mount source", &own.source, reason)
    })?;
    let mut options = vec!["rbind"];
    options.push(if own.propagation.is_empty() {
        "rprivate"
    } else {
        &own.propagation
    });
    if own.readonly {
        options.push("rro");
    }
    options.extend(own.options.iter().map(String::as_str));
    Ok(plan::MountPlan {
        create: if meta.is_dir() { "dir" } else { "file" }.into(),
        ..mount("bind", &own.source, &own.target, &options)
    })
}
