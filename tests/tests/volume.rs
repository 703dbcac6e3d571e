//! Bind mounts, named and anonymous volumes, tmpfs.
#![allow(clippy::unwrap_used)]

use gantry_tests::{Node, node};

#[test]
fn bind_mounts_show_the_host() {
    let (node, image) = Node::with_busybox();
    let dir = node::host_dir(&node, "shared");
    std::fs::write(format!("{dir}/in"), "from the host\n").unwrap();
    node.sh(
        &["-v", &format!("{dir}:/data")],
        &image,
        "cat /data/in; echo back >/data/out",
    )
    .ok()
    .prints("from the host\n");
    assert_eq!(
        std::fs::read_to_string(format!("{dir}/out")).unwrap(),
        "back\n"
    );
    let closed = node
        .sh(
            &["-v", &format!("{dir}:/data:ro")],
            &image,
            "echo x >/data/out",
        )
        .code(1);
    closed.complains(&["Read-only file system"]);
    let file = format!("{dir}/in:/etc/motd");
    node.sh(&["-v", &file], &image, "cat /etc/motd")
        .ok()
        .prints("from the host\n");
    // -v makes a missing source, --mount refuses it.
    let missing = node.path("missing");
    node.sh(
        &["-v", &format!("{}:/m", missing.display())],
        &image,
        "ls /m",
    )
    .ok()
    .prints("");
    assert!(missing.is_dir());
    let none = format!(
        "type=bind,source={}/none,target=/m",
        node.path("").display()
    );
    node.sh(&["--mount", &none], &image, "true")
        .code(125)
        .complains(&["none"]);
}

#[test]
fn read_only_covers_what_is_mounted_below() {
    let (node, image) = Node::with_busybox();
    let dir = node::host_dir(&node, "outer");
    let inner = node::host_dir(&node, "outer/inner");
    gantry_tests::command::shell(&format!("mount -t tmpfs none {inner}"));
    let out = node.sh(
        &["-v", &format!("{dir}:/data:ro")],
        &image,
        "touch /data/inner/x 2>&1; true",
    );
    gantry_tests::command::shell(&format!("umount {inner}"));
    assert_eq!(
        out.ok().stdout,
        "touch: /data/inner/x: Read-only file system\n"
    );
}

#[test]
fn named_volumes_are_seeded_once_and_stay() {
    let (node, image) = Node::with_busybox();
    // Docker copies what the image has at the target into an empty volume, with owner and mode.
    node.sh(
        &["-v", "data:/seed"],
        &image,
        "cat /seed/file; stat -c %a /seed /seed/file; echo mine >/seed/file",
    )
    .ok()
    .prints("seeded\n751\n640\n");
    node.sh(&["-v", "data:/seed"], &image, "cat /seed/file")
        .ok()
        .prints("mine\n");
    node.sh(
        &[
            "--mount",
            "type=volume,source=other,target=/seed,volume-nocopy",
        ],
        &image,
        "ls -A /seed",
    )
    .ok()
    .prints("");
    node.sh(&["-v", "data:/other:ro"], &image, "cat /other/file")
        .ok()
        .prints("mine\n");
}

#[test]
fn two_containers_share_one_volume() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["-v", "box:/box"],
        &image,
        &[
            "sh",
            "-c",
            "mkfifo /box/pipe; cat /box/pipe >/box/heard; sleep 60",
        ],
    );
    let script = "while [ ! -p /box/pipe ]; do sleep 0.05; done; echo hello >/box/pipe; while [ ! -s /box/heard ]; do sleep 0.05; done; cat /box/heard";
    node.sh(&["-v", "box:/box"], &image, script)
        .ok()
        .prints("hello\n");
}

/// The answer to a removal waits until the files are out of reach (in the trash), not until the last of them is unlinked.
fn gone(node: &Node, marker: &str) {
    let kept = || gantry_tests::clean::traces(&node.path("root"), marker);
    let trash = node.path("root/snapshotter/trash");
    let reachable: Vec<_> = kept()
        .into_iter()
        .filter(|at| !at.starts_with(&trash))
        .collect();
    assert!(reachable.is_empty(), "still there: {reachable:?}");
    gantry_tests::eventually("the trash is emptied", || kept().is_empty());
}

#[test]
fn anonymous_volumes_go_with_rm() {
    let (node, image) = Node::with_busybox();
    let marker = |name: &str| format!("echo x >/data/{name}");
    node.sh(&["-v", "/data"], &image, &marker("unique-marker-a"))
        .ok();
    gone(&node, "unique-marker-a");
    node.ctl(&[
        "run",
        "--name",
        "keeps",
        "-v",
        "/data",
        &image,
        "sh",
        "-c",
        &marker("unique-marker-b"),
    ])
    .ok();
    node.ctl(&["rm", "keeps"]).ok();
    assert_eq!(
        gantry_tests::clean::traces(&node.path("root"), "unique-marker-b").len(),
        1
    );
    node.ctl(&[
        "run",
        "--name",
        "drops",
        "-v",
        "/data",
        &image,
        "sh",
        "-c",
        &marker("unique-marker-c"),
    ])
    .ok();
    node.ctl(&["rm", "-v", "drops"]).ok();
    gone(&node, "unique-marker-c");
}

#[test]
fn targets_never_leave_the_container() {
    let node = Node::start();
    let mut image = gantry_tests::fixture::busybox().clone();
    image.layers.push(
        gantry_tests::Layer::new()
            .symlink("escape", "/../../../../../../tmp")
            .symlink("up", "../../../..")
            .gzip(),
    );
    let name = node.registry().push("escape", "1", &image);
    node.ctl(&["pull", "-q", &name]).ok();
    let dir = node::host_dir(&node, "shared");
    let home = node.path("").to_string_lossy().into_owned();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for target in ["/escape/inside", "/up/made/here"] {
        node.sh(&["-v", &format!("{dir}:{target}")], &name, &format!("grep -c {target} /proc/mounts || cut -d' ' -f2 /proc/mounts | grep -c inside\\\\\\|here")).ok();
    }
    assert!(
        !std::path::Path::new("/tmp/inside").exists() && !std::path::Path::new("/made").exists()
    );
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(before.contains(&home), after.contains(&home));
}
