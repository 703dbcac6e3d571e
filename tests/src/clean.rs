//! What an engine has left behind on the host.
//!
//! Invariant: looks only, except [`sweep`], which is the last resort of a node whose test failed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The names by which one engine's things are known on the host.
#[derive(Debug, Clone)]
pub struct Marks {
    /// Directory that holds the engine's root and run directories.
    pub home: PathBuf,
    /// Beginning of its interfaces' names.
    pub prefix: String,
    /// Its nft table (family inet).
    pub table: String,
    /// Its cgroup, relative to each hierarchy.
    pub cgroup: String,
}

impl Marks {
    /// What containers have left: to be asked while the engine may still run, after the last container was removed.
    /// The bridge, the table and the (empty) parent cgroup are the engine's and no leak.
    pub fn container_residue(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (pid, line) in self.processes() {
            if line.contains("gantry-shim") {
                found.push(format!("process {pid}: {line}"));
            }
        }
        for dir in self.cgroups() {
            for child in directories(&dir) {
                found.push(format!("cgroup {}", child.display()));
            }
            for pid in std::fs::read_to_string(dir.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                found.push(format!("process {pid} in cgroup {}", dir.display()));
            }
        }
        for name in self.interfaces() {
            if !Path::new("/sys/class/net")
                .join(&name)
                .join("bridge")
                .exists()
            {
                found.push(format!("interface {name}"));
            }
        }
        for shim in directories(&self.home.join("run/shim")) {
            found.push(format!("shim directory {}", shim.display()));
        }
        for rule in self.elements() {
            found.push(format!("nft element in table {}: {rule}", self.table));
        }
        found
    }

    /// What the engine itself has left, after it was told to end: processes and mounts.
    pub fn engine_residue(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .processes()
            .into_iter()
            .map(|(pid, line)| format!("process {pid}: {line}"))
            .collect();
        found.extend(self.mounts().into_iter().map(|at| format!("mount {at}")));
        found
    }

    /// Processes (zombies aside) whose arguments name the home directory.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let home = self.home.to_string_lossy().into_owned();
        processes(|line| line.contains(&home))
    }

    /// Mount points below the home directory, deepest first.
    pub fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let home = format!("{}/", self.home.display());
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| at.starts_with(&home))
            .map(str::to_owned)
            .collect();
        found.sort_by_key(|at| std::cmp::Reverse(at.len()));
        found
    }

    fn interfaces(&self) -> Vec<String> {
        std::fs::read_dir("/sys/class/net")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&self.prefix))
            .collect()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup)];
        found.extend(
            directories(Path::new("/sys/fs/cgroup"))
                .into_iter()
                .map(|hierarchy| hierarchy.join(&self.cgroup)),
        );
        found.retain(|dir| dir.is_dir());
        found
    }

    /// Elements of sets and maps, the part of the table that containers cause.
    fn elements(&self) -> Vec<String> {
        let listed = Command::new("nft")
            .args(["--json", "list", "table", "inet", &self.table])
            .output()
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        let mut found = Vec::new();
        for object in json["nftables"].as_array().into_iter().flatten() {
            for kind in ["set", "map"] {
                let name = object[kind]["name"].as_str().unwrap_or_default();
                // A set of the bridges belongs to the networks, not to containers: only elements that name a port or
                // an endpoint's interface count.
                for element in object[kind]["elem"].as_array().into_iter().flatten() {
                    let text = element.to_string();
                    if !object[kind]["type"].to_string().contains("ifname") {
                        found.push(format!("{name} {text}"));
                    }
                }
            }
        }
        found
    }
}

/// Processes (zombies aside) whose arguments fit.
pub fn processes(fits: impl Fn(&str) -> bool) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // A zombie's arguments read as nothing.
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if pid.cast_unsigned() != std::process::id() && fits(&line) {
            found.push((pid, line.trim().to_owned()));
        }
    }
    found
}

