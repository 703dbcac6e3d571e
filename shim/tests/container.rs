//! Real containers under a real shim: what runs, what it sees, what is left when it has ended.

#![allow(clippy::unwrap_used)]

mod support;

use gantry_proto::shim::from_shim::Reply;
use gantry_proto::shim::to_shim::Request;
use gantry_proto::shim::{Attach, Exec, IdMap, Namespace, Signal, State};
use support::{Shim, text};

#[test]
fn output_exit_code_and_record() {
    let mut shim = Shim::start();
    let plan = shim.plan(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let pid = shim.launch(plan);
    assert!(pid > 0);
    let exited = shim.exited("");
    assert_eq!(
        (exited.exit_code, exited.signal, exited.oom_killed),
        (7, 0, false)
    );
    let log = shim.log();
    assert!(
        log.contains(r#"{"log":"out\n","stream":"stdout","time":""#),
        "{log}"
    );
    assert!(
        log.contains(r#"{"log":"err\n","stream":"stderr","time":""#),
        "{log}"
    );
    assert!(shim.dir().join("exit").is_file());
    // A new connection hears it too, until somebody acknowledges.
    shim.reconnect();
    assert_eq!(shim.exited("").exit_code, 7);
    shim.acknowledge();
}

#[test]
fn a_clean_room() {
    let mut shim = Shim::start();
    let script = "echo pid=$$; ls /proc | grep -c '^[0-9]'; hostname; ls /proc/self/fd; env | sort; \
                  grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; cat /proc/kcore | wc -c; \
                  echo x > /proc/sys/kernel/hostname; touch /proc/sysrq-trigger; ls -l /dev/fd; cat /proc/self/mountinfo | wc -l";
    let mut plan = shim.plan(&["sh", "-c", script]);
    plan.hostname = "probe".into();
    shim.launch(plan);
    shim.exited("");
    let out = shim.output("stdout");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "pid=1");
    assert_eq!(lines[2], "probe");
    // Standard streams, and the directory that ls itself holds open.
    assert_eq!(&lines[3..7], ["0", "1", "2", "3"]);
    let env: Vec<&str> = lines[7..]
        .iter()
        .copied()
        .take_while(|line| line.contains('='))
        .collect();
    assert_eq!(env, ["HOME=/root", "PATH=/bin", "PWD=/", "SHLVL=1"]);
    assert!(out.contains("CapEff:\t00000000a80425fb"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");
    assert!(out.contains("NoNewPrivs:\t1"), "{out}");
    let errors = shim.output("stderr");
    assert!(
        errors.contains("can't create /proc/sys/kernel/hostname: Read-only file system"),
        "{errors}"
    );
    assert!(out.contains("/dev/fd -> /proc/self/fd"), "{out}");
    shim.acknowledge();
}

#[test]
fn programs_that_cannot_run() {
    for (args, code, words) in [
        (
            vec!["no-such-program"],
            127,
            "executable file not found in $PATH",
        ),
        (vec!["/no/such"], 127, "no such file or directory"),
        (vec!["/etc"], 126, "is a directory"),
        (vec!["/etc/passwd"], 126, "permission denied"),
    ] {
        let mut shim = Shim::start();
        let plan = shim.plan(&args);
        let failure = shim.launch_fails(plan);
        assert_eq!(failure.exit_code, code, "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?}");
        shim.gone();
    }
}

#[test]
fn an_unknown_user_is_named() {
    let mut shim = Shim::start();
    let mut plan = shim.plan(&["true"]);
    plan.process.as_mut().unwrap().user = "nobody-here".into();
    let failure = shim.launch_fails(plan);
    assert_eq!(failure.exit_code, 125);
    assert!(
        failure.message.contains("unable to find user nobody-here"),
        "{failure:?}"
    );
    shim.gone();
}

#[test]
fn signals_and_state() {
    let mut shim = Shim::start();
    let plan = shim.plan(&["sleep", "1000"]);
    let pid = shim.launch(plan);
    let Reply::State(state) = shim.ask(Request::State(State {})) else {
        panic!()
    };
    assert!(state.running && state.pid == pid && state.exited.is_none());
    shim.ask(Request::Signal(Signal {
        signal: 9,
        ..Signal::default()
    }));
    let exited = shim.exited("");
    assert_eq!((exited.exit_code, exited.signal), (137, 9));
    shim.acknowledge();
}

#[test]
fn attach_before_launch_misses_nothing_and_passes_input() {
    let mut shim = Shim::start();
    let mut client = shim.attach(Attach {
        stdin: true,
        stdout: true,
        stderr: true,
    });
    let mut plan = shim.plan(&["sh", "-c", "echo first; cat; echo last >&2"]);
    plan.open_stdin = true;
    shim.launch(plan);
    client.input(b"hello\n");
    client.end_input();
    let (out, err) = client.rest();
    assert_eq!((text(&out), text(&err)), ("first\nhello\n", "last\n"));
    shim.exited("");
    shim.acknowledge();
}

#[test]
fn exec_shares_the_room() {
    let mut shim = Shim::start();
    let plan = shim.plan(&["sleep", "1000"]);
    shim.launch(plan);
    let mut process = shim
        .plan(&[
            "sh",
            "-c",
            "cat /proc/1/comm; hostname; readlink /proc/self/ns/pid; exit 3",
        ])
        .process;
    process.as_mut().unwrap().env.push("FROM=exec".into());
    let mut client = shim.exec(Exec {
        exec_id: "one".into(),
        process,
        ..Exec::default()
    });
    let (out, err) = client.rest();
    assert_eq!(text(&err), "");
    assert!(
        text(&out).starts_with("sleep\ncontainer\npid:"),
        "{}",
        text(&out)
    );
    let exited = shim.exited("one");
    assert_eq!(exited.exit_code, 3);
    let process = shim.plan(&["nothing-there"]).process;
    let Reply::Failure(failure) = shim.ask(Request::Exec(Exec {
        exec_id: "two".into(),
        process,
        ..Exec::default()
    })) else {
        panic!("started")
    };
    assert_eq!(failure.exit_code, 127);
    shim.ask(Request::Signal(Signal {
        signal: 9,
        ..Signal::default()
    }));
    shim.exited("");
    shim.acknowledge();
}

#[test]
fn a_terminal_is_a_terminal() {
    let mut shim = Shim::start();
    let mut client = shim.attach(Attach {
        stdin: true,
        stdout: true,
        stderr: false,
    });
    let mut plan = shim.plan(&["sh", "-c", "tty; stty size; ls -l /dev/console | cut -c1"]);
    let process = plan.process.as_mut().unwrap();
    (process.terminal, process.rows, process.columns) = (true, 33, 77);
    shim.launch(plan);
    let (out, _) = client.rest();
    assert_eq!(text(&out), "/dev/pts/0\r\n33 77\r\nc\r\n");
    shim.exited("");
    shim.acknowledge();
}

#[test]
fn the_reaper_passes_signals_and_the_exit_code() {
    let mut shim = Shim::start();
    let script =
        "trap 'echo got; exit 5' TERM; echo ready; (sleep 0.01 &); while :; do sleep 0.05; done";
    let mut client = shim.attach(Attach {
        stdout: true,
        ..Attach::default()
    });
    let mut plan = shim.plan(&["sh", "-c", script]);
    plan.init = true;
    shim.launch(plan);
    client.until(b"ready\n");
    shim.ask(Request::Signal(Signal {
        signal: 15,
        ..Signal::default()
    }));
    assert_eq!(shim.exited("").exit_code, 5);
    shim.acknowledge();
}

#[test]
fn limits_hold_and_say_so() {
    let mut shim = Shim::start();
    let mut plan = shim.plan(&[
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/shm/fill bs=1M count=64",
    ]);
    shim.limit(
        &mut plan,
        "memory",
        "memory.limit_in_bytes",
        "memory.max",
        "16777216",
    );
    shim.launch(plan);
    let exited = shim.exited("");
    assert!(exited.oom_killed, "{exited:?}");
    shim.acknowledge();

    let mut shim = Shim::start();
    let mut plan = shim.plan(&[
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all",
    ]);
    shim.limit(&mut plan, "pids", "pids.max", "pids.max", "4");
    shim.launch(plan);
    shim.exited("");
    assert!(
        shim.output("stderr").contains("can't fork"),
        "{}",
        shim.output("stderr")
    );
    shim.acknowledge();
}

#[test]
fn symlinks_of_the_image_lead_nowhere() {
    let mut shim = Shim::start();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), shim.rootfs().join("escape")).unwrap();
    let mut plan = shim.plan(&["true"]);
    let mut mount = plan.mounts.last().unwrap().clone();
    mount.target = "/escape/made".into();
    mount.create = "dir".into();
    plan.mounts.push(mount);
    shim.launch_fails(plan);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    shim.gone();
}

#[test]
fn a_user_namespace_maps_root_elsewhere() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mut shim = Shim::start();
    let script = "cat /proc/self/uid_map; id -u; touch /tmp/mine";
    let mut plan = shim.plan(&["sh", "-c", script]);
    plan.namespaces.push(Namespace {
        kind: "user".into(),
        path: String::new(),
    });
    let map = IdMap {
        container: 0,
        host: 100_000,
        length: 65_536,
    };
    (plan.uid_maps, plan.gid_maps) = (vec![map], vec![map]);
    // The mapped root is nobody to the host's files: it needs the way to its root file system.
    let open = std::fs::Permissions::from_mode(0o777);
    for dir in [
        shim.dir(),
        shim.rootfs(),
        shim.rootfs().join("tmp"),
        shim.dir().parent().unwrap().into(),
    ] {
        std::fs::set_permissions(dir, open.clone()).unwrap();
    }
    shim.launch(plan);
    assert_eq!(shim.exited("").exit_code, 0, "{}", shim.log());
    let output = shim.output("stdout");
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0"]);
    let made = std::fs::metadata(shim.rootfs().join("tmp/mine")).unwrap();
    assert_eq!(made.uid(), 100_000);
    shim.acknowledge();
}
