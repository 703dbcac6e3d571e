//! The engine is killed again and again, at random moments, under running containers: none of them may notice.
//!
//! `GANTRY_SEED` repeats the moments; `GANTRY_CRASH_CONTAINERS` says how many containers (20).
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use gantry_tests::node::SERVICES;
use gantry_tests::{Dice, Node, fixture, within};
use serde_json::json;

/// Counts aloud every tenth of a second until the file `stop` appears, then exits with its own number.
const COUNTER: &str =
    "i=0; while [ ! -e /shared/stop ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit $0";

fn count() -> usize {
    std::env::var("GANTRY_CRASH_CONTAINERS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20)
}

/// Kills one service or the whole engine; a killed gantryd is started again after a random pause.
fn strike(node: &Node, dice: &mut Dice) {
    let target = dice.below(SERVICES.len() + 1);
    match SERVICES.get(target) {
        Some(service) => node.kill_service(service),
        None => {
            node.kill();
            dice.pause(Duration::from_millis(500));
            node.up();
        }
    }
}

/// A command that may hit a dead engine is repeated until the engine answers: with what, is the test.
fn persist(node: &Node, arguments: &[&str]) -> gantry_tests::Out {
    within(
        Duration::from_secs(60),
        &format!("ctl {arguments:?} is answered"),
        || {
            let out = node.ctl(arguments);
            let away = [
                "unavailable",
                "Unavailable",
                "cannot connect",
                "transport",
                "gantryd",
            ];
            (out.code == 0 || !away.iter().any(|word| out.stderr.contains(word))).then_some(out)
        },
    )
}

fn assert_gapless(log: &str, who: &str) -> usize {
    for (expected, line) in log.lines().enumerate() {
        assert_eq!(line, expected.to_string(), "{who}: a gap in the log");
    }
    log.lines().count()
}

#[test]
fn no_container_notices_that_the_engine_dies() {
    let mut dice = Dice::from_env("no_container_notices_that_the_engine_dies");
    let (node, image) = Node::with_busybox();
    let shared = gantry_tests::node::host_dir(&node, "shared");
    let bind = format!("{shared}:/shared");
    let names: Vec<String> = (0..count()).map(|n| format!("c{n}")).collect();
    for (number, name) in names.iter().enumerate() {
        let network = *dice.pick(&["bridge", "none", "host"]);
        node.detached(
            &["--name", name, "--network", network, "-v", &bind],
            &image,
            &["sh", "-c", COUNTER, &(number % 200).to_string()],
        );
    }
    let pids: Vec<i64> = names
        .iter()
        .map(|name| node.inspect(name)["State"]["Pid"].as_i64().unwrap())
        .collect();
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        strike(&node, &mut dice);
        dice.pause(Duration::from_millis(1500));
        for (name, pid) in names.iter().zip(&pids) {
            assert!(
                std::path::Path::new(&format!("/proc/{pid}")).exists(),
                "{name} died (seed {})",
                dice.seed()
            );
        }
    }
    // All end while nobody is there to see it.
    node.kill();
    std::fs::write(format!("{shared}/stop"), "").unwrap();
    within(Duration::from_secs(20), "every container has ended", || {
        pids.iter()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists())
            .then_some(())
    });
    node.up();
    for (number, (name, pid)) in names.iter().zip(&pids).enumerate() {
        assert_eq!(
            node.ctl(&["wait", name]).ok().text(),
            (number % 200).to_string(),
            "{name}"
        );
        let shown = node.inspect(name);
        assert_eq!(
            shown["State"]["Status"],
            json!("exited"),
            "{name}, pid {pid}"
        );
        assert_eq!(shown["RestartCount"], json!(0), "{name}");
        let lines = assert_gapless(&node.ctl(&["logs", name]).ok().stdout, name);
        assert!(lines > 100, "{name}: {lines} lines");
    }
    // A second start just works.
    std::fs::remove_file(format!("{shared}/stop")).unwrap();
    node.ctl(&["start", &names[0]]).ok();
    node.until(&names[0], "running");
    node.assert_clean();
}

