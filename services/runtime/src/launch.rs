//! From a container's record to the plan that its shim carries out. Pure, but for looking at devices and mount sources.
//!
//! Invariants: the defaults are docker's (mounts, devices, masked paths, capabilities, filter); what the host cannot give
//! (a capability, swap accounting) is left out with a warning instead of failing the start.
//! Source: OCI runtime specification, config-linux.md; moby's default spec.

mod cgroups;
mod devices;
mod mounts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gantry_sys::caps;
use gantry_sys::cgroup::Layout;

use crate::convert::{ContainerConfig, Security};
use crate::error::Error;
use crate::peers::plan;
use crate::schema::ContainerRecord;

pub use cgroups::directories;
pub use devices::check as check_devices;

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_SYS: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
/// Resource limits by name (getrlimit(2); the number is the position).
const LIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// What the host is like.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its control groups.
    pub layout: Layout,
    /// The group above all containers.
    pub cgroup_parent: String,
    /// Capabilities that can be given at all.
    pub permitted: u64,
    /// For containers without a limit of their own.
    pub default_pids_limit: i64,
    /// For containers without log settings.
    pub log: (i64, i32),
}

/// What is known only at the start.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// The pinned network namespace; empty = the host's.
    pub netns: String,
    /// The container's folder, with hosts, hostname and resolv.conf.
    pub home: PathBuf,
    /// Namespaces of other containers to join: kind, path.
    pub join: Vec<(String, String)>,
    /// Rows and columns of the first terminal.
    pub size: (u32, u32),
}

/// Names of the capabilities that a container has.
///
/// # Errors
/// For a name that the kernel does not know.
pub fn capabilities(security: &Security) -> Result<BTreeSet<String>, Error> {
    let bare = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
    };
    let known = |field, name: &String| match bare(name) {
        all if all == "ALL" => Ok(all),
        cap if caps::NAMES.contains(&cap.as_str()) => Ok(cap),
        _ => Err(Error::field(
            field,
            name,
            "is no capability; write a name such as NET_ADMIN, or ALL",
        )),
    };
    let every = || caps::NAMES.iter().map(|name| (*name).to_owned());
    let mut set: BTreeSet<String> = if security.privileged {
        every().collect()
    } else {
        caps::DEFAULT
            .iter()
            .map(|name| (*name).to_owned())
            .collect()
    };
    let add: Result<Vec<_>, _> = security
        .cap_add
        .iter()
        .map(|name| known("cap-add", name))
        .collect();
    let drop: Result<Vec<_>, _> = security
        .cap_drop
        .iter()
        .map(|name| known("cap-drop", name))
        .collect();
    let (add, drop) = (add?, drop?);
    // ALL first, whichever side it is on, then the single names.
    if drop.iter().any(|name| name == "ALL") {
        set.clear();
    }
    if add.iter().any(|name| name == "ALL") {
        set.extend(every());
    }
    set.extend(add.into_iter().filter(|name| name != "ALL"));
    for name in drop {
        set.remove(&name);
    }
    Ok(set)
}

/// The resource limits.
///
/// # Errors
/// For a name that is none, or a soft limit above the hard one.
pub fn limits(config: &ContainerConfig) -> Result<Vec<plan::Rlimit>, Error> {
    let asked = config.resources.iter().flat_map(|all| &all.ulimits);
    let one = |limit: &crate::convert::Ulimit| {
        let number = LIMITS
            .iter()
            .position(|name| *name == limit.name)
            .and_then(|at| u32::try_from(at).ok())
            .ok_or_else(|| {
                let reason = format!("is no limit; write one of {}", LIMITS.join(", "));
                Error::field("ulimit", &limit.name, reason)
            })?;
        let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        if soft > hard {
            return Err(Error::field(
                "ulimit",
                format!("{}={}:{}", limit.name, limit.soft, limit.hard),
                "the soft limit is above the hard one",
            ));
        }
        Ok(plan::Rlimit {
            resource: number,
            soft,
            hard,
        })
    };
    asked.map(one).collect()
}

