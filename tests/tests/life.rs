//! From created to removed: wait, stop, kill, restart, restart policies, init.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use gantry_tests::{Node, eventually, node, within};
use serde_json::json;

#[test]
fn create_then_start_attached() {
    let (node, image) = Node::with_busybox();
    let id = node
        .ctl(&[
            "create",
            "--name",
            "twice",
            &image,
            "sh",
            "-c",
            "echo run; exit 4",
        ])
        .ok()
        .text()
        .to_owned();
    assert_eq!(node.status("twice"), "created");
    node.ctl(&["start", "-a", "twice"]).code(4).prints("run\n");
    node.ctl(&["start", "-a", &id]).code(4).prints("run\n");
    assert_eq!(node.ctl(&["logs", "twice"]).ok().stdout, "run\nrun\n");
}

#[test]
fn stop_takes_the_shortest_way() {
    let (node, image) = Node::with_busybox();
    // PID 1 without a handler can never react to SIGTERM: no reason to wait ten seconds.
    node.detached(&["--name", "deaf"], &image, &["sleep", "600"]);
    let began = Instant::now();
    node.ctl(&["stop", "deaf"]).ok().prints("deaf\n");
    assert!(
        began.elapsed() < gantry_tests::patience(Duration::from_secs(2)),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(node.inspect("deaf")["State"]["ExitCode"], json!(137));
    // One with a handler gets its time.
    node.detached(
        &["--name", "polite"],
        &image,
        &[
            "sh",
            "-c",
            "trap 'sleep 0.5; exit 3' TERM; while :; do sleep 0.05; done",
        ],
    );
    node.ctl(&["stop", "polite"]).ok();
    assert_eq!(node.inspect("polite")["State"]["ExitCode"], json!(3));
    // One that ignores the order is killed after the grace.
    node.detached(
        &["--name", "stubborn"],
        &image,
        &[
            "sh",
            "-c",
            "trap '' TERM; trap : USR1; while :; do sleep 0.05; done",
        ],
    );
    let began = Instant::now();
    node.ctl(&["stop", "-t", "1", "stubborn"]).ok();
    assert!(
        began.elapsed() < gantry_tests::patience(Duration::from_secs(4)),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(node.inspect("stubborn")["State"]["ExitCode"], json!(137));
    node.ctl(&["stop", "stubborn"]).ok();
    node.detached(
        &["--name", "int", "--stop-signal", "INT"],
        &image,
        &[
            "sh",
            "-c",
            "trap 'exit 5' INT; while :; do sleep 0.05; done",
        ],
    );
    node.ctl(&["stop", "int"]).ok();
    assert_eq!(node.inspect("int")["State"]["ExitCode"], json!(5));
}

#[test]
fn kill_and_restart() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "target"],
        &image,
        &[
            "sh",
            "-c",
            "trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done",
        ],
    );
    eventually("it is up", || {
        node.ctl(&["logs", "target"]).stdout == "up\n"
    });
    node.ctl(&["kill", "-s", "USR1", "target"]).ok();
    eventually("the signal arrived", || {
        node.ctl(&["logs", "target"]).stdout == "up\nusr1\n"
    });
    let before = node.inspect("target")["State"]["Pid"].clone();
    node.ctl(&["restart", "-t", "0", "target"]).ok();
    assert_eq!(node.status("target"), "running");
    assert_ne!(node.inspect("target")["State"]["Pid"], before);
    node.ctl(&["kill", "target"]).ok();
    node.ctl(&["wait", "target"]).ok().prints("137\n");
    node.ctl(&["kill", "target"]).code(1).complains(&["target"]);
    node.ctl(&["kill", "-s", "NOSUCH", "target"])
        .code(1)
        .complains(&["NOSUCH"]);
}

#[test]
fn restart_policies() {
    let (node, image) = Node::with_busybox();
    let dir = node::host_dir(&node, "count");
    let bind = format!("{dir}:/count");
    let script = "echo x >>/count/$0; exit $1";
    let count = |name: &str| {
        std::fs::read_to_string(format!("{dir}/{name}"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    node.detached(
        &["--name", "three", "--restart", "on-failure:2", "-v", &bind],
        &image,
        &["sh", "-c", script, "three", "1"],
    );
    within(Duration::from_secs(20), "two restarts and no more", || {
        (count("three") == 3 && node.status("three") == "exited").then_some(())
    });
    assert_eq!(node.inspect("three")["RestartCount"], json!(2));
    node.detached(
        &["--name", "fine", "--restart", "on-failure", "-v", &bind],
        &image,
        &["sh", "-c", script, "fine", "0"],
    );
    node.until("fine", "exited");
    assert_eq!(count("fine"), 1);
    node.detached(
        &["--name", "ever", "--restart", "always", "-v", &bind],
        &image,
        &["sh", "-c", script, "ever", "0"],
    );
    within(Duration::from_secs(20), "started again and again", || {
        (count("ever") >= 3).then_some(())
    });
    node.ctl(&["stop", "ever"]).ok();
    let stopped = count("ever");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(count("ever"), stopped, "a stop ends the restarts");
    node.ctl(&["run", "-d", "--rm", "--restart", "always", &image, "true"])
        .code(125)
        .complains(&["--rm"]);
}

#[test]
fn an_init_reaps_orphans() {
    let (node, image) = Node::with_busybox();
    node.detached(&["--name", "reaper", "--init"], &image, &["sleep", "60"]);
    node.ctl(&["exec", "reaper", "sh", "-c", "(sleep 0.1 &) ; exit 0"])
        .ok();
    eventually("the orphan is reaped", || {
        let listed = node
            .ctl(&["exec", "reaper", "ps", "-o", "stat,args"])
            .ok()
            .stdout;
        !listed.lines().any(|line| line.starts_with('Z')) && !listed.contains("sleep 0.1")
    });
    let began = Instant::now();
    node.ctl(&["stop", "reaper"]).ok();
    assert!(began.elapsed() < gantry_tests::patience(Duration::from_secs(3)));
    assert_eq!(node.inspect("reaper")["State"]["ExitCode"], json!(143));
}

#[test]
fn background_logs_wait_and_remove() {
    let (node, image) = Node::with_busybox();
    let id = node.detached(
        &["--name", "job"],
        &image,
        &[
            "sh",
            "-c",
            "echo one; echo two >&2; sleep 0.3; echo three; exit 7",
        ],
    );
    node.ctl(&["rm", "job"]).code(1).complains(&["job"]);
    node.ctl(&["wait", "job"]).ok().prints("7\n");
    let logs = node.ctl(&["logs", "job"]).ok();
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        ("one\nthree\n", "two\n")
    );
    assert_eq!(
        node.ctl(&["logs", "-n", "1", &id[..12]]).ok().stdout,
        "three\n"
    );
    let stamped = node.ctl(&["logs", "-t", "job"]).ok();
    let first = stamped.stdout.lines().next().unwrap();
    assert!(
        first.ends_with(" one") && first.as_bytes()[10] == b'T',
        "{first}"
    );
    let state = node.inspect("job")["State"].clone();
    assert_eq!(
        (&state["Status"], &state["ExitCode"], &state["Running"]),
        (&json!("exited"), &json!(7), &json!(false))
    );
    node.ctl(&["rm", "job"]).ok().prints("job\n");
    node.ctl(&["logs", "job"]).code(1).complains(&["job"]);
    node.ctl(&["rm", "job"]).code(1).complains(&["job"]);
    node.ctl(&["rm", "-f", "job"]).ok();
}
