//! One engine of its own: directories, names on the host, daemons, and `ctl` as a user calls it.
//!
//! Invariants: two nodes never share a name on the host, also when test programs run beside each other (a slot is held by
//! a socket's name); a node that is dropped removes its containers, ends its daemons, and panics when anything is left or a
//! log line of level WARN or ERROR was not announced by [`Node::expect_log`].

use std::cell::{Cell, OnceCell, RefCell};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::clean::{self, Marks};
use crate::command::{Out, finish};
use crate::{Registry, bin, within};

/// Nodes that may live at once on a machine; each has a /22 of 10.200.0.0/15.
const SLOTS: usize = 128;
/// Every service, lowest rank first.
pub const SERVICES: [&str; 5] = ["store", "network", "snapshotter", "registry", "runtime"];

/// A private engine.
#[derive(Debug)]
pub struct Node {
    home: TempDir,
    marks: Marks,
    sets: Vec<String>,
    own_group: bool,
    daemon: RefCell<Option<Child>>,
    expected: RefCell<Vec<String>>,
    registry: OnceCell<Arc<Registry>>,
    /// What the containers of this node left was checked, and found clean.
    checked: Cell<bool>,
    _slot: UnixListener,
}

/// A free number, held by an abstract socket: the kernel lets go of it with the process, and nothing is on disk.
fn slot() -> (usize, UnixListener) {
    for number in 0..SLOTS {
        let name = SocketAddr::from_abstract_name(format!("gantry-test-{number}")).unwrap();
        if let Ok(held) = UnixListener::bind_addr(&name) {
            return (number, held);
        }
    }
    panic!("all {SLOTS} slots are taken");
}

impl Node {
    /// An engine with separate service processes, ready.
    pub fn start() -> Node {
        Node::with(&[])
    }

    /// The same with more `--set`s.
    pub fn with(sets: &[&str]) -> Node {
        Node::of(sets, false)
    }

    /// For a person at a terminal: Ctrl-C does not reach the engine, so that it can be put away in order.
    pub fn for_a_person() -> Node {
        Node::of(&[], true)
    }

    fn of(sets: &[&str], own_group: bool) -> Node {
        let (number, held) = slot();
        let home = tempfile::Builder::new()
            .prefix("gantry-")
            .tempdir()
            .unwrap();
        let marks = Marks {
            home: home.path().to_owned(),
            prefix: format!("gt{number}x"),
            table: format!("gantry_test_{number}"),
            cgroup: format!("gantry-test-{number}"),
        };
        // What a run that was killed has left under the same names is not this test's fault.
        clean::sweep(&Marks {
            home: home.path().join("none"),
            ..marks.clone()
        });
        let mut all = vec![
            format!("network.prefix={}", marks.prefix),
            format!("network.table={}", marks.table),
            format!(
                "network.pool4=10.{}.{}.0/22",
                200 + number / 64,
                number % 64 * 4
            ),
            format!("runtime.cgroup_parent={}", marks.cgroup),
            format!(
                "registry.certs_dirs=[{:?}]",
                home.path().join("certs.d").to_string_lossy()
            ),
            format!(
                "registry.registries_conf={:?}",
                home.path().join("registries.conf").to_string_lossy()
            ),
        ];
        all.extend(sets.iter().map(|set| (*set).to_owned()));
        let node = Node {
            home,
            marks,
            sets: all,
            own_group,
            daemon: RefCell::default(),
            expected: RefCell::default(),
            registry: OnceCell::new(),
            checked: Cell::new(false),
            _slot: held,
        };
        node.up();
        node
    }

    /// A node, and the busybox image in it under the returned name.
    pub fn with_busybox() -> (Node, String) {
        let node = Node::start();
        let name = node
            .registry()
            .push("busybox", "latest", crate::fixture::busybox());
        node.ctl(&["pull", "-q", &name]).ok();
        (node, name)
    }

