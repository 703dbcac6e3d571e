//! `ctl run` as docker users know it: exit codes, flags, names, and what `ps` and `inspect` tell.
#![allow(clippy::unwrap_used)]

use gantry_tests::{Node, fixture};
use serde_json::json;

#[test]
fn pull_run_and_forget() {
    let node = Node::start();
    let name = node.registry().push("hello", "1", fixture::busybox());
    // Not here yet: run pulls it, and says so beside the container's output.
    node.ctl(&["run", "--rm", &name, "echo", "hello"])
        .ok()
        .prints("hello\n");
    let id = fixture::busybox().config().digest;
    let listed = node.ctl(&["images", "--no-trunc", "-q"]).ok();
    assert_eq!(listed.text(), id);
    node.ctl(&["run", "--rm", "--pull", "never", &id, "echo", "by", "id"])
        .ok()
        .prints("by id\n");
    node.ctl(&["ps", "-a", "-q"]).ok().prints("");
    node.ctl(&["run", "--rm", "--pull", "never", "127.0.0.1:1/none", "true"])
        .code(125)
        .complains(&["127.0.0.1:1/none"]);
}

#[test]
fn layers_are_seen_as_one_tree() {
    let (node, image) = Node::with_busybox();
    let script = "cat /etc/motd; ls /etc/hidden 2>&1; ls /opt/full; stat -c '%a %u:%g %Y' /home/alice/own /seed /tmp";
    node.sh(&[], &image, script).ok().prints(
        "second\nls: /etc/hidden: No such file or directory\nnew\n600 1000:1000 1700000000\n751 0:0 1700000000\n1777 0:0 1700000000\n",
    );
}

#[test]
fn exit_codes_are_dockers() {
    let (node, image) = Node::with_busybox();
    let run =
        |arguments: &[&str]| node.ctl(&[&["run", "--rm", image.as_str()], arguments].concat());
    for code in [0, 1, 3, 42, 255] {
        run(&["sh", "-c", &format!("exit {code}")]).code(code);
    }
    run(&["/no/such"]).code(127).complains(&["/no/such"]);
    run(&["no-such-name"])
        .code(127)
        .complains(&["no-such-name"]);
    run(&["/etc/not-executable"])
        .code(126)
        .complains(&["/etc/not-executable"]);
    run(&["/etc"]).code(126).complains(&["/etc"]);
    node.ctl(&["run", "--no-such-flag", &image])
        .code(125)
        .complains(&["--no-such-flag"]);
    node.ctl(&["run", "--rm", "-m", "many", &image, "true"])
        .code(125)
        .complains(&["many"]);
    node.ctl(&["run", "--rm", "Not/A/Name"])
        .code(125)
        .complains(&["Name"]);
    node.ctl(&["run", "--rm", "-v", "/no/such/dir:relative", &image])
        .code(125)
        .complains(&["relative"]);
}

#[test]
fn ps_and_inspect_tell_the_truth() {
    let (node, image) = Node::with_busybox();
    let id = node.detached(
        &["--name", "sleeper", "-l", "tier=a"],
        &image,
        &["sleep", "60"],
    );
    node.ctl(&["create", "--name", "later", &image, "true"])
        .ok();
    assert_eq!(node.ctl(&["ps", "-q", "--no-trunc"]).ok().text(), id);
    let table = node.ctl(&["ps"]).ok().stdout;
    assert!(
        table.starts_with("CONTAINER ID") && table.contains(&id[..12]) && table.contains("sleeper"),
        "{table}"
    );
    assert!(!table.contains("later"), "{table}");
    let names = node.ctl(&["ps", "-a", "--format", "{{.Names}}"]).ok();
    assert_eq!(names.stdout, "later\nsleeper\n");
    assert_eq!(
        node.ctl(&["ps", "-a", "-q", "--no-trunc", "-f", "label=tier=a"])
            .ok()
            .text(),
        id
    );
    assert_eq!(
        node.ctl(&["ps", "-q", "-f", "label=tier=b"]).ok().stdout,
        ""
    );
    let shown = node.inspect("sleeper");
    assert_eq!(shown["Id"], json!(id));
    assert_eq!(shown["Name"], json!("/sleeper"));
    assert_eq!(shown["Config"]["Image"], json!(image));
    assert_eq!(shown["Config"]["Labels"]["tier"], json!("a"));
    assert_eq!(
        (&shown["Path"], &shown["Args"]),
        (&json!("sleep"), &json!(["60"]))
    );
    let pid = shown["State"]["Pid"].as_i64().unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"sleep\x0060\0");
    assert_eq!(
        node.ctl(&["inspect", "-f", "{{.State.Status}}", "later"])
            .ok()
            .text(),
        "created"
    );
    assert_eq!(
        node.ctl(&["ps", "--format", "json"])
            .ok()
            .stdout
            .lines()
            .count(),
        1
    );
    node.ctl(&["inspect", "nobody"])
        .code(1)
        .complains(&["nobody"]);
    let top = node.ctl(&["top", "sleeper"]).ok().stdout;
    assert!(top.contains("sleep 60"), "{top}");
}

