//! Bytes and signals between the user and the container: output, input, logs, exec, attach, terminals, events.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use gantry_tests::command::Lines;
use gantry_tests::{Node, eventually};
use serde_json::json;

#[test]
fn streams_stay_apart_and_whole() {
    let (node, image) = Node::with_busybox();
    let out = node
        .sh(&[], &image, "echo out; echo err >&2; printf 'no newline'")
        .ok();
    assert_eq!(
        (out.stdout.as_str(), out.stderr.as_str()),
        ("out\nno newline", "err\n")
    );
    // Every byte value, more than any pipe holds, both ways.
    let input: Vec<u8> = (0..4_000_000u32).map(|n| (n * 31 % 251) as u8).collect();
    let out = node
        .ctl_with_stdin(&["run", "--rm", "-i", &image, "sha256sum"], &input)
        .ok();
    let sum = gantry_tests::image::digest(&input);
    assert_eq!(
        out.text(),
        format!("{}  -", sum.trim_start_matches("sha256:"))
    );
    let out = node
        .ctl_with_stdin(&["run", "--rm", "-i", &image, "cat"], b"a\nb")
        .ok();
    assert_eq!(out.stdout, "a\nb");
    // Without -i nothing is read, and the container sees the end at once.
    node.ctl_with_stdin(&["run", "--rm", &image, "cat"], b"unread")
        .ok()
        .prints("");
    let out = node
        .sh(
            &[],
            &image,
            "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
        )
        .ok();
    let expected: String = (0..20000).map(|n| format!("line {n}\n")).collect();
    assert!(out.stdout == expected, "lost or mixed output");
}