    /// A registry that lives at least as long as the node.
    pub fn registry(&self) -> &Registry {
        self.registry.get_or_init(Registry::shared)
    }

    /// Starts gantryd (again) and waits until it says that it is ready.
    pub fn up(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let mut command = Command::new(bin("gantryd"));
        command
            .arg("--root")
            .arg(self.path("root"))
            .arg("--run")
            .arg(self.path("run"))
            .env("GANTRY_LOG", "info")
            // The host's own settings and credentials are none of a test's.
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("HOME", self.home.path())
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        if std::env::var_os("GANTRY_IN_PROCESS").is_some() {
            command.arg("--in-process");
        }
        if self.own_group {
            command.process_group(0);
        }
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (tell, hear) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            // Nobody listens any more when the wait was given up.
            let _ = tell.send(line);
        });
        let line = hear.recv_timeout(crate::patience(Duration::from_secs(30)));
        if line.as_deref() != Ok("gantryd ready\n") {
            let _ = child.kill();
            let _ = child.wait();
            panic!("gantryd is not ready: {line:?}\n{}", self.log());
        }
        self.daemon.replace(Some(child));
    }

    /// Ends gantryd as a service manager does; containers go on.
    pub fn down(&self) -> ExitStatus {
        let mut child = self.daemon.take().expect("gantryd runs");
        clean::signal(child.id().cast_signed(), "TERM");
        within(Duration::from_secs(15), "gantryd ends", || {
            child.try_wait().unwrap()
        })
    }

    /// Kills gantryd as the kernel would; its services end with it.
    pub fn kill(&self) {
        let mut child = self.daemon.take().expect("gantryd runs");
        child.kill().unwrap();
        child.wait().unwrap();
        self.expect_log(&[
            "ended",
            "transport",
            "unavailable",
            "Unavailable",
            "connection",
        ]);
    }

    /// Kills one service; gantryd starts it again.
    pub fn kill_service(&self, name: &str) {
        for pid in self.service(name) {
            clean::signal(pid, "KILL");
        }
        self.expect_log(&[
            "starting it again",
            "unavailable",
            "Unavailable",
            "transport",
            "connection",
        ]);
    }

    /// The processes of one service (one, or none in the moment between two).
    pub fn service(&self, name: &str) -> Vec<i32> {
        let word = format!("gantryd {name} ");
        let home = self.home.path().to_string_lossy().into_owned();
        clean::processes(|line| line.contains(&word) && line.contains(&home))
            .into_iter()
            .map(|(pid, _)| pid)
            .collect()
    }

    /// All processes of the engine, shims aside.
    pub fn engine(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .marks
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains("gantryd "))
            .map(|(pid, _)| pid)
            .collect();
        pids.sort_unstable();
        pids
    }

    /// A path below the node's own directory: "root", "run", or a test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The names by which this engine is known on the host.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What the engine has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The file of the engine's log.
    pub fn log_path(&self) -> PathBuf {
        self.path("gantryd.log")
    }

    /// Lines of level WARN and ERROR that contain one of these words are part of the test.
    pub fn expect_log(&self, words: &[&str]) {
        self.expected
            .borrow_mut()
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// `ctl` for this engine, to be changed before it runs.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(bin("ctl"));
        command
            .arg("-H")
            .arg(self.path("run"))
            .args(arguments)
            .env_remove("GANTRY_RUN")
            .env_remove("REGISTRY_AUTH_FILE")
            .env("DOCKER_CONFIG", self.path("docker"))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `ctl` to its end.
    #[track_caller]
    pub fn ctl<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Out {
        finish(self.command(arguments).spawn().unwrap())
    }

    /// Runs `ctl` with this on its standard input.
    #[track_caller]
    pub fn ctl_with_stdin<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S], input: &[u8]) -> Out {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || {
            // A container that does not read breaks the pipe, which is its right.
            let _ = stdin.write_all(&input);
        });
        let out = finish(child);
        writer.join().unwrap();
        out
    }

    /// `ctl run` of `image` with flags and a shell script.
    #[track_caller]
    pub fn sh(&self, flags: &[&str], image: &str, script: &str) -> Out {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(flags);
        arguments.extend([image, "sh", "-c", script]);
        self.ctl(&arguments)
    }

    /// Starts a container in the background; its id.
    #[track_caller]
    pub fn detached(&self, flags: &[&str], image: &str, command: &[&str]) -> String {
        let mut arguments = vec!["run", "-d"];
        arguments.extend(flags);
        arguments.push(image);
        arguments.extend(command);
        let id = self.ctl(&arguments).ok().text().to_owned();
        assert!(
            id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "not an id: {id:?}"
        );
        id
    }

    /// What `inspect` says of a container, as JSON.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> serde_json::Value {
        let out = self.ctl(&["inspect", container]).ok();
        let mut all: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        all[0].take()
    }

    /// The state of a container: "running", "exited", ...
    #[track_caller]
    pub fn status(&self, container: &str) -> String {
        self.inspect(container)["State"]["Status"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until a container has this state.
    #[track_caller]
    pub fn until(&self, container: &str, status: &str) {
        crate::eventually(&format!("{container} is {status}"), || {
            self.status(container) == status
        });
    }

    /// Removes every container and fails when one of them has left anything.
    #[track_caller]
    pub fn assert_clean(&self) {
        let listed = self.ctl(&["ps", "-a", "-q", "--no-trunc"]).ok();
        let ids: Vec<&str> = listed.stdout.lines().collect();
        if !ids.is_empty() {
            let mut arguments = vec!["rm", "-f", "-v"];
            arguments.extend(&ids);
            self.ctl(&arguments).ok();
        }
        self.assert_no_residue();
        for id in ids {
            let traces: Vec<PathBuf> = ["run", "root"]
                .iter()
                .flat_map(|dir| clean::traces(&self.path(dir), id))
                .collect();
            assert!(traces.is_empty(), "left of {id}: {traces:#?}");
        }
        self.checked.set(true);
    }

    /// Fails when containers have left anything on the host. What the kernel takes away by itself (a namespace's veth)
    /// gets a moment.
    #[track_caller]
    pub fn assert_no_residue(&self) {
        let give_up = Instant::now() + crate::patience(Duration::from_secs(10));
        loop {
            let left = self.marks.container_residue();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < give_up, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn unexpected_log(&self) -> Vec<String> {
        let expected = self.expected.borrow();
        self.log()
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains("ERROR "))
            .filter(|line| !expected.iter().any(|word| line.contains(word)))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let mut faults = Vec::new();
        if !failed && self.daemon.borrow().is_some() {
            if !self.checked.get() {
                self.assert_clean_or(&mut faults);
            }
            let status = self.down();
            if !status.success() {
                faults.push(format!("gantryd ended with {status}"));
            }
            faults.extend(self.marks.engine_residue());
            faults.extend(self.unexpected_log());
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if failed || !faults.is_empty() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- gantryd's last words\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
        clean::sweep(&self.marks);
        assert!(
            failed || faults.is_empty(),
            "a node was not clean: {faults:#?}"
        );
    }
}

impl Node {
    /// As [`Node::assert_clean`], but everything is put away before the test fails.
    fn assert_clean_or(&self, faults: &mut Vec<String>) {
        let clean = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.assert_clean()));
        if let Err(panic) = clean {
            let text = panic.downcast_ref::<String>().cloned();
            faults.push(text.unwrap_or_else(|| "not clean".into()));
        }
    }
}

/// A directory to bind into containers.
pub fn host_dir(node: &Node, name: &str) -> String {
    let path: &Path = &node.path(name);
    std::fs::create_dir_all(path).unwrap();
    path.to_string_lossy().into_owned()
}
