//! `cargo xtask dev`: a private engine, a base image from a real registry, a container, and nothing left at the end.
//!
//! Invariant: everything that it makes carries the marks of its node, and the node's leak check ends the run.
#![allow(clippy::unwrap_used)] // each failed step is to end the run with its place

use std::time::Instant;

use clap::Parser;
use gantry_tests::{Node, fixture};

/// Start an engine, make and pull an image, run a container, clean up.
#[derive(Debug, Parser)]
struct Cli {
    /// Pull and run this image from its registry instead of one made from Debian's busybox-static.
    #[arg(long)]
    image: Option<String>,
    /// Leave the engine running until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

fn main() {
    let cli = Cli::parse();
    let began = Instant::now();
    let node = Node::for_a_person();
    println!("engine ready after {:?}", began.elapsed());
    let image = cli.image.unwrap_or_else(|| {
        let name = node.registry().push("base", "latest", fixture::busybox());
        println!("made a base image from busybox-static: {name}");
        name
    });
    print!("{}", node.ctl(&["pull", &image]).ok().stdout);
    let began = Instant::now();
    let out = node
        .ctl(&[
            "run",
            "--rm",
            &image,
            "sh",
            "-c",
            "echo hello from $(uname -s) in a container",
        ])
        .ok();
    print!("{}", out.stdout);
    println!("the container took {:?}", began.elapsed());
    if cli.keep {
        println!(
            "the engine stays until Ctrl-C:\n  ctl -H {run} ps\nsockets: {run}/*.sock\nlog:     {log}",
            run = node.path("run").display(),
            log = node.log_path().display()
        );
        let wait = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        wait.block_on(tokio::signal::ctrl_c()).unwrap();
        println!();
    }
    drop(node);
    println!("nothing is left");
}
