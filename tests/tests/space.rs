//! Space on disk: what is told of it, what is collected, and what a check finds and repairs.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use gantry_tests::{Image, Layer, Node, fixture};
use serde_json::Value;

fn blob(node: &Node, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    node.path("root/store/blobs").join(algorithm).join(hex)
}

fn bytes_below(dir: &Path) -> u64 {
    gantry_tests::clean::traces(dir, "")
        .iter()
        .flat_map(|at| {
            let below = if at.is_dir() {
                files(at)
            } else {
                vec![at.clone()]
            };
            below.into_iter().map(|at| at.metadata().unwrap().len())
        })
        .sum()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|at| if at.is_dir() { files(&at) } else { vec![at] })
        .collect()
}

#[test]
fn a_check_finds_what_happened_behind_our_back_and_repairs_it() {
    let (node, name) = Node::with_busybox();
    let image = fixture::busybox();
    node.ctl(&["store", "check"])
        .ok()
        .prints("The store is clean\n");
    // A bit flips, a file goes, one comes from nowhere, an upload is left behind.
    let flipped = blob(&node, &image.layers[0].digest);
    let mut bytes = std::fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&flipped, &bytes).unwrap();
    std::fs::remove_file(blob(&node, &image.layers[1].digest)).unwrap();
    let stray = gantry_tests::image::digest(b"stray");
    std::fs::write(blob(&node, &stray), b"stray").unwrap();
    let lie = format!("sha256:{}", "e".repeat(64));
    std::fs::write(blob(&node, &lie), b"lie").unwrap();
    let old = node.path("root/store/ingest/left");
    std::fs::write(&old, b"half").unwrap();
    gantry_tests::command::shell(&format!("touch -d '3 days ago' {}", old.display()));

    let quick = node.ctl(&["store", "check", "--quick"]).code(1).stdout;
    assert!(!quick.contains("corrupt"), "{quick}");
    let plan = node.ctl(&["store", "check"]).code(1).stdout;
    for line in [
        format!("corrupt: {}: its bytes hash to", image.layers[0].digest),
        format!("lost: {}: its file is gone", image.layers[1].digest),
        format!("unknown: {stray}: a file without a record; remedy: take it in"),
        format!(
            "unknown: {lie}: a file without a record, and not what its name says; remedy: remove it"
        ),
        format!(
            "incomplete: {name}: blob {} is missing; remedy: ctl pull {name}",
            image.layers[1].digest
        ),
        format!("abandoned: {}", old.display()),
    ] {
        assert!(plan.contains(&line), "{line}: {plan}");
    }
    // Looking has changed nothing.
    assert_eq!(node.ctl(&["store", "check"]).code(1).stdout, plan);
    let out = node.ctl(&["store", "check", "--repair"]).code(1).stdout;
    assert!(out.contains("5 repaired, 1 for you to do"), "{out}");
    assert!(!old.exists() && !flipped.exists() && !blob(&node, &lie).exists());
    // The pull that it asks for fetches what is missing, and only that.
    let out = node.ctl(&["pull", &name]).ok();
    assert!(out.stderr.contains("Already exists"), "{out:?}");
    node.ctl(&["store", "check"]).ok();
    node.sh(&["--pull", "never"], &name, "cat /etc/motd")
        .ok()
        .prints("second\n");
}

#[test]
fn usage_is_right_to_the_byte() {
    let node = Node::start();
    let shared = Layer::new()
        .file("shared", 0o644, &vec![b's'; 40_000])
        .gzip();
    let image = |own: &str| {
        let mut layers = fixture::busybox().layers.clone();
        layers.extend([
            shared.clone(),
            Layer::new()
                .file("own", 0o644, own.repeat(9000).as_bytes())
                .gzip(),
        ]);
        Image::new(layers)
    };
    let (a, b) = (image("first"), image("other"));
    let names = [
        node.registry().push("df/a", "1", &a),
        node.registry().push("df/b", "1", &b),
    ];
    for name in &names {
        node.ctl(&["pull", "-q", name]).ok();
    }
    node.ctl(&[
        "run",
        "--name",
        "writer",
        "-v",
        "kept:/data",
        &names[0],
        "sh",
        "-c",
        "head -c 12345 /dev/zero >/file; ln /file /again; head -c 777 /dev/zero >/data/in",
    ])
    .ok();
    let out = node.ctl(&["system", "df", "-v"]).ok().stdout;
    let row = |name: &str| -> Vec<String> {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    for (name, image) in names.iter().zip([&a, &b]) {
        let own = image.layers.last().unwrap().bytes.len()
            + image.config().bytes.len()
            + image.manifest().bytes.len();
        let rest: usize = image
            .layers
            .iter()
            .rev()
            .skip(1)
            .map(|layer| layer.bytes.len())
            .sum();
        let told = row(name);
        assert_eq!(
            told[2..5],
            [(own + rest).to_string(), rest.to_string(), own.to_string()],
            "{out}"
        );
    }
    assert_eq!(row("kept")[1], "777");
    // The empty files under the mounts of /etc count nothing.
    assert_eq!(row("writer")[1], "12345");
    let json = node.ctl(&["system", "df", "--format", "json"]).ok().stdout;
    let kinds: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kinds[0]["TotalCount"], "2");
    assert_eq!(kinds[0]["Active"], "1");
    // What is collected is what is gone from the disk.
    node.ctl(&["rm", "writer"]).ok();
    let before = bytes_below(&node.path("root/store/blobs"));
    node.ctl(&["rmi", &names[1]]).ok();
    let told = node.ctl(&["gc", "--dry-run"]).ok().stdout;
    assert_eq!(
        told.lines()
            .filter(|line| line.contains("no image and no lease"))
            .count(),
        3,
        "{told}"
    );
    assert_eq!(bytes_below(&node.path("root/store/blobs")), before);
    node.ctl(&["gc"]).ok();
    let own =
        b.layers.last().unwrap().bytes.len() + b.config().bytes.len() + b.manifest().bytes.len();
    assert_eq!(
        before - bytes_below(&node.path("root/store/blobs")),
        own as u64
    );
    node.ctl(&["store", "check"]).ok();
}