#[test]
fn work_that_a_crash_cuts_off_can_be_repeated() {
    let mut dice = Dice::from_env("work_that_a_crash_cuts_off_can_be_repeated");
    let (node, image) = Node::with_busybox();
    for round in 0..15 {
        let name = format!("round{round}");
        let mut running = node
            .command(&[
                "run", "-d", "--name", &name, "-p", "80", &image, "sleep", "600",
            ])
            .spawn()
            .unwrap();
        dice.pause(Duration::from_millis(60));
        strike(&node, &mut dice);
        running.wait().unwrap();
        // Whatever the cut-off command has left, the name is free after rm, and then all works.
        let forced = persist(&node, &["rm", "-f", &name]);
        assert_eq!(
            forced.code,
            0,
            "round {round}, seed {}: {forced:?}",
            dice.seed()
        );
        let again = persist(
            &node,
            &["run", "-d", "--name", &name, &image, "sleep", "600"],
        );
        assert_eq!(
            again.code,
            0,
            "round {round}, seed {}: {again:?}",
            dice.seed()
        );
        let mut stopping = node.command(&["stop", &name]).spawn().unwrap();
        dice.pause(Duration::from_millis(60));
        strike(&node, &mut dice);
        stopping.wait().unwrap();
        assert_eq!(persist(&node, &["stop", &name]).code, 0, "round {round}");
        assert_eq!(persist(&node, &["start", &name]).code, 0, "round {round}");
        let mut removing = node.command(&["rm", "-f", &name]).spawn().unwrap();
        dice.pause(Duration::from_millis(60));
        strike(&node, &mut dice);
        removing.wait().unwrap();
        assert_eq!(
            persist(&node, &["rm", "-f", &name]).code,
            0,
            "round {round}"
        );
    }
    assert_eq!(persist(&node, &["ps", "-a", "-q"]).stdout, "");
    node.assert_clean();
}

#[test]
fn a_pull_that_a_crash_cuts_off_goes_on() {
    let mut dice = Dice::from_env("a_pull_that_a_crash_cuts_off_goes_on");
    let node = Node::start();
    let registry = node.registry();
    for round in 0..6 {
        let mut image = fixture::busybox().clone();
        for layer in 0..4u64 {
            let noise: Vec<u8> = (0..3_000_000u64)
                .map(|n| ((n + layer + round * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8)
                .collect();
            image.layers.push(
                gantry_tests::Layer::new()
                    .file(&format!("noise{layer}"), 0o644, &noise)
                    .gzip(),
            );
        }
        let name = registry.push("cut", &round.to_string(), &image);
        let mut pulling = node.command(&["pull", "-q", &name]).spawn().unwrap();
        dice.pause(Duration::from_millis(300));
        strike(&node, &mut dice);
        pulling.wait().unwrap();
        assert_eq!(
            persist(&node, &["pull", "-q", &name]).code,
            0,
            "round {round}, seed {}",
            dice.seed()
        );
        let out = persist(
            &node,
            &["run", "--rm", &name, "sh", "-c", "cat /noise* | wc -c"],
        );
        assert_eq!(
            out.text(),
            "12000000",
            "round {round}, seed {}: {out:?}",
            dice.seed()
        );
    }
    node.assert_clean();
}

#[test]
fn an_order_to_end_leaves_containers_alone() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "stays", "-p", "80"],
        &image,
        &["sh", "-c", COUNTER, "0"],
    );
    let pid = node.inspect("stays")["State"]["Pid"].clone();
    for _ in 0..3 {
        assert!(node.down().success());
        assert!(std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
        node.up();
        assert_eq!(node.inspect("stays")["State"]["Pid"], pid);
        assert_eq!(node.ctl(&["exec", "stays", "echo", "in"]).ok().text(), "in");
    }
    assert_gapless(&node.ctl(&["logs", "stays"]).ok().stdout, "stays");
}