/// Names below `dir` (recursively) that contain `part`: what a service keeps about something that was removed.
pub fn traces(dir: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Takes away whatever carries the marks: what an engine leaves on purpose when it ends (bridge, table, parent cgroup),
/// and, after a failed test, everything else.
pub fn sweep(marks: &Marks) {
    for (pid, _) in marks.processes() {
        signal(pid, "KILL");
    }
    for dir in marks.cgroups() {
        let mut dirs = vec![dir];
        let mut at = 0;
        while at < dirs.len() {
            let children = directories(&dirs[at]);
            dirs.extend(children);
            at += 1;
        }
        for dir in &dirs {
            let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|pid| pid.parse().ok()) {
                signal(pid, "KILL");
            }
        }
        for dir in dirs.iter().rev() {
            // The kernel needs a moment to let go of the last process.
            for _ in 0..50 {
                if std::fs::remove_dir(dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
    for at in marks.mounts() {
        quiet(Command::new("umount").args(["-l", &at]));
    }
    for name in marks.interfaces() {
        quiet(Command::new("ip").args(["link", "delete", &name]));
    }
    quiet(Command::new("nft").args(["delete", "table", "inet", &marks.table]));
}

/// Sends a signal by name; a process that is gone is fine.
pub fn signal(pid: i32, name: &str) {
    quiet(
        Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {pid}")),
    );
}

fn quiet(command: &mut Command) {
    // Its failure means that the thing is gone, which is what was wanted.
    let _ = command.output();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::shell;

    /// Leaves nothing, also after a failed check.
    struct Swept<'a>(&'a Marks);

    impl Drop for Swept<'_> {
        fn drop(&mut self) {
            sweep(self.0);
        }
    }

    #[test]
    fn each_kind_of_residue_is_found_and_swept() {
        let home = tempfile::tempdir().unwrap();
        let marks = Marks {
            home: home.path().to_owned(),
            prefix: "gtleakx".into(),
            table: "gantry_test_leak".into(),
            cgroup: "gantry-test-leak".into(),
        };
        assert!(marks.container_residue().is_empty() && marks.engine_residue().is_empty());
        let _guard = Swept(&marks);
        let at = home.path().display();
        let group = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup/gantry-test-leak/child"
        } else {
            "/sys/fs/cgroup/pids/gantry-test-leak/child"
        };
        shell(&format!(
            "mkdir -p {at}/run/shim/abc {at}/mnt {group} && mount -t tmpfs none {at}/mnt \
             && ip link add gtleakx0 type veth peer name gtleakx2 && ip link add gtleakx1 type bridge \
             && nft 'add table inet gantry_test_leak; add map inet gantry_test_leak ports {{ type inet_service : ipv4_addr; }}; \
                add element inet gantry_test_leak ports {{ 80 : 10.0.0.1 }}'"
        ));
        let mut shim = Command::new("sh")
            .args(["-c", "sleep 60; true", "gantry-shim"])
            .arg(home.path())
            .spawn()
            .unwrap();
        // The kernel shows a process's arguments a moment after its start.
        crate::eventually("the process is seen", || !marks.processes().is_empty());
        let left = marks.container_residue().join("\n");
        for word in [
            "process",
            "cgroup",
            "interface gtleakx0",
            "shim directory",
            "nft element",
        ] {
            assert!(left.contains(word), "no {word:?} in {left}");
        }
        assert!(
            !left.contains("gtleakx1"),
            "a bridge is the engine's: {left}"
        );
        assert!(marks.engine_residue().join("\n").contains("mount"));
        sweep(&marks);
        shim.wait().unwrap();
        std::fs::remove_dir(home.path().join("run/shim/abc")).unwrap();
        assert_eq!(marks.container_residue(), Vec::<String>::new());
        assert_eq!(marks.engine_residue(), Vec::<String>::new());
        assert!(!Path::new("/sys/class/net/gtleakx1").exists());
    }
}
