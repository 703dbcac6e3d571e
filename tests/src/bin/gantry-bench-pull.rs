//! `cargo xtask bench-pull`: cold pulls of a large image, ours in turn with those of other engines; time and peak memory.
//!
//! Invariants: each pull begins with nothing of the image on the puller's side; pulls are interleaved, so that a busy moment hits all
//! of them; the registry is docker-registry on loopback for all. Peers: as for `cargo xtask bench`.
#![allow(clippy::unwrap_used)] // each failed step is to end the run with its place

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use gantry_tests::{Node, Registry};

/// Time cold pulls beside other engines.
#[derive(Debug, Parser)]
struct Cli {
    /// Rounds; each pulls every image once with every engine
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// OCI layouts of the images, each with one image
    #[arg(required = true)]
    layouts: Vec<String>,
}

fn run(command: &[String]) -> Duration {
    let began = Instant::now();
    let output = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    began.elapsed()
}

fn words(command: &str) -> Vec<String> {
    command.split(' ').map(str::to_owned).collect()
}

/// Peak resident set of a process, KiB (proc(5), VmHWM).
fn peak(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// Another engine: how it pulls, and how it forgets.
struct Peer {
    name: &'static str,
    pull: String,
    forget: Vec<String>,
}

fn peers() -> Vec<Peer> {
    let (Ok(pid), Ok(dir)) = (
        std::env::var("GANTRY_PEERS_PID"),
        std::env::var("GANTRY_PEERS_DIR"),
    ) else {
        println!("no peers: GANTRY_PEERS_PID and GANTRY_PEERS_DIR are not set; only our own times");
        return Vec::new();
    };
    let enter = format!("nsenter -t {pid} -m");
    let docker = format!("{enter} docker -H unix://{dir}/docker.sock");
    let ctr = format!("{enter} ctr -a {dir}/containerd.sock -n bench");
    vec![
        Peer {
            name: "docker",
            pull: format!("{docker} pull -q IMAGE"),
            forget: vec![format!("{docker} rmi -f IMAGE")],
        },
        Peer {
            name: "containerd",
            pull: format!("{ctr} image pull --plain-http IMAGE"),
            forget: vec![
                format!("{ctr} image rm --sync IMAGE"),
                format!("{ctr} content prune references"),
            ],
        },
    ]
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let cli = Cli::parse();
    let registry = Registry::start();
    let peers = peers();
    for (nth, layout) in cli.layouts.iter().enumerate() {
        let image = format!("{}/pulled/{nth}:1", registry.address());
        run(&words(&format!(
            "skopeo copy -q --dest-tls-verify=false --preserve-digests oci:{layout} docker://{image}"
        )));
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<f64>> = peers.iter().map(|_| Vec::new()).collect();
        let mut most = 0;
        for _ in 0..cli.rounds {
            let node = Node::start();
            let began = Instant::now();
            node.ctl(&["pull", "-q", &image]).ok();
            ours.push(began.elapsed().as_secs_f64());
            most = most.max(node.engine().into_iter().map(peak).sum::<u64>());
            drop(node);
            for (peer, times) in peers.iter().zip(&mut theirs) {
                let fill = |text: &str| words(&text.replace("IMAGE", &image));
                times.push(run(&fill(&peer.pull)).as_secs_f64());
                for forget in &peer.forget {
                    run(&fill(forget));
                }
            }
        }
        let own = median(&mut ours);
        println!(
            "{layout}: ctl pull {own:.2} s, all services at their peak {} MiB",
            most >> 10
        );
        for (peer, times) in peers.iter().zip(&mut theirs) {
            let time = median(times);
            println!(
                "    {} pull {time:.2} s, {:.1} times ours",
                peer.name,
                time / own
            );
        }
    }
}
