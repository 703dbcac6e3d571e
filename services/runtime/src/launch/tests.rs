//! Plans for hosts of each kind.

use super::*;
use crate::convert::{Device, Resources, Ulimit};
use gantry_sys::cgroup::Hierarchy;

fn host(layout: Layout) -> Host {
    Host {
        layout,
        cgroup_parent: "gantry".into(),
        permitted: u64::MAX,
        default_pids_limit: 100,
        log: (10, 2),
    }
}

fn v1() -> Host {
    let one = |names: &[&str]| Hierarchy {
        path: format!("/none/{}", names.join(",")).into(),
        controllers: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    host(Layout::V1 {
        hierarchies: vec![
            one(&["cpu", "cpuacct"]),
            one(&["memory"]),
            one(&["pids"]),
            one(&["devices"]),
            one(&["name=systemd"]),
        ],
        hybrid: true,
    })
}

fn record(config: ContainerConfig) -> ContainerRecord {
    ContainerRecord {
        args: vec!["true".into()],
        config: Some(config),
        ..ContainerRecord::default()
    }
}

fn writes(plan: &plan::Launch, file: &str) -> Vec<String> {
    let dirs = plan.cgroup.iter().flat_map(|cgroup| &cgroup.dirs);
    dirs.flat_map(|dir| &dir.writes)
        .filter(|write| write.file == file)
        .map(|write| write.value.clone())
        .collect()
}

#[test]
fn limits_on_both_kinds_of_hosts() {
    let config = ContainerConfig {
        resources: Some(Resources {
            memory: 64 << 20,
            nano_cpus: 500_000_000,
            cpu_shares: 1024,
            ..Resources::default()
        }),
        ..ContainerConfig::default()
    };
    let old = launch(&v1(), "id", &record(config.clone()), &Now::default()).unwrap();
    assert_eq!(writes(&old, "memory.limit_in_bytes"), ["67108864"]);
    assert_eq!(writes(&old, "memory.memsw.limit_in_bytes"), ["134217728"]);
    assert_eq!(writes(&old, "cpu.cfs_quota_us"), ["50000"]);
    assert_eq!(writes(&old, "pids.max"), ["100"]);
    assert_eq!(writes(&old, "devices.deny"), ["a *:* rwm"]);
    let dirs = &old.cgroup.as_ref().unwrap().dirs;
    assert_eq!(dirs.len(), 4, "named hierarchies are left alone");
    assert_eq!(dirs[0].path, "/none/cpu,cpuacct/gantry/id");
    let new = host(Layout::V2 {
        path: "/none".into(),
    });
    let new = launch(&new, "id", &record(config), &Now::default()).unwrap();
    assert_eq!(writes(&new, "memory.max"), ["67108864"]);
    assert_eq!(writes(&new, "memory.swap.max"), ["67108864"]);
    assert_eq!(writes(&new, "cpu.max"), ["50000 100000"]);
    assert_eq!(writes(&new, "cpu.weight"), ["39"]);
}

#[test]
fn capabilities_add_up() {
    let set = |add: &[&str], drop: &[&str]| {
        let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        capabilities(&Security {
            cap_add: text(add),
            cap_drop: text(drop),
            ..Security::default()
        })
    };
    assert_eq!(set(&[], &[]).unwrap().len(), 14);
    assert_eq!(set(&["net_raw"], &["all"]).unwrap().len(), 1);
    assert_eq!(
        set(&["ALL"], &["CAP_NET_RAW"]).unwrap().len(),
        caps::NAMES.len() - 1
    );
    assert!(
        set(&["NO_SUCH"], &[])
            .unwrap_err()
            .to_string()
            .contains("NO_SUCH")
    );
}

#[test]
fn privileged_opens_and_default_closes() {
    let closed = launch(
        &v1(),
        "id",
        &record(ContainerConfig::default()),
        &Now::default(),
    )
    .unwrap();
    assert!(closed.masked_paths.iter().any(|path| path == "/proc/kcore"));
    assert!(!closed.process.as_ref().unwrap().seccomp.is_empty());
    let open = ContainerConfig {
        security: Some(Security {
            privileged: true,
            ..Security::default()
        }),
        ..ContainerConfig::default()
    };
    let open = launch(&v1(), "id", &record(open), &Now::default()).unwrap();
    assert!(open.masked_paths.is_empty() && open.process.unwrap().seccomp.is_empty());
    assert_eq!(open.cgroup.unwrap().dirs[3].writes[0].value, "a *:* rwm");
}

#[test]
fn wrong_limits_and_devices_are_named() {
    let with = |resources| ContainerConfig {
        resources: Some(resources),
        ..ContainerConfig::default()
    };
    let limit = with(Resources {
        ulimits: vec![Ulimit {
            name: "nofiles".into(),
            soft: 1,
            hard: 2,
        }],
        ..Resources::default()
    });
    assert!(limits(&limit).unwrap_err().to_string().contains("nofiles"));
    let device = |path: &str| {
        with(Resources {
            devices: vec![Device {
                host_path: path.into(),
                ..Device::default()
            }],
            ..Resources::default()
        })
    };
    check_devices(&device("/dev/null")).unwrap();
    for path in ["/dev/no-such", "/etc/passwd"] {
        let error = check_devices(&device(path)).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}
