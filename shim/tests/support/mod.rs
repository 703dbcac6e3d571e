//! A shim under test: its rootfs of busybox, its cgroups, frames by hand; and the check that nothing is left.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gantry_proto::shim::from_shim::Reply;
use gantry_proto::shim::to_shim::Request;
use gantry_proto::shim::{
    Ack, Attach, CgroupDir, CgroupPlan, CgroupWrite, DeviceNode, Exec, Exited, Failure, FromShim,
    Launch, LogPlan, MountPlan, Namespace, Process, ToShim,
};
use gantry_sys::{caps, fd};
use prost::Message as _;

static NUMBER: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_secs(20);

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

pub struct Shim {
    child: Child,
    conn: UnixStream,
    home: tempfile::TempDir,
    name: String,
    seq: u64,
    kept: Vec<FromShim>,
    cgroups: Vec<String>,
}

fn build_rootfs(at: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "root", "tmp"] {
        std::fs::create_dir_all(at.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", at.join("bin/busybox")).expect("the package busybox-static");
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for name in text(&list.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    std::fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(at.join("etc/group"), "root:x:0:\n").unwrap();
}

impl Shim {
    pub fn start() -> Shim {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("shim");
        std::fs::create_dir(&dir).unwrap();
        build_rootfs(&home.path().join("rootfs"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gantry-shim"))
            .arg("--dir")
            .arg(&dir)
            .env("LEAK", "must not be seen")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let name = format!(
            "gantry-shim-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        Shim {
            child,
            conn: ours,
            home,
            name,
            seq: 0,
            kept: Vec::new(),
            cgroups: Vec::new(),
        }
    }

    pub fn dir(&self) -> PathBuf {
        self.home.path().join("shim")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.home.path().join("rootfs")
    }

    pub fn plan(&self, args: &[&str]) -> Launch {
        let mount = |kind: &str, source: &str, target: &str, options: &[&str]| MountPlan {
            r#type: kind.into(),
            source: source.into(),
            target: target.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            create: "dir".into(),
        };
        let device = |name: &str, minor| DeviceNode {
            path: format!("/dev/{name}"),
            r#type: "c".into(),
            major: 1,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let numbers: Vec<u32> = caps::DEFAULT
            .iter()
            .map(|name| caps::number(name).unwrap())
            .collect();
        let rootfs = self.rootfs();
        Launch {
            id: self.name.clone(),
            namespaces: ["mnt", "pid", "uts", "ipc", "net", "cgroup"]
                .map(|kind| Namespace {
                    kind: kind.into(),
                    path: String::new(),
                })
                .to_vec(),
            mounts: vec![
                mount("bind", rootfs.to_str().unwrap(), "/", &["rbind"]),
                mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
                mount(
                    "tmpfs",
                    "tmpfs",
                    "/dev",
                    &["nosuid", "mode=755", "size=65536k"],
                ),
                mount(
                    "devpts",
                    "devpts",
                    "/dev/pts",
                    &[
                        "nosuid",
                        "noexec",
                        "newinstance",
                        "ptmxmode=0666",
                        "mode=0620",
                    ],
                ),
                mount(
                    "tmpfs",
                    "shm",
                    "/dev/shm",
                    &["nosuid", "noexec", "nodev", "mode=1777"],
                ),
            ],
            devices: vec![device("null", 3), device("zero", 5)],
            masked_paths: vec![
                "/proc/kcore".into(),
                "/proc/acpi".into(),
                "/proc/no-such".into(),
            ],
            readonly_paths: vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()],
            hostname: "container".into(),
            process: Some(Process {
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                bounding: numbers.clone(),
                effective: numbers.clone(),
                permitted: numbers,
                no_new_privileges: true,
                ..Process::default()
            }),
            log: Some(LogPlan {
                path: self.dir().join("log").to_str().unwrap().into(),
                ..LogPlan::default()
            }),
            ..Launch::default()
        }
    }

    /// Puts the container into a cgroup of its own with one limit, on a v1 or a v2 host.
    pub fn limit(&mut self, plan: &mut Launch, controller: &str, v1: &str, v2: &str, value: &str) {
        let old = Path::new("/sys/fs/cgroup").join(controller);
        let is_v1 = old.is_dir();
        let base = if is_v1 {
            old
        } else {
            PathBuf::from("/sys/fs/cgroup")
        };
        let path = base.join(&self.name).to_str().unwrap().to_owned();
        let file = if is_v1 { v1 } else { v2 }.to_owned();
        self.cgroups.push(path.clone());
        let write = CgroupWrite {
            file,
            value: value.into(),
            optional: false,
        };
        plan.cgroup = Some(CgroupPlan {
            dirs: vec![CgroupDir {
                path,
                writes: vec![write],
                controller: controller.into(),
            }],
            v2: !is_v1,
            devices: Vec::new(),
        });
    }

    fn receive(&mut self) -> (FromShim, Vec<OwnedFd>) {
        use std::os::fd::AsFd as _;
        let mut head = [0u8; 4];
        // The descriptors come with the first byte.
        let (length, fds) =
            fd::recv_with_fds(self.conn.as_fd(), &mut head).expect("the shim answers in time");
        self.conn.read_exact(&mut head[length..]).unwrap();
        let mut body = vec![0u8; u32::from_le_bytes(head) as usize];
        self.conn.read_exact(&mut body).unwrap();
        (FromShim::decode(body.as_slice()).unwrap(), fds)
    }

    fn ask_with_fds(&mut self, request: Request) -> (Reply, Vec<OwnedFd>) {
        self.seq += 1;
        let body = ToShim {
            seq: self.seq,
            request: Some(request),
        }
        .encode_to_vec();
        self.conn
            .write_all(&u32::try_from(body.len()).unwrap().to_le_bytes())
            .unwrap();
        self.conn.write_all(&body).unwrap();
        loop {
            let (message, fds) = self.receive();
            if message.seq == self.seq {
                return (message.reply.unwrap(), fds);
            }
            self.kept.push(message);
        }
    }

    pub fn ask(&mut self, request: Request) -> Reply {
        self.ask_with_fds(request).0
    }

    pub fn launch(&mut self, plan: Launch) -> i32 {
        match self.ask(Request::Launch(plan)) {
            Reply::Launched(launched) => launched.pid,
            other => panic!("{other:?}"),
        }
    }

    pub fn launch_fails(&mut self, plan: Launch) -> Failure {
        match self.ask(Request::Launch(plan)) {
            Reply::Failure(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    pub fn exited(&mut self, id: &str) -> Exited {
        let mut seen = 0;
        loop {
            while seen == self.kept.len() {
                let (message, _) = self.receive();
                self.kept.push(message);
            }
            if let Some(Reply::Exited(exited)) = &self.kept[seen].reply
                && exited.exec_id == id
            {
                return exited.clone();
            }
            seen += 1;
        }
    }

    pub fn reconnect(&mut self) {
        self.conn = UnixStream::connect(self.dir().join("shim.sock")).unwrap();
        self.conn.set_read_timeout(Some(PATIENCE)).unwrap();
        self.kept.clear();
    }

    pub fn attach(&mut self, attach: Attach) -> Client {
        let (reply, mut fds) = self.ask_with_fds(Request::Attach(attach));
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
        Client::new(fds.remove(0))
    }

    pub fn exec(&mut self, exec: Exec) -> Client {
        let (reply, mut fds) = self.ask_with_fds(Request::Exec(exec));
        assert!(matches!(reply, Reply::Launched(_)), "{reply:?}");
        Client::new(fds.remove(0))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap()
    }

    /// What the log has of one stream, put together again; good for the plain text of these tests.
    pub fn output(&self, stream: &str) -> String {
        let mark = format!("\",\"stream\":\"{stream}\"");
        let log = self.log();
        let lines = log
            .lines()
            .filter_map(|line| Some(line.strip_prefix("{\"log\":\"")?.split_once(&mark)?.0));
        lines
            .collect::<String>()
            .replace("\\n", "\n")
            .replace("\\t", "\t")
            .replace("\\\"", "\"")
    }

    pub fn acknowledge(mut self) {
        assert!(matches!(self.ask(Request::Ack(Ack {})), Reply::Ok(_)));
        self.gone();
    }

    /// The shim ends by itself and leaves no cgroup, mount or socket.
    pub fn gone(mut self) {
        self.conn.shutdown(std::net::Shutdown::Both).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        for cgroup in &self.cgroups {
            assert!(!Path::new(cgroup).exists(), "{cgroup} is left");
        }
        assert!(!self.dir().join("shim.sock").exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.home.path().to_str().unwrap()),
            "{mounts}"
        );
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Only a failed test comes here with the shim alive: end it and what it holds.
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

pub struct Client(UnixStream, Vec<u8>);

impl Client {
    fn new(socket: OwnedFd) -> Client {
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream, Vec::new())
    }

    fn frame(&mut self, stream: u8, payload: &[u8]) {
        let mut frame = vec![stream];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).unwrap();
    }

    pub fn input(&mut self, data: &[u8]) {
        self.frame(0, data);
    }

    pub fn end_input(&mut self) {
        self.frame(3, &[0]);
    }

    fn next(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0u8; 5];
        self.0.read_exact(&mut head).unwrap();
        let mut payload =
            vec![0u8; u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize];
        self.0.read_exact(&mut payload).unwrap();
        (head[0], payload)
    }

    /// Reads standard output until it has come this far.
    pub fn until(&mut self, end: &[u8]) {
        while !self.1.ends_with(end) {
            let (stream, payload) = self.next();
            assert_eq!(stream, 1);
            self.1.extend_from_slice(&payload);
        }
    }

    /// Everything until both streams have ended.
    pub fn rest(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut err, mut ended) = (std::mem::take(&mut self.1), Vec::new(), 0);
        while ended < 2 {
            match self.next() {
                (1, payload) => out.extend(payload),
                (2, payload) => err.extend(payload),
                (3, _) => ended += 1,
                other => panic!("{other:?}"),
            }
        }
        (out, err)
    }
}
