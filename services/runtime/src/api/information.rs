//! What the engine and its host are.

use gantry_proto::runtime::InfoResponse;

use crate::hub::Hub;

/// Counts containers, and reads the host's own files.
pub(super) fn of(hub: &Hub) -> InfoResponse {
    let all = hub.list();
    let count = |wanted: fn(&crate::state::State) -> bool| {
        let fitting = all
            .iter()
            .filter(|container| wanted(&container.view().state));
        i32::try_from(fitting.count()).unwrap_or(i32::MAX)
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let system = read("/etc/os-release");
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
        .unwrap_or(0);
    InfoResponse {
        containers: count(|_| true),
        running: count(|state| state.pid().is_some()),
        exited: count(|state| matches!(state, crate::state::State::Exited(_))),
        cgroup_version: hub.host.layout.version().into(),
        kernel_version: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        operating_system: system
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .unwrap_or("Linux")
            .trim_matches('"')
            .to_owned(),
        architecture: std::env::consts::ARCH.into(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| i32::try_from(count.get()).unwrap_or(i32::MAX)),
        memory: memory * 1024,
        root: hub.paths.root.to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").into(),
        warnings: Vec::new(),
    }
}
