//! The container's control groups on v1, hybrid and v2 hosts.
//!
//! Invariants: a v1 container gets a directory in each hierarchy that limits or counts for it; values are what docker writes;
//! swap limits are optional, since kernels without swap accounting have no file for them.

use std::path::PathBuf;

use gantry_sys::cgroup::Layout;

use super::Host;
use super::devices;
use crate::convert::{ContainerConfig, Resources};
use crate::peers::plan;

/// v1 controllers that a container has a directory for.
const OURS: [&str; 7] = [
    "memory", "pids", "cpu", "cpuacct", "devices", "freezer", "cpuset",
];
/// Microseconds in which a CPU quota is counted.
const PERIOD: i64 = 100_000;

fn write(file: &str, value: impl ToString, optional: bool) -> plan::CgroupWrite {
    plan::CgroupWrite {
        file: file.to_owned(),
        value: value.to_string(),
        optional,
    }
}

/// The directories of a container: controllers and path, the same for a start and for looking after a shim that died.
pub fn directories(host: &Host, id: &str) -> Vec<(String, PathBuf)> {
    let below = |root: &PathBuf| root.join(host.cgroup_parent.trim_matches('/')).join(id);
    match &host.layout {
        Layout::V2 { path } => vec![(String::new(), below(path))],
        Layout::V1 { hierarchies, .. } => {
            let mut found = Vec::new();
            for hierarchy in hierarchies {
                let ours = hierarchy
                    .controllers
                    .iter()
                    .find(|name| OURS.contains(&name.as_str()));
                if ours.is_some() {
                    found.push((hierarchy.controllers.join(","), below(&hierarchy.path)));
                }
            }
            found
        }
    }
}

/// What the shim makes and writes.
pub fn plan(host: &Host, id: &str, config: &ContainerConfig) -> plan::CgroupPlan {
    let resources = config.resources.clone().unwrap_or_default();
    let v2 = matches!(host.layout, Layout::V2 { .. });
    let dirs = directories(host, id)
        .into_iter()
        .map(|(controllers, path)| plan::CgroupDir {
            path: path.to_string_lossy().into_owned(),
            writes: if v2 {
                unified(host, &resources)
            } else {
                let each = controllers
                    .split(',')
                    .flat_map(|controller| legacy(host, controller, &resources, config));
                each.collect()
            },
            // The one that tells of killings for want of memory is looked for by its name.
            controller: controllers
                .split(',')
                .find(|name| *name == "memory")
                .map_or(controllers.clone(), str::to_owned),
        });
    plan::CgroupPlan {
        dirs: dirs.collect(),
        v2,
        devices: if v2 {
            let allowed = devices::rules(config).into_iter();
            allowed
                .filter(|(file, _)| *file == "devices.allow")
                .map(|(_, rule)| rule)
                .collect()
        } else {
            Vec::new()
        },
    }
}

fn pids(host: &Host, resources: &Resources) -> Option<i64> {
    Some(match resources.pids_limit {
        0 => host.default_pids_limit,
        limit => limit,
    })
    .filter(|limit| *limit > 0)
}

/// Memory and swap together, bytes; `None` = no limit.
fn memory_and_swap(resources: &Resources) -> Option<i64> {
    match (resources.memory, resources.memory_swap) {
        (0, _) | (_, -1) => None,
        (memory, 0) => Some(memory.saturating_mul(2)),
        (_, both) => Some(both),
    }
}

fn legacy(
    host: &Host,
    controller: &str,
    resources: &Resources,
    config: &ContainerConfig,
) -> Vec<plan::CgroupWrite> {
    let mut writes = Vec::new();
    match controller {
        "memory" => {
            if resources.memory > 0 {
                writes.push(write("memory.limit_in_bytes", resources.memory, false));
            }
            if let Some(both) = memory_and_swap(resources) {
                writes.push(write("memory.memsw.limit_in_bytes", both, true));
            }
            if resources.memory_reservation > 0 {
                writes.push(write(
                    "memory.soft_limit_in_bytes",
                    resources.memory_reservation,
                    false,
                ));
            }
            if resources.oom_kill_disable {
                writes.push(write("memory.oom_control", 1, false));
            }
        }
        "cpu" => {
            if resources.cpu_shares > 0 {
                writes.push(write("cpu.shares", resources.cpu_shares, false));
            }
            if resources.nano_cpus > 0 {
                writes.push(write("cpu.cfs_period_us", PERIOD, false));
                writes.push(write("cpu.cfs_quota_us", quota(resources.nano_cpus), false));
            }
        }
        "cpuset" => {
            // A new group is empty; the parent's processors are what it may have at most.
            for (file, wanted) in [
                ("cpuset.cpus", &resources.cpuset_cpus),
                ("cpuset.mems", &resources.cpuset_mems),
            ] {
                let value = if wanted.is_empty() {
                    inherited(host, file)
                } else {
                    wanted.clone()
                };
                writes.push(write(file, value, false));
            }
        }
        "pids" => {
            if let Some(limit) = pids(host, resources) {
                writes.push(write("pids.max", limit, false));
            }
        }
        "devices" => writes.extend(
            devices::rules(config)
                .into_iter()
                .map(|(file, rule)| write(file, rule, false)),
        ),
        _ => {}
    }
    writes
}

fn inherited(host: &Host, file: &str) -> String {
    let Layout::V1 { hierarchies, .. } = &host.layout else {
        return String::new();
    };
    hierarchies
        .iter()
        .filter(|hierarchy| hierarchy.controllers.iter().any(|name| name == "cpuset"))
        .filter_map(|hierarchy| {
            let parent = hierarchy.path.join(host.cgroup_parent.trim_matches('/'));
            std::fs::read_to_string(parent.join(file)).ok()
        })
        .map(|text| text.trim().to_owned())
        .next()
        .unwrap_or_default()
}

fn unified(host: &Host, resources: &Resources) -> Vec<plan::CgroupWrite> {
    let mut writes = Vec::new();
    if resources.memory > 0 {
        writes.push(write("memory.max", resources.memory, false));
    }
    if let Some(both) = memory_and_swap(resources) {
        let swap = (both - resources.memory).max(0);
        writes.push(write("memory.swap.max", swap, true));
    }
    if resources.memory_reservation > 0 {
        writes.push(write("memory.low", resources.memory_reservation, false));
    }
    if resources.cpu_shares > 0 {
        // From 2..262144 to 1..10000, as the OCI runtimes do.
        let weight = 1 + (resources.cpu_shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        writes.push(write("cpu.weight", weight, false));
    }
    if resources.nano_cpus > 0 {
        let value = format!("{} {PERIOD}", quota(resources.nano_cpus));
        writes.push(write("cpu.max", value, false));
    }
    for (file, value) in [
        ("cpuset.cpus", &resources.cpuset_cpus),
        ("cpuset.mems", &resources.cpuset_mems),
    ] {
        if !value.is_empty() {
            writes.push(write(file, value, false));
        }
    }
    if let Some(limit) = pids(host, resources) {
        writes.push(write("pids.max", limit, false));
    }
    writes
}

/// Microseconds a period; the kernel wants at least a thousand.
fn quota(nano_cpus: i64) -> i64 {
    (nano_cpus.saturating_mul(PERIOD) / 1_000_000_000).max(1000)
}
