//! The container's cgroups, as the launch plan lists them.
//!
//! Invariants: a child enters by writing itself, which on cgroup v1 is forty times cheaper than being moved by its parent
//! (the kernel waits for a grace period there); directories are removed only when the container has ended.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use gantry_proto::shim::CgroupPlan;
use gantry_sys::devices::{self, Rule};

/// Makes the directories and writes the limits. Returns what optional writes failed with.
///
/// # Errors
/// The path and the cause of the first thing that failed.
pub fn create(plan: &CgroupPlan) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    for dir in &plan.dirs {
        std::fs::create_dir_all(&dir.path)
            .map_err(|error| format!("make cgroup {}: {error}", dir.path))?;
        for write in &dir.writes {
            let path = Path::new(&dir.path).join(&write.file);
            if let Err(error) = std::fs::write(&path, &write.value) {
                let text = format!(
                    "set {} to {:?}: {error}",
                    path.display(),
                    write.value.trim()
                );
                if !write.optional {
                    return Err(text);
                }
                warnings.push(text);
            }
        }
    }
    if plan.v2 && !plan.devices.is_empty() {
        restrict_devices(plan)?;
    }
    Ok(warnings)
}

/// What v1 does with files, v2 does with a program.
fn restrict_devices(plan: &CgroupPlan) -> Result<(), String> {
    let rule = |text: &String| {
        Rule::parse(text).ok_or_else(|| format!("device rule {text:?} cannot be read"))
    };
    let rules: Result<Vec<Rule>, String> = plan.devices.iter().map(rule).collect();
    let rules = rules?;
    for dir in &plan.dirs {
        let fail = |error: io::Error| format!("restrict the devices of {}: {error}", dir.path);
        let group = gantry_sys::tree::open_dir(Path::new(&dir.path)).map_err(fail)?;
        devices::restrict(group.as_fd(), &rules).map_err(fail)?;
    }
    Ok(())
}

/// Moves the calling process in.
///
/// # Errors
/// The path and the cause.
pub fn enter(plan: &CgroupPlan) -> Result<(), String> {
    let file = if plan.v2 { "cgroup.procs" } else { "tasks" };
    for dir in &plan.dirs {
        let path = Path::new(&dir.path).join(file);
        std::fs::write(&path, "0")
            .map_err(|error| format!("enter cgroup {}: {error}", path.display()))?;
    }
    Ok(())
}

/// How many processes the kernel has killed for want of memory.
pub fn oom_kills(plan: &CgroupPlan) -> u64 {
    let file = if plan.v2 {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let count = |text: String| {
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    };
    plan.dirs
        .iter()
        .filter(|dir| plan.v2 || dir.controller == "memory")
        .filter_map(|dir| count(std::fs::read_to_string(Path::new(&dir.path).join(file)).ok()?))
        .sum()
}

/// The processes inside.
pub fn processes(plan: &CgroupPlan) -> Vec<i32> {
    let Some(dir) = plan.dirs.first() else {
        return Vec::new();
    };
    let text =
        std::fs::read_to_string(Path::new(&dir.path).join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Removes the directories. A process that is still ending keeps its cgroup busy for a moment.
pub fn remove(plan: &CgroupPlan) {
    for dir in &plan.dirs {
        for attempt in 0..50u64 {
            match std::fs::remove_dir(&dir.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(1 + attempt / 5));
                }
                _ => break,
            }
        }
    }
}
