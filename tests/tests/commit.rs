//! Images from containers and from archives: commit, export, import, and what of them survives the way to another node.
#![allow(clippy::unwrap_used)]

use gantry_tests::command::shell;
use gantry_tests::{Node, Registry, fixture};
use serde_json::{Value, json};

/// Lists everything with mode, owner, size, links, time and what it is.
const WALK: &str = "find / -xdev ! -path '/proc*' ! -path '/sys*' ! -path '/dev*' ! -name resolv.conf ! -name hosts ! -name hostname ! -name '.' | sort | while read f; do stat -c '%n %f %u %g %s %h %Y %N' \"$f\"; done";

fn config(node: &Node, image: &str) -> Value {
    let out = node.ctl(&["inspect", "--type", "image", image]).ok();
    let all: Value = serde_json::from_str(&out.stdout).unwrap();
    all[0].clone()
}

#[test]
fn what_a_container_has_changed_becomes_an_image() {
    let (node, base) = Node::with_busybox();
    let script = "echo new >/new; chmod 4751 /new; ln /new /linked; ln -s new /soft; rm /etc/motd; rm -r /opt/full; mkdir /opt/full; \
                  chown 7:8 /seed/file; touch -d '2001-02-03 04:05:06' /seed; truncate -s 5M /sparse; mknod /null c 1 3";
    node.ctl(&[
        "run",
        "--name",
        "source",
        "-e",
        "FROM_RUN=1",
        "-l",
        "kept=yes",
        &base,
        "sh",
        "-c",
        script,
    ])
    .ok();
    let id = node
        .ctl(&[
            "commit",
            "-a",
            "someone",
            "-m",
            "a reason",
            "--change",
            "CMD [\"cat\", \"/new\"]",
            "--change",
            "ENV ADDED=two",
            "-c",
            "LABEL extra='a b'",
            "-c",
            "EXPOSE 80",
            "source",
            "made/here:1",
        ])
        .ok()
        .stdout;
    node.ctl(&["run", "--rm", "--pull", "never", "made/here:1"])
        .ok()
        .prints("new\n");
    let made = config(&node, "made/here:1");
    assert_eq!(made["Id"], id.trim());
    assert_eq!(made["Author"], "someone");
    let settings = &made["Config"];
    assert_eq!(settings["Cmd"], json!(["cat", "/new"]));
    assert_eq!(settings["Labels"], json!({"kept": "yes", "extra": "a b"}));
    assert_eq!(settings["ExposedPorts"], json!({"80/tcp": {}}));
    let env = settings["Env"].as_array().unwrap();
    assert!(
        env.contains(&json!("FROM_RUN=1")) && env.contains(&json!("ADDED=two")),
        "{env:?}"
    );
    let layers = made["RootFS"]["Layers"].as_array().unwrap().len();
    assert_eq!(layers, fixture::busybox().layers.len() + 1);
    let history = node
        .ctl(&["history", "--no-trunc", "made/here:1"])
        .ok()
        .stdout;
    assert!(history.contains("a reason"), "{history}");
    // The tree is the container's, here and after a way through a registry.
    // No layer says when the root itself was changed.
    let walk = |node: &Node, image: &str| {
        let out = node.sh(&[], image, WALK).ok().stdout;
        let lines = out.lines().filter(|line| !line.starts_with("/ "));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let here = walk(&node, "made/here:1");
    for line in [
        "/new 89e9 0 0 4 2 ",
        "/seed/file 81a0 7 8 ",
        "/sparse 81a4 0 0 5242880 ",
        "/null 21a4 ",
    ] {
        assert!(here.contains(line), "{line}: {here}");
    }
    assert!(
        !here.contains("/etc/motd") && !here.contains("/opt/full/"),
        "{here}"
    );
    let registry = Registry::start();
    let there = format!("{}/made:1", registry.address());
    node.ctl(&["push", "-q", "made/here:1", &there]).ok();
    let other = Node::start();
    assert_eq!(walk(&other, &there), here);
    assert_eq!(config(&other, &there)["Id"], made["Id"]);
    // On top of it again, without a name.
    node.ctl(&["rm", "source"]).ok();
    node.ctl(&[
        "run",
        "--name",
        "second",
        "made/here:1",
        "sh",
        "-c",
        "echo more >>/new",
    ])
    .ok();
    let id = node.ctl(&["commit", "second"]).ok().stdout;
    node.ctl(&["run", "--rm", &id.trim()[7..19], "cat", "/new"])
        .ok()
        .prints("new\nmore\n");
}

#[test]
fn a_running_container_stands_still_and_goes_on() {
    let (node, base) = Node::with_busybox();
    // Two files that are written one after the other: at no moment is the second ahead, nor the first by more than one.
    let script = "n=0; while :; do n=$((n+1)); echo $n >/a.new; mv /a.new /a; echo $n >/b.new; mv /b.new /b; done";
    node.detached(&["--name", "busy"], &base, &["sh", "-c", script]);
    gantry_tests::eventually("it has written both", || {
        node.ctl(&["exec", "busy", "test", "-e", "/b"]).code == 0
    });
    for round in 0..4 {
        let name = format!("moment:{round}");
        node.ctl(&["commit", "busy", &name]).ok();
        let numbers = node
            .sh(&["--pull", "never"], &name, "cat /a /b")
            .ok()
            .stdout;
        let numbers: Vec<i64> = numbers.lines().map(|line| line.parse().unwrap()).collect();
        assert!((0..=1).contains(&(numbers[0] - numbers[1])), "{numbers:?}");
    }
    node.ctl(&["commit", "--pause=false", "busy", "moment:live"])
        .ok();
    let count = || -> i64 {
        node.ctl(&["exec", "busy", "cat", "/b"])
            .ok()
            .stdout
            .trim()
            .parse()
            .unwrap()
    };
    let before = count();
    gantry_tests::eventually("it goes on", || count() > before);
    node.ctl(&["rm", "-f", "busy"]).ok();
}

#[test]
fn a_file_system_goes_out_and_comes_back() {
    let (node, base) = Node::with_busybox();
    node.ctl(&[
        "run",
        "--name",
        "source",
        "-v",
        "/data",
        &base,
        "sh",
        "-c",
        "echo in >/data/volume; echo own >/own",
    ])
    .ok();
    let (ctl, run) = (gantry_tests::bin("ctl"), node.path("run"));
    let ctl = format!("{} -H {}", ctl.display(), run.display());
    let id = shell(&format!(
        "{ctl} export source | {ctl} import -m flat --change 'CMD [\"cat\", \"/own\"]' - flat:1"
    ));
    node.ctl(&["run", "--rm", "flat:1"]).ok().prints("own\n");
    node.sh(&[], "flat:1", "ls /data").ok().prints("");
    assert_eq!(config(&node, "flat:1")["Id"], id.trim());
    let walk = |image: &str| {
        let out = node.sh(&[], image, WALK).ok().stdout;
        // What the container made, and what each start of one makes anew.
        let own = |line: &&str| {
            !["/own ", "/data ", "/etc ", "/ "]
                .iter()
                .any(|name| line.starts_with(name))
        };
        // A directory's links are the file system's affair: overlayfs counts those of merged ones differently.
        let told = |line: &str| {
            let mut words: Vec<&str> = line.split(' ').collect();
            if words[1].starts_with('4') {
                words.remove(5);
            }
            words.join(" ")
        };
        out.lines().filter(own).map(told).collect::<Vec<_>>()
    };
    let (ours, theirs) = (walk("flat:1"), walk(&base));
    let differs: Vec<_> = ours
        .iter()
        .zip(&theirs)
        .filter(|(a, b)| a != b)
        .take(5)
        .collect();
    assert!(
        ours == theirs,
        "{} and {} lines; {differs:#?}",
        ours.len(),
        theirs.len()
    );
    // Also compressed, and from another tool.
    let at = node.path("root.tar.zst");
    shell(&format!("{ctl} export source | zstd -q >{}", at.display()));
    node.ctl(&[
        "import",
        "--platform",
        "linux/arm64",
        at.to_str().unwrap(),
        "foreign:1",
    ])
    .ok();
    let tree = node.ctl(&["images", "--tree", "foreign"]).ok().stdout;
    assert!(tree.contains("linux/arm64"), "{tree}");

    for (file, text, words) in [
        ("text", "no archive\n".repeat(200), "no tar archive"),
        ("empty", String::new(), "no tar archive"),
    ] {
        std::fs::write(node.path(file), text).unwrap();
        node.ctl(&["import", node.path(file).to_str().unwrap(), "bad:1"])
            .code(1)
            .complains(&[words]);
    }
    node.ctl(&["import", "/none", "bad:1"])
        .code(1)
        .complains(&["/none"]);
    node.ctl(&["commit", "-c", "RUN x", "source", "bad:1"])
        .code(1)
        .complains(&["RUN", "CMD"]);
    node.ctl(&["commit", "nobody", "bad:1"])
        .code(1)
        .complains(&["nobody"]);
    node.ctl(&["commit", "source", "UPPER"])
        .code(1)
        .complains(&["UPPER"]);
    node.ctl(&["images", "-q", "bad"]).ok().prints("");
    assert!(gantry_tests::clean::traces(&node.path("root/store/ingest"), "").is_empty());
}
