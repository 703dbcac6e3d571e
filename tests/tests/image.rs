//! Real images: what arrives in a container equals what other tools unpack; platforms, digests, broken connections.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use gantry_tests::http::{Reply, Server};
use gantry_tests::image::host_architecture;
use gantry_tests::{Compression, Image, Layer, Node, fixture};
use serde_json::json;

/// Prints one line an entry below the directory in argv[1]: everything that a file system knows of it.
const WALK: &str = r#"
import hashlib, os, stat, sys
top = sys.argv[1].rstrip("/")
hidden = {"/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
for here, dirs, files in os.walk(top or "/"):
    at = here[len(top):] or "/"
    dirs[:] = sorted(d for d in dirs if os.path.join(at, d) not in hidden)
    for name in sorted(dirs + files):
        path = os.path.join(at, name)
        if path in hidden:
            continue
        full = top + path
        s = os.lstat(full)
        kind = stat.S_IFMT(s.st_mode)
        what = ""
        if kind == stat.S_IFLNK:
            what = os.readlink(full)
        elif kind == stat.S_IFREG:
            what = hashlib.sha256(open(full, "rb").read()).hexdigest() + " links %d" % s.st_nlink
        xattrs = sorted((x, os.getxattr(full, x, follow_symlinks=False).hex()) for x in os.listxattr(full, follow_symlinks=False))
        print(path, oct(s.st_mode), s.st_uid, s.st_gid, int(s.st_mtime), s.st_rdev, what, xattrs)
"#;

#[test]
fn debian_is_byte_for_byte_what_umoci_unpacks() {
    let node = Node::start();
    let image = fixture::debian();
    let name = node.registry().push("debian", "full", image);
    node.ctl(&["pull", "-q", &name]).ok();
    let inside = node
        .ctl(&["run", "--rm", &name, "python3", "-c", WALK, "/"])
        .ok()
        .stdout;

    let layout = node.path("layout");
    image.write_layout(&layout, "full");
    let bundle = node.path("bundle");
    let unpacked = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:full", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    let walked = Command::new("python3")
        .args(["-c", WALK])
        .arg(bundle.join("rootfs"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let outside = String::from_utf8(walked.stdout).unwrap();
    assert!(
        outside.lines().count() > 5000,
        "{}",
        String::from_utf8_lossy(&walked.stderr)
    );
    let (ours, theirs): (Vec<&str>, Vec<&str>) =
        (inside.lines().collect(), outside.lines().collect());
    let only = |a: &[&str], b: &[&str]| {
        let b: std::collections::BTreeSet<&&str> = b.iter().collect();
        a.iter()
            .filter(|line| !b.contains(line))
            .take(20)
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    assert!(
        ours == theirs,
        "only here: {:#?}\nonly umoci: {:#?}",
        only(&ours, &theirs),
        only(&theirs, &ours)
    );
    assert!(
        ours.iter()
            .any(|line| line.starts_with("/srv/replaced/new"))
    );
    assert!(!ours.iter().any(|line| line.starts_with("/srv/replaced/old") || line.starts_with("/etc/issue.net")));
}

#[test]
fn debian_works_inside() {
    let node = Node::start();
    let name = node.registry().push("debian", "work", fixture::debian());
    let run = |script: &str| node.ctl(&["run", "--rm", &name, "sh", "-ec", script]);
    run("python3 -c 'import ssl, json, sqlite3; print(sum(range(10)))'")
        .ok()
        .prints("45\n");
    run("dpkg --audit; dpkg -s apt | grep ^Status")
        .ok()
        .prints("Status: install ok installed\n");
    run("apt-get check -q >/dev/null; apt-get remove -y -qq tzdata >/dev/null 2>&1; echo kept || true; id -un").ok().prints("kept\nroot\n");
    run("su nobody -s /bin/sh -c 'id -un; cat /srv/unreadable' 2>&1")
        .code(1)
        .prints("nobody\ncat: /srv/unreadable: Permission denied\n");
    run("stat -c '%h' /srv/first; echo more >>/srv/first; cat /srv/second").ok();
}

#[test]
fn the_platform_of_the_machine_is_taken() {
    let node = Node::start();
    let index = fixture::multi_platform();
    let name = node.registry().push_index("multi", "1", &index);
    node.ctl(&["run", "--rm", &name, "echo", "right"])
        .ok()
        .prints("right\n");
    let (foreign, wrong) = if host_architecture() == "amd64" {
        ("linux/arm64", "linux/riscv64")
    } else {
        ("linux/amd64", "linux/riscv64")
    };
    node.ctl(&["pull", "-q", "--platform", foreign, &name]).ok();
    node.ctl(&["pull", "-q", "--platform", wrong, &name])
        .code(1)
        .complains(&["riscv64"]);
}

#[test]
fn a_digest_names_exactly_one_thing() {
    let node = Node::start();
    let registry = node.registry();
    let first = fixture::busybox()
        .clone()
        .with("Cmd", json!(["echo", "first"]));
    let second = fixture::busybox()
        .clone()
        .with("Cmd", json!(["echo", "second"]));
    let name = registry.push("moving", "tag", &first);
    let pinned = format!("{}/moving@{}", registry.address(), first.manifest().digest);
    node.ctl(&["run", "--rm", &pinned]).ok().prints("first\n");
    registry.push("moving", "tag", &second);
    node.ctl(&["run", "--rm", &name]).ok().prints("second\n");
    node.ctl(&["run", "--rm", &pinned]).ok().prints("first\n");
    // A tag that is here is not asked for again, unless told so.
    registry.push("moving", "tag", &first);
    node.ctl(&["run", "--rm", &name]).ok().prints("second\n");
    node.ctl(&["run", "--rm", "--pull", "always", &name])
        .ok()
        .prints("first\n");
    let absent = format!("{}/moving@sha256:{}", registry.address(), "0".repeat(64));
    node.ctl(&["pull", "-q", &absent])
        .code(1)
        .complains(&["0000"]);
    node.ctl(&["pull", "-q", &format!("{}/moving:none", registry.address())])
        .code(1)
        .complains(&["moving:none"]);
}

#[test]
fn every_packing_is_read() {
    let node = Node::start();
    for (tag, how) in [
        ("plain", Compression::None),
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
    ] {
        let mut image = fixture::busybox().clone();
        image
            .layers
            .push(Layer::new().file("packed", 0o644, tag.as_bytes()).pack(how));
        let name = node.registry().push("packed", tag, &image);
        node.ctl(&["run", "--rm", &name, "cat", "/packed"])
            .ok()
            .prints(tag);
    }
}

/// Paths and replies of a registry that holds one image as `name:tag`.
pub fn serve(name: &str, tag: &str, image: &Image) -> BTreeMap<String, Reply> {
    let manifest = image.manifest();
    let document = Reply::Bytes {
        kind: manifest.media_type.clone(),
        body: manifest.bytes.clone(),
    };
    let mut replies = BTreeMap::from([
        (format!("/v2/{name}/manifests/{tag}"), document.clone()),
        (
            format!("/v2/{name}/manifests/{}", manifest.digest),
            document,
        ),
    ]);
    for blob in image.layers.iter().chain([&image.config()]) {
        let reply = Reply::Bytes {
            kind: "application/octet-stream".into(),
            body: blob.bytes.clone(),
        };
        replies.insert(format!("/v2/{name}/blobs/{}", blob.digest), reply);
    }
    replies
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let node = Node::start();
    let mut image = fixture::busybox().clone();
    // Does not compress, so the cut is in the middle of much.
    let noise: Vec<u8> = (0..2_000_000u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8)
        .collect();
    let big = Layer::new()
        .file("noise", 0o644, &noise)
        .pack(Compression::None);
    image.layers.push(big.clone());
    let mut replies = serve("broken", "1", &image);
    let path = format!("/v2/broken/blobs/{}", big.digest);
    replies.insert(
        path.clone(),
        Reply::Break {
            cut: 1_500_000,
            body: big.bytes,
        },
    );
    let server = Server::start(replies);
    let name = format!("{}/broken:1", server.address());
    node.expect_log(&["broken", "trying again", "retry"]);
    node.ctl(&["pull", "-q", &name]).ok();
    let asked: Vec<String> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.path == path)
        .map(|seen| seen.range)
        .collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(
        asked[1].starts_with("bytes=") && asked[1] != "bytes=0-",
        "resumed: {asked:?}"
    );
    let out = node
        .ctl(&["run", "--rm", &name, "sha256sum", "/noise"])
        .ok();
    assert!(gantry_tests::image::digest(&noise).ends_with(out.text().split(' ').next().unwrap()));
}

#[test]
fn a_layer_is_fetched_once_for_all_who_wait() {
    let node = Node::start();
    let image = fixture::busybox();
    let server = Server::start(serve("popular", "1", image));
    let name = format!("{}/popular:1", server.address());
    let pulls: Vec<_> = (0..4)
        .map(|_| node.command(&["pull", "-q", &name]).spawn().unwrap())
        .collect();
    for pull in pulls {
        gantry_tests::command::finish(pull).ok();
    }
    for layer in &image.layers {
        let path = format!("/v2/popular/blobs/{}", layer.digest);
        let count = server
            .seen()
            .iter()
            .filter(|seen| seen.path == path && seen.method == "GET")
            .count();
        assert_eq!(count, 1, "{path}");
    }
    node.ctl(&["run", "--rm", &name, "true"]).ok();
}