#[test]
fn names_are_taken_once_and_come_free() {
    let (node, image) = Node::with_busybox();
    let id = node.detached(&["--name", "web"], &image, &["sleep", "60"]);
    node.ctl(&["run", "-d", "--name", "web", &image, "true"])
        .code(125)
        .complains(&["web", "already"]);
    node.ctl(&["create", "--name", "no/slash", &image])
        .code(1)
        .complains(&["no/slash"]);
    node.ctl(&["rm", "-f", "web"]).ok();
    let next = node.detached(&["--name", "web"], &image, &["sleep", "60"]);
    assert_ne!(id, next);
    // A name wins over an id's beginning, and a beginning that fits one container is enough.
    assert_eq!(
        node.ctl(&["inspect", "-f", "{{.Id}}", &next[..6]])
            .ok()
            .text(),
        next
    );
}

#[test]
fn the_environment_is_what_was_asked() {
    let (node, image) = Node::with_busybox();
    let list = node.path("list");
    std::fs::write(&list, "# comment\nFROM_FILE=yes\nEMPTY=\n").unwrap();
    let out = node
        .ctl(&[
            "run",
            "--rm",
            "--hostname",
            "box",
            "-e",
            "A=1 2",
            "--env-file",
            list.to_str().unwrap(),
            &image,
            "env",
        ])
        .ok();
    let mut lines: Vec<&str> = out.stdout.lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        lines,
        [
            "A=1 2",
            "EMPTY=",
            "FROM_FILE=yes",
            "HOME=/root",
            "HOSTNAME=box",
            path
        ]
    );
}

#[test]
fn users_groups_and_directories() {
    let (node, image) = Node::with_busybox();
    let id = |flags: &[&str]| {
        node.sh(flags, &image, "id -u; id -g; id -G; echo $HOME; pwd")
            .ok()
            .stdout
    };
    assert_eq!(id(&[]), "0\n0\n0\n/root\n/\n");
    assert_eq!(
        id(&["-u", "alice"]),
        "1000\n1000\n1000 29\n/home/alice\n/\n"
    );
    assert_eq!(id(&["-u", "1000"]), "1000\n1000\n1000 29\n/home/alice\n/\n");
    assert_eq!(
        id(&["-u", "alice:video", "-w", "/made/here"]),
        "1000\n44\n44\n/home/alice\n/made/here\n"
    );
    assert_eq!(id(&["-u", "4711:4712"]), "4711\n4712\n4712\n/\n/\n");
    assert_eq!(
        id(&["-u", "1000", "--group-add", "video"]),
        "1000\n1000\n1000 29 44\n/home/alice\n/\n"
    );
    node.sh(&["-u", "nobody-here"], &image, "true")
        .code(125)
        .complains(&["nobody-here"]);
    node.sh(&["-w", "relative"], &image, "true")
        .code(125)
        .complains(&["relative"]);
    node.sh(&["-w", "/etc/motd"], &image, "true")
        .code(125)
        .complains(&["/etc/motd"]);
}

