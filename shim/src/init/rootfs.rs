//! The container's file system: mounts, devices, masked paths, the switch of the root.
//!
//! Invariants: every place is found beneath the new root by openat2, so no symlink of an image leads outside; every mount is
//! made detached and then moved to its place; nothing reaches the host's mount namespace.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use gantry_proto::shim::{DeviceNode, Launch, MountPlan};
use gantry_sys::fs::{self, Make};
use gantry_sys::mount::{self, Attributes, Detached, Options};
use gantry_sys::ns;

use super::Failed;

/// Links that programs expect in /dev (OCI runtime specification, Linux, "Dev symbolic links").
const DEV_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

fn detached(plan: &MountPlan, options: &Options) -> Result<Detached, Failed> {
    let made = if options.bind.is_some() || plan.r#type == "bind" {
        mount::copy_of(Path::new(&plan.source), options.bind.unwrap_or(true))
    } else {
        mount::new_fs(&plan.r#type, &plan.source, &options.data)
    };
    made.map_err(|error| {
        format!(
            "mount {} {:?} on {}: {error}",
            plan.r#type, plan.source, plan.target
        )
        .into()
    })
}

/// Makes the root file system and everything in it, and makes it this process's root.
pub fn build(plan: &Launch, scratch: &Path) -> Result<(), Failed> {
    ns::isolate_mounts(true).map_err(|error| format!("isolate the mounts: {error}"))?;
    let (first, rest) = plan
        .mounts
        .split_first()
        .ok_or_else(|| "the launch plan has no root mount".to_owned())?;
    let options = Options::parse(&first.options);
    let place =
        fs::open_path(scratch).map_err(|error| format!("open {}: {error}", scratch.display()))?;
    let root = detached(first, &options)?;
    mount::set_attributes(
        root.fd(),
        Attributes {
            propagation: 0,
            ..options.attributes
        },
    )
    .and_then(|()| root.attach(place.as_fd()))
    .map_err(|error| format!("mount the root file system: {error}"))?;
    // The place's handle still means what is below the mount; the mount's own handle is its top.
    let root = root
        .fd()
        .try_clone_to_owned()
        .map_err(|error| format!("hold the root: {error}"))?;
    for mount in rest {
        one(&root, mount)?;
    }
    devices(&root, &plan.devices)?;
    ns::switch_root(root.as_fd())
        .map_err(|error| format!("switch to the root file system: {error}"))?;
    Ok(())
}

fn one(root: &OwnedFd, plan: &MountPlan) -> Result<(), Failed> {
    let fail = |error: std::io::Error| {
        Failed::from(format!("mount {} on {}: {error}", plan.r#type, plan.target))
    };
    let options = Options::parse(&plan.options);
    let make = if plan.create == "file" {
        Make::File
    } else {
        Make::Dir
    };
    let place = fs::ensure_in_root(root.as_fd(), Path::new(&plan.target), make).map_err(fail)?;
    let mounted = detached(plan, &options)?;
    mount::set_attributes(mounted.fd(), options.attributes).map_err(fail)?;
    mounted.attach(place.as_fd()).map_err(fail)
}

fn devices(root: &OwnedFd, nodes: &[DeviceNode]) -> Result<(), Failed> {
    for node in nodes {
        let fail =
            |error: std::io::Error| Failed::from(format!("make device {}: {error}", node.path));
        let path = Path::new(&node.path);
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path
            .file_name()
            .ok_or_else(|| format!("device {:?} has no name", node.path))?;
        let dir = fs::ensure_in_root(root.as_fd(), parent, Make::Dir).map_err(fail)?;
        match fs::make_device(
            &dir,
            name,
            node.r#type == "b",
            node.major,
            node.minor,
            node.mode,
        ) {
            Ok(()) => fs::set_owner(&dir, name, node.uid, node.gid).map_err(fail)?,
            // Not allowed in a user namespace: the host's node is shown instead.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let place = fs::ensure_in_root(root.as_fd(), path, Make::File).map_err(fail)?;
                mount::copy_of(path, false)
                    .and_then(|host| host.attach(place.as_fd()))
                    .map_err(fail)?;
            }
            Err(error) => return Err(fail(error)),
        }
    }
    // The links belong to a /dev that we made; an image without devices (an OCI bundle) keeps its own.
    if let (false, Ok(dev)) = (
        nodes.is_empty(),
        fs::open_in_root(root.as_fd(), Path::new("dev")),
    ) {
        for (target, name) in DEV_LINKS {
            fs::ensure_symlink(target, &dev, name)
                .map_err(|error| format!("link /dev/{name}: {error}"))?;
        }
    }
    Ok(())
}

/// Shows the terminal as /dev/console, as the console of a system is expected there.
pub fn bind_console(slave: &str) -> Result<(), Failed> {
    let fail = |error: std::io::Error| Failed::from(format!("make /dev/console: {error}"));
    let root = fs::open_path(Path::new("/")).map_err(fail)?;
    let place =
        fs::ensure_in_root(root.as_fd(), Path::new("/dev/console"), Make::File).map_err(fail)?;
    mount::copy_of(Path::new(slave), false)
        .and_then(|tty| tty.attach(place.as_fd()))
        .map_err(fail)
}

/// What is done from inside, last: sysctls, masked and read-only paths, the read-only root.
pub fn seal(plan: &Launch) -> Result<(), Failed> {
    for (name, value) in &plan.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value)
            .map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
    }
    let readonly = Attributes {
        set: Options::parse(&["ro"]).attributes.set,
        ..Attributes::default()
    };
    for path in &plan.readonly_paths {
        let fail = |error: std::io::Error| Failed::from(format!("make {path} read-only: {error}"));
        match mount::copy_of(Path::new(path), true) {
            Ok(copy) => {
                let place = fs::open_path(Path::new(path)).map_err(fail)?;
                let recursive = Attributes {
                    recursive: true,
                    ..readonly
                };
                mount::set_attributes(copy.fd(), recursive)
                    .and_then(|()| copy.attach(place.as_fd()))
                    .map_err(fail)?;
            }
            // What this kernel does not have needs no protection.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
    }
    for path in &plan.masked_paths {
        mask(path).map_err(|error| format!("mask {path}: {error}"))?;
    }
    if plan.readonly_rootfs {
        let root =
            fs::open_path(Path::new("/")).map_err(|error| format!("open the root: {error}"))?;
        mount::set_attributes(root.as_fd(), readonly)
            .map_err(|error| format!("make the root read-only: {error}"))?;
    }
    Ok(())
}

fn mask(path: &str) -> std::io::Result<()> {
    let place = match fs::open_path(Path::new(path)) {
        Ok(place) => place,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let cover = if std::fs::metadata(path)?.is_dir() {
        let empty = mount::new_fs(
            "tmpfs",
            "tmpfs",
            &["size=0k".to_owned(), "nr_inodes=1".to_owned()],
        )
        .or_else(|_| mount::new_fs("tmpfs", "tmpfs", &[]))?;
        let readonly = Options::parse(&["ro", "nosuid", "nodev", "noexec"]).attributes;
        mount::set_attributes(empty.fd(), readonly)?;
        empty
    } else {
        mount::copy_of(Path::new("/dev/null"), false)?
    };
    cover.attach(place.as_fd())
}
