//! The daemon as an admin sees it: ready, killed parts come back, an order to end leaves nothing.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gantry_sys::process::{SIGKILL, SIGTERM, kill};

struct Daemon {
    child: Child,
    home: tempfile::TempDir,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Names on the host are of this test program alone.
fn gantryd(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantryd"));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let own = format!("{:x}{number}", std::process::id() & 0xfff);
    command
        .arg("--root")
        .arg(home.join("root"))
        .arg("--run")
        .arg(home.join("run"))
        .args(["--set", &format!("network.prefix=gu{own}")])
        .args(["--set", &format!("network.table=gantry_unit_{own}")])
        .args(["--set", &format!("runtime.cgroup_parent=gantry-unit-{own}")]);
    command
}

impl Daemon {
    fn start(mode: &[&str]) -> Daemon {
        Daemon::on(tempfile::tempdir().unwrap(), mode)
    }

    fn on(home: tempfile::TempDir, mode: &[&str]) -> Daemon {
        let mut child = gantryd(home.path())
            .args(mode)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "gantryd ready\n");
        Daemon { child, home }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn services(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        std::fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    fn metrics(&self) -> String {
        let path = self.home.path().join("run/metrics/store.sock");
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After a failed check only; its services end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(15);
    while !check() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn gone(pid: i32) -> bool {
    // One that has ended but that its new parent has not asked for yet is gone too.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn a_killed_service_comes_back_behind_the_same_socket() {
    let mut daemon = Daemon::start(&[]);
    let first = daemon.services();
    assert_eq!(first.len(), 6);
    kill(first[0], SIGKILL).unwrap();
    // The socket was never closed: this call waits for the new process instead of being refused.
    assert!(daemon.metrics().starts_with("HTTP/1.1 200"));
    eventually("a new process", || {
        daemon.services().len() == 6 && daemon.services() != first
    });
    let second = daemon.services();
    kill(daemon.pid(), SIGTERM).unwrap();
    assert!(daemon.child.wait().unwrap().success());
    assert!(gone(second[0]));
    let names = std::fs::read_dir(daemon.home.path().join("run")).unwrap();
    let sockets: Vec<_> = names
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".sock"))
        .collect();
    assert!(sockets.is_empty(), "{sockets:?}");
}

#[test]
fn services_end_with_a_killed_supervisor_and_the_next_one_takes_over() {
    let mut daemon = Daemon::start(&[]);
    let services = daemon.services();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    // The guard ends it too when a check below fails.
    let mut next = Daemon::on(
        std::mem::replace(&mut daemon.home, tempfile::tempdir().unwrap()),
        &[],
    );
    // The new ones have the databases, so the old ones have let them go; they may still be ending.
    eventually("the old services end", || {
        services.iter().all(|pid| gone(*pid))
    });
    kill(next.pid(), SIGTERM).unwrap();
    assert!(next.child.wait().unwrap().success());
}

#[test]
fn one_process_serves_the_same_sockets() {
    let mut daemon = Daemon::start(&["--in-process"]);
    assert!(daemon.services().is_empty());
    let text = daemon.metrics();
    assert!(text.contains("gantry_rpc_calls"), "{text}");
    kill(daemon.pid(), SIGTERM).unwrap();
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn settings_are_explained_and_checked() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| gantryd(home.path()).args(args).output().unwrap();
    let explained = run(&["--set", "store.gc_grace_seconds=5", "config", "explain"]);
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(
        text.contains("store.gc_grace_seconds = 5  # --set store.gc_grace_seconds=5"),
        "{text}"
    );
    assert!(
        text.contains("store.gc_interval_seconds = 3600  # default"),
        "{text}"
    );
    for (set, word) in [
        ("store.gc_interval_seconds=0", "gc_interval_seconds"),
        ("store.colour=1", "colour"),
        ("x", "table.key"),
    ] {
        let refused = run(&["--set", set, "config", "check"]);
        assert!(!refused.status.success());
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(word), "{text}");
    }
}