#[test]
fn entrypoint_and_command_combine() {
    let node = Node::start();
    let made = fixture::busybox()
        .clone()
        .with("Entrypoint", json!(["echo", "entry"]))
        .with("Cmd", json!(["command"]))
        .with("WorkingDir", json!("/opt/full"))
        .with("Env", json!(["PATH=/bin", "FROM=image"]));
    let image = node.registry().push("entry", "1", &made);
    node.ctl(&["pull", "-q", &image]).ok();
    node.ctl(&["run", "--rm", &image])
        .ok()
        .prints("entry command\n");
    node.ctl(&["run", "--rm", &image, "other"])
        .ok()
        .prints("entry other\n");
    // Replacing the entrypoint drops the image's command.
    node.ctl(&["run", "--rm", "--entrypoint", "pwd", &image])
        .ok()
        .prints("/opt/full\n");
    node.ctl(&[
        "run",
        "--rm",
        "--entrypoint",
        "",
        &image,
        "sh",
        "-c",
        "echo $FROM",
    ])
    .ok()
    .prints("image\n");
    node.ctl(&["run", "--rm", "--entrypoint", "", &image])
        .code(125)
        .complains(&["command"]);
}

#[test]
fn the_root_file_system_can_be_closed() {
    let (node, image) = Node::with_busybox();
    let script = "touch /no 2>&1; touch /run/yes && echo yes; stat -f -c %T /run; df -k /run | awk 'NR==2{print $2}'";
    let out = node
        .sh(
            &["--read-only", "--tmpfs", "/run:size=1m,mode=700"],
            &image,
            script,
        )
        .ok();
    assert_eq!(
        out.stdout,
        "touch: /no: Read-only file system\nyes\ntmpfs\n1024\n"
    );
    node.sh(
        &["--tmpfs", "/t"],
        &image,
        "grep ' /t ' /proc/mounts | grep -c nosuid,nodev,noexec",
    )
    .ok()
    .prints("1\n");
}

#[test]
fn host_names_and_the_files_behind_them() {
    let (node, image) = Node::with_busybox();
    let script = "hostname; cat /etc/hostname; grep -c 'box$' /etc/hosts; grep '10.9.8.7' /etc/hosts; grep ^nameserver /etc/resolv.conf";
    let out = node
        .sh(
            &["-h", "box", "--add-host", "db:10.9.8.7", "--dns", "9.9.9.9"],
            &image,
            script,
        )
        .ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(&lines[..2], ["box", "box"]);
    assert_ne!(lines[2], "0", "{out:?}");
    assert_eq!(
        lines[3].split_whitespace().collect::<Vec<_>>(),
        ["10.9.8.7", "db"]
    );
    assert_eq!(lines[4], "nameserver 9.9.9.9");
    let id = node.detached(&[], &image, &["sleep", "60"]);
    assert_eq!(node.ctl(&["exec", &id, "hostname"]).ok().text(), &id[..12]);
}

#[test]
fn the_id_of_the_container_goes_to_a_file() {
    let (node, image) = Node::with_busybox();
    let file = node.path("cid");
    let flag = file.to_str().unwrap();
    let out = node
        .ctl(&["run", "-d", "--cidfile", flag, &image, "sleep", "60"])
        .ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), out.text());
    node.ctl(&["run", "-d", "--cidfile", flag, &image, "true"])
        .code(125)
        .complains(&[flag]);
}

#[test]
fn info_and_version_answer_without_a_container() {
    let node = Node::start();
    assert!(
        node.ctl(&["version"])
            .ok()
            .stdout
            .contains(env!("CARGO_PKG_VERSION"))
    );
    assert!(
        node.ctl(&["info"])
            .ok()
            .stdout
            .contains(node.path("root").to_str().unwrap())
    );
    node.down();
    node.ctl(&["ps"]).code(1).complains(&["gantryd"]);
    node.up();
    node.ctl(&["ps"]).ok();
}