#[test]
fn a_slow_reader_loses_nothing() {
    let (node, image) = Node::with_busybox();
    let script = "head -c 20000000 /dev/zero | tr '\\0' x; echo end";
    let mut running = node
        .command(&["run", "--rm", &image, "sh", "-c", script])
        .spawn()
        .unwrap();
    // Long enough for every buffer on the way to fill, and for the container to end if nothing held it.
    std::thread::sleep(Duration::from_secs(2));
    let mut all = Vec::new();
    let mut out = running.stdout.take().unwrap();
    std::io::Read::read_to_end(&mut out, &mut all).unwrap();
    assert_eq!(all.len(), 20_000_004);
    assert!(all.ends_with(b"xend\n"));
    assert_eq!(running.wait().unwrap().code(), Some(0));
    // One that fits the buffers ends at once, and is read later all the same.
    let script = "head -c 900000 /dev/zero | tr '\\0' x";
    let mut running = node
        .command(&["run", "--rm", &image, "sh", "-c", script])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let mut all = Vec::new();
    let mut out = running.stdout.take().unwrap();
    std::io::Read::read_to_end(&mut out, &mut all).unwrap();
    assert_eq!(all.len(), 900_000);
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn exec_runs_beside() {
    let (node, image) = Node::with_busybox();
    node.detached(&["--name", "host", "-e", "A=1"], &image, &["sleep", "60"]);
    let exec = |arguments: &[&str]| node.ctl(&[&["exec"], arguments].concat());
    exec(&["host", "echo", "hi"]).ok().prints("hi\n");
    exec(&["host", "sh", "-c", "echo $A; exit 9"])
        .code(9)
        .prints("1\n");
    exec(&[
        "-e",
        "B=2",
        "-w",
        "/tmp",
        "-u",
        "alice",
        "host",
        "sh",
        "-c",
        "echo $B; pwd; id -un",
    ])
    .ok()
    .prints("2\n/tmp\nalice\n");
    exec(&["host", "no-such"]).code(127).complains(&["no-such"]);
    exec(&["host", "/etc"]).code(126);
    exec(&["nobody", "true"]).code(1).complains(&["nobody"]);
    let out = node
        .ctl_with_stdin(&["exec", "-i", "host", "cat"], b"through\n")
        .ok();
    assert_eq!(out.stdout, "through\n");
    exec(&["-d", "host", "touch", "/tmp/done"]).ok().prints("");
    eventually("the detached exec has run", || {
        exec(&["host", "test", "-e", "/tmp/done"]).code == 0
    });
    // The same pid namespace, capabilities and limits as the container.
    exec(&[
        "host",
        "sh",
        "-c",
        "cat /proc/1/cmdline | tr '\\0' ' '; grep CapEff /proc/self/status",
    ])
    .ok()
    .prints("sleep 60 CapEff:\t00000000a80425fb\n");
    node.ctl(&["kill", "host"]).ok();
    node.until("host", "exited");
    exec(&["host", "true"]).code(1).complains(&["host"]);
}

#[test]
fn attach_sees_what_comes_and_types() {
    let (node, image) = Node::with_busybox();
    node.ctl(&[
        "run",
        "-d",
        "-i",
        "--name",
        "echoer",
        &image,
        "sh",
        "-c",
        "while read line && [ \"$line\" != quit ]; do echo got $line; done; echo end; exit 5",
    ])
    .ok();
    let mut attached = node
        .command(&["attach", "echoer"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    let mut lines = Lines::of(attached.stdout.take().unwrap());
    stdin.write_all(b"a b\n").unwrap();
    assert_eq!(lines.next().unwrap(), "got a b");
    stdin.write_all(b"c\n").unwrap();
    assert_eq!(lines.next().unwrap(), "got c");
    // A container of `run -d -i` keeps its input when the one who typed goes; it ends by an order of its own.
    attached.kill().unwrap();
    attached.wait().unwrap();
    assert_eq!(node.status("echoer"), "running");
    let mut again = node
        .command(&["attach", "echoer"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    again.stdin.as_mut().unwrap().write_all(b"quit\n").unwrap();
    assert_eq!(again.wait().unwrap().code(), Some(5));
    assert_eq!(
        node.ctl(&["logs", "echoer"]).ok().stdout,
        "got a b\ngot c\nend\n"
    );
}

#[test]
fn terminals() {
    let (node, image) = Node::with_busybox();
    let out = node.sh(&["-t"], &image, "tty; echo x").ok();
    assert_eq!(out.stdout, "/dev/pts/0\r\nx\r\n");
    node.ctl(&["run", "-d", "-it", "--name", "shell", &image])
        .ok();
    assert_eq!(node.inspect("shell")["Config"]["Tty"], json!(true));
    assert_eq!(node.status("shell"), "running");
}

#[test]
fn signals_reach_the_process_through_ctl() {
    let (node, image) = Node::with_busybox();
    let mut running = node
        .command(&[
            "run",
            "--rm",
            &image,
            "sh",
            "-c",
            "trap 'echo term; exit 6' TERM; echo up; while :; do sleep 0.05; done",
        ])
        .spawn()
        .unwrap();
    let mut lines = Lines::of(running.stdout.take().unwrap());
    assert_eq!(lines.next().unwrap(), "up");
    gantry_tests::clean::signal(running.id().cast_signed(), "TERM");
    assert_eq!(lines.next().unwrap(), "term");
    assert_eq!(running.wait().unwrap().code(), Some(6));
}

#[test]
fn logs_follow_to_the_end() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "slow"],
        &image,
        &[
            "sh",
            "-c",
            "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done",
        ],
    );
    node.ctl(&["logs", "-f", "slow"])
        .ok()
        .prints("1\n2\n3\n4\n5\n");
}

#[test]
fn events_are_told_in_order() {
    let (node, image) = Node::with_busybox();
    let mut events = node
        .command(&["events", "--format", "{{.Action}}"])
        .spawn()
        .unwrap();
    let lines = Lines::of(events.stdout.take().unwrap());
    // Wait until the stream is open: the first container may come too early for it.
    std::thread::sleep(Duration::from_millis(500));
    node.ctl(&["run", "--rm", &image, "sh", "-c", "exit 2"])
        .code(2);
    let told: Vec<String> = lines
        .filter(|action| ["create", "start", "die", "destroy"].contains(&action.as_str()))
        .take(4)
        .collect();
    assert_eq!(told, ["create", "start", "die", "destroy"]);
    events.kill().unwrap();
    events.wait().unwrap();
}