/// A process of the container: the first one, or with other words a further one.
///
/// # Errors
/// For a capability or a limit that is none.
pub fn process(
    host: &Host,
    record: &ContainerRecord,
    privileged: bool,
) -> Result<plan::Process, Error> {
    let config = record.config.clone().unwrap_or_default();
    let mut security = config.security.clone().unwrap_or_default();
    security.privileged |= privileged;
    let names = capabilities(&security)?;
    let numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| caps::number(name))
        .filter(|number| host.permitted & (1 << number) != 0)
        .collect();
    let filter = if security.privileged {
        "unconfined"
    } else {
        &security.seccomp
    };
    let score = config
        .resources
        .as_ref()
        .map_or(0, |resources| resources.oom_score_adj);
    Ok(plan::Process {
        args: record.args.clone(),
        env: record.env.clone(),
        cwd: record.cwd.clone(),
        user: record.user.clone(),
        additional_groups: config.group_add.clone(),
        terminal: config.tty,
        bounding: numbers.clone(),
        effective: numbers.clone(),
        permitted: numbers,
        no_new_privileges: security.no_new_privileges,
        seccomp: crate::seccomp::compile(filter, &names)?,
        rlimits: limits(&config)?,
        oom_score_adj: (score != 0).then_some(score),
        ..plan::Process::default()
    })
}

/// The namespaces: made new, joined, or (left out) the host's.
fn namespaces(config: &ContainerConfig, now: &Now) -> Vec<plan::Namespace> {
    let security = config.security.clone().unwrap_or_default();
    let mut found = vec![("mnt", String::new())];
    for (kind, mode) in [
        ("pid", &security.pid_mode),
        ("ipc", &security.ipc_mode),
        ("uts", &security.uts_mode),
        ("cgroup", &security.cgroupns_mode),
    ] {
        let joined = now.join.iter().find(|(joined, _)| joined == kind);
        match joined {
            Some((_, path)) => found.push((kind, path.clone())),
            None if mode == "host" => {}
            None => found.push((kind, String::new())),
        }
    }
    if !now.netns.is_empty() {
        found.push(("net", now.netns.clone()));
    }
    found
        .into_iter()
        .map(|(kind, path)| plan::Namespace {
            kind: kind.to_owned(),
            path,
        })
        .collect()
}

/// The whole plan.
///
/// # Errors
/// For a value of the record that the host makes wrong: a device or a mount source that is gone.
pub fn launch(
    host: &Host,
    id: &str,
    record: &ContainerRecord,
    now: &Now,
) -> Result<plan::Launch, Error> {
    let config = record.config.clone().unwrap_or_default();
    let security = config.security.clone().unwrap_or_default();
    let mut process = process(host, record, false)?;
    (process.rows, process.columns) = now.size;
    let namespaces = namespaces(&config, now);
    let own_uts = namespaces
        .iter()
        .any(|namespace| namespace.kind == "uts" && namespace.path.is_empty());
    let open = security.privileged || security.unmask_paths;
    let texts = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    let (masked, mut readonly): (Vec<String>, Vec<String>) = if open {
        (Vec::new(), Vec::new())
    } else {
        (
            texts(&[&MASKED[..], &MASKED_SYS[..]].concat()),
            texts(&READONLY),
        )
    };
    if !security.privileged {
        readonly.push("/sys/fs/cgroup".into());
    }
    let log = config.log.unwrap_or_default();
    let or = |value: i64, default: i64| if value == 0 { default } else { value };
    Ok(plan::Launch {
        id: id.to_owned(),
        hostname: if own_uts {
            record.hostname.clone()
        } else {
            String::new()
        },
        domainname: if own_uts {
            config.domainname.clone()
        } else {
            String::new()
        },
        cgroup: Some(cgroups::plan(host, id, &config)),
        mounts: mounts::plan(host, record, &config, now)?,
        devices: devices::nodes(&config)?,
        masked_paths: masked,
        readonly_paths: readonly,
        readonly_rootfs: security.readonly_rootfs,
        sysctls: config.sysctls.clone(),
        process: Some(process),
        log: Some(plan::LogPlan {
            path: log_path(&now.home).to_string_lossy().into_owned(),
            max_size: u64::try_from(or(log.max_size, host.log.0)).unwrap_or(u64::MAX),
            max_files: u32::try_from(or(log.max_files.into(), host.log.1.into())).unwrap_or(1),
        }),
        init: config.init,
        open_stdin: config.open_stdin,
        namespaces,
        ..plan::Launch::default()
    })
}

/// Where a container's log is.
pub fn log_path(home: &Path) -> PathBuf {
    home.join("container.log")
}

#[cfg(test)]
mod tests;
