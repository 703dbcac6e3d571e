//! `cargo xtask bench`: our commands in turn with those of other engines, medians and ratios, and what an engine weighs.
//!
//! Invariants: commands are interleaved, so that a busy moment hits all of them; nothing is skipped silently.
//! Peers: `GANTRY_PEERS_PID` is a process in the mount namespace that has them, `GANTRY_PEERS_DIR` the directory with
//! `docker.sock` and `containerd.sock`.
#![allow(clippy::unwrap_used)] // each failed step is to end the run with its place

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use gantry_tests::{Node, bin, fixture, workspace};
use serde_json::{Value, json};

/// Time the engine beside its peers.
#[derive(Debug, Parser)]
struct Cli {
    /// Rounds; each runs every command once.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Containers for the footprint.
    #[arg(long, default_value_t = 100)]
    containers: usize,
}

struct Contender {
    name: &'static str,
    /// What it is compared with, by name.
    against: Option<&'static str>,
    command: Vec<String>,
    times: Vec<Duration>,
}

fn contender(name: &'static str, against: Option<&'static str>, command: Vec<String>) -> Contender {
    Contender {
        name,
        against,
        command,
        times: Vec::new(),
    }
}

fn main() {
    let cli = Cli::parse();
    let node = Node::start();
    let image = node.registry().push("bench", "latest", fixture::busybox());
    node.ctl(&["pull", "-q", &image]).ok();
    let idle = engine_pss(&node);
    node.detached(&["--name", "target"], &image, &["sleep", "3600"]);
    let mut contenders = ours(&node, &image);
    contenders.extend(peers(&image));
    for round in 0..=cli.rounds {
        for contender in &mut contenders {
            let took = time(&contender.command);
            // The first round warms every cache and does not count.
            if round > 0 {
                contender.times.push(took);
            }
        }
    }
    let rows: Vec<Value> = contenders.iter().map(|one| row(one, &contenders)).collect();
    println!(
        "{:<28} {:>9} {:>9}  ratio",
        "command", "median ms", "least ms"
    );
    for row in &rows {
        println!(
            "{:<28} {:>9.1} {:>9.1}  {}",
            row["name"].as_str().unwrap(),
            row["median_ms"].as_f64().unwrap(),
            row["least_ms"].as_f64().unwrap(),
            row["ratio"].as_f64().map_or(String::new(), |ratio| format!(
                "{ratio:.1} x {}",
                row["against"].as_str().unwrap_or_default()
            ))
        );
    }
    for number in 1..cli.containers {
        node.detached(
            &["--name", &format!("n{number}")],
            &image,
            &["sleep", "3600"],
        );
    }
    let shims: Vec<u64> = gantry_tests::clean::processes(|line| {
        line.contains("gantry-shim") && line.contains(node.path("run").to_str().unwrap())
    })
    .into_iter()
    .map(|(pid, _)| pss(pid))
    .collect();
    assert!(!shims.is_empty(), "no shim was found");
    let shim = shims.iter().sum::<u64>() / shims.len() as u64;
    let busy = engine_pss(&node);
    println!(
        "engine idle {idle} KiB PSS, at {} containers {busy} KiB; a shim {shim} KiB",
        shims.len()
    );
    let report = json!({
        "times": rows,
        "engine_idle_pss_kib": idle,
        "engine_busy_pss_kib": busy,
        "shim_pss_kib": shim,
        "containers": shims.len(),
    });
    let path = workspace().join("target/bench.json");
    std::fs::write(&path, format!("{report:#}\n")).unwrap();
    println!("written to {}", path.display());
}

fn ours(node: &Node, image: &str) -> Vec<Contender> {
    let ctl = |arguments: &[&str]| {
        let mut all = vec![
            bin("ctl").display().to_string(),
            "-H".into(),
            node.path("run").display().to_string(),
        ];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        all
    };
    vec![
        contender(
            "ctl run, bridge",
            None,
            ctl(&["run", "--rm", image, "true"]),
        ),
        contender(
            "ctl run, none",
            None,
            ctl(&["run", "--rm", "--network", "none", image, "true"]),
        ),
        contender("ctl exec", None, ctl(&["exec", "target", "true"])),
        contender("ctl ps", None, ctl(&["ps"])),
    ]
}

fn peers(image: &str) -> Vec<Contender> {
    let (Ok(pid), Ok(dir)) = (
        std::env::var("GANTRY_PEERS_PID"),
        std::env::var("GANTRY_PEERS_DIR"),
    ) else {
        println!("no peers: GANTRY_PEERS_PID and GANTRY_PEERS_DIR are not set; only our own times");
        return Vec::new();
    };
    let words = |command: String| command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let enter = format!("nsenter -t {pid} -m");
    let docker = format!("{enter} docker -H unix://{dir}/docker.sock");
    let ctr = format!("{enter} ctr -a {dir}/containerd.sock");
    for prepare in [
        format!("{docker} pull -q {image}"),
        format!("{ctr} image pull --plain-http {image}"),
    ] {
        time(&words(prepare));
    }
    // A bundle with docker's file system and runc's own idea of a configuration: no image, no network, no daemon.
    let bundle = format!("{dir}/bundle");
    let script = format!(
        "rm -rf {bundle}; mkdir -p {bundle}/rootfs; cd {bundle}; \
         c=$(docker -H unix://{dir}/docker.sock create {image}); \
         docker -H unix://{dir}/docker.sock export $c | tar -x -C rootfs; \
         docker -H unix://{dir}/docker.sock rm $c; \
         runc spec; sed -i 's/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"true\"/' config.json"
    );
    let mut prepare = words(format!("{enter} sh -c"));
    prepare.push(script);
    time(&prepare);
    vec![
        contender(
            "entering the peers' root",
            None,
            words(format!("{enter} true")),
        ),
        contender(
            "docker run, bridge",
            Some("ctl run, bridge"),
            words(format!("{docker} run --rm {image} true")),
        ),
        contender(
            "docker run, none",
            Some("ctl run, none"),
            words(format!("{docker} run --rm --network none {image} true")),
        ),
        contender(
            "ctr run",
            Some("ctl run, bridge"),
            words(format!("{ctr} run --rm {image} bench true")),
        ),
        contender(
            "runc run (bundle)",
            Some("ctl run, none"),
            words(format!("{enter} runc run --bundle {bundle} bench")),
        ),
        contender("docker ps", Some("ctl ps"), words(format!("{docker} ps"))),
    ]
}

fn time(command: &[String]) -> Duration {
    let began = Instant::now();
    let output = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    began.elapsed()
}

fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2].as_secs_f64() * 1000.0
}

fn row(one: &Contender, all: &[Contender]) -> Value {
    let own = median(&one.times);
    let ratio = one
        .against
        .and_then(|name| all.iter().find(|other| other.name == name))
        .map(|other| own / median(&other.times));
    json!({
        "name": one.name,
        "median_ms": own,
        "least_ms": one.times.iter().min().unwrap().as_secs_f64() * 1000.0,
        "against": one.against,
        "ratio": ratio,
    })
}

/// Proportional set size of a process, KiB (proc(5), smaps_rollup).
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn engine_pss(node: &Node) -> u64 {
    node.engine().into_iter().map(pss).sum()
}
