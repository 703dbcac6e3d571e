//! The device program on the real kernel: a process in the cgroup opens what is allowed and nothing else.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_sys::devices::{Rule, restrict};

/// The cgroup v2 mount; a hybrid host has one too.
fn unified() -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().find(|line| line.contains(" - cgroup2 "));
    line.unwrap().split(' ').nth(4).unwrap().into()
}

#[test]
fn only_allowed_devices_open() {
    let group = unified().join(format!("gantry-sys-devices-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let rules = ["c *:* m", "c 1:3 rwm", "c 1:5 r"].map(|text| Rule::parse(text).unwrap());
    let dir = gantry_sys::tree::open_dir(&group).unwrap();
    let restricted = restrict(dir.as_fd(), &rules);
    let opens = |command: &str| {
        let script = format!("echo 0 >{}/cgroup.procs && {command}", group.display());
        Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap()
            .status
            .success()
    };
    let results = [
        "echo x >/dev/null",
        "head -c 1 /dev/zero",
        "true >/dev/zero",
        "head -c 1 /dev/urandom",
    ]
    .map(opens);
    let open = restrict(dir.as_fd(), &[Rule::parse("a *:* rwm").unwrap()]);
    std::fs::remove_dir(&group).unwrap();
    restricted.unwrap();
    open.unwrap();
    assert_eq!(results, [true, true, false, false]);
    assert!(Path::new("/dev/urandom").exists());
}
