//! Our own registry: other clients push to it and pull from it, nodes fetch from each other, what is missing comes from upstream.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command};
use std::time::Duration;

use gantry_tests::command::Lines;
use gantry_tests::http::request;
use gantry_tests::{Node, Registry, fixture};

/// `ctl registry serve` of a node, ended with the value.
struct Serving {
    child: Child,
    address: String,
    lines: Lines,
}

impl Serving {
    fn start(node: &Node, flags: &[&str]) -> Serving {
        let base = ["registry", "serve", "--listen", "127.0.0.1:0"];
        let mut child = node.command(&[&base, flags].concat()).spawn().unwrap();
        let mut lines = Lines::of(child.stdout.take().unwrap());
        let first = lines.next().unwrap();
        let address = first
            .trim()
            .strip_prefix("Listening on ")
            .unwrap()
            .to_owned();
        Serving {
            child,
            address,
            lines,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn skopeo(arguments: &[&str]) -> (bool, String) {
    let out = Command::new("skopeo").args(arguments).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn other_clients_use_it_as_any_registry() {
    let (node, name) = Node::with_busybox();
    let serving = Serving::start(&node, &[]);
    let there = format!("docker://{}/team/app:1", serving.address);
    let copy = [
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--preserve-digests",
    ];
    let from = format!("docker://{name}");
    let (ok, text) = skopeo(&[&copy[..], &[&from, &there]].concat());
    assert!(ok, "{text}");
    let (ok, text) = skopeo(&["list-tags", "--tls-verify=false", &there[..there.len() - 2]]);
    assert!(ok && text.contains("\"1\""), "{text}");
    // It is an image of this node under the registry's name, and runs.
    node.sh(
        &["--pull", "never"],
        "gantry.local/team/app:1",
        "cat /etc/motd",
    )
    .ok()
    .prints("second\n");
    // And everything else of this node is there under its own name, byte for byte.
    node.ctl(&["tag", &name, "quay.invalid/x/y:3"]).ok();
    let mirrored = format!("docker://{}/quay.invalid/x/y:3", serving.address);
    let (ok, text) = skopeo(&["inspect", "--raw", "--tls-verify=false", &mirrored]);
    let manifest = fixture::busybox().manifest();
    assert!(ok && text.as_bytes() == manifest.bytes, "{text}");
    // Another node pulls from it.
    let other = Node::start();
    let name = format!("{}/team/app:1", serving.address);
    other
        .sh(&[], &name, "cat /etc/motd")
        .ok()
        .prints("second\n");
    // Pushed to from another node, with an index.
    let index = node
        .registry()
        .push_index("served", "1", &fixture::multi_platform());
    other.ctl(&["pull", "-q", "--all-platforms", &index]).ok();
    let target = format!("{}/indexed/app:2", serving.address);
    other.ctl(&["push", "-q", &index, &target]).ok();
    let (ok, text) = skopeo(&[
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{target}"),
    ]);
    assert!(
        ok && text.as_bytes() == fixture::multi_platform().blob().bytes,
        "{text}"
    );
    // Deleted by digest, and gone with its tag.
    let (ok, text) = skopeo(&["delete", "--tls-verify=false", &there]);
    assert!(ok, "{text}");
    let gone = request(
        "GET",
        &serving.address,
        "/v2/team/app/manifests/1",
        &[],
        b"",
    )
    .unwrap();
    assert_eq!(gone.status, 404);
    node.ctl(&[
        "images",
        "--format",
        "{{.Repository}}",
        "--filter",
        "reference=gantry.local/*/*",
    ])
    .ok()
    .prints("gantry.local/indexed/app\n");
}

#[test]
fn an_upload_goes_on_after_a_crash_of_the_service() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let address = address.as_str();
    let node = Node::with(&[&format!("registry.serve.listen={address:?}")]);
    let send = |method: &str, path: &str, headers: &[String], body: &[u8]| {
        gantry_tests::within(Duration::from_secs(20), "the registry answers", || {
            request(method, address, path, headers, body).ok()
        })
    };
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = gantry_tests::image::digest(&bytes);
    let begun = send("POST", "/v2/up/load/blobs/uploads/", &[], b"");
    assert_eq!(begun.status, 202);
    let location = begun.headers["location"].clone();
    let half = bytes.len() / 2;
    let range = |from: usize, to: usize| vec![format!("Content-Range: {from}-{}", to - 1)];
    let sent = send("PATCH", &location, &range(0, half), &bytes[..half]);
    assert_eq!(sent.status, 202, "{sent:?}");
    // A chunk that does not follow is refused and says where to go on.
    let wrong = send("PATCH", &location, &range(7, half), &bytes[7..half]);
    assert_eq!(wrong.status, 416);
    assert_eq!(wrong.headers["range"], format!("0-{}", half - 1));
    node.kill_service("registry");
    let told = send("GET", &location, &[], b"");
    assert_eq!(told.status, 204, "{told:?}");
    assert_eq!(told.headers["range"], format!("0-{}", half - 1));
    let end = format!("{location}?digest={digest}");
    let done = send("PUT", &end, &range(half, bytes.len()), &bytes[half..]);
    assert_eq!(done.status, 201, "{done:?}");
    let blob = format!("/v2/up/load/blobs/{digest}");
    assert!(send("GET", &blob, &[], b"").body == bytes);
    let part = send("GET", &blob, &["Range: bytes=4-7".into()], b"");
    assert_eq!((part.status, part.body), (206, bytes[4..8].to_vec()));
    // Bytes that are not what they are called never become a blob.
    let begun = send("POST", "/v2/up/load/blobs/uploads/", &[], b"");
    let lie = format!(
        "{}?digest=sha256:{}",
        begun.headers["location"],
        "0".repeat(64)
    );
    assert_eq!(send("PUT", &lie, &[], b"lie").status, 400);
    assert_eq!(
        send("GET", &begun.headers["location"], &[], b"").status,
        404
    );
}

#[test]
fn users_and_certificates_are_wanted_where_they_are_set() {
    let (node, name) = Node::with_busybox();
    // Its authority and users are those of the guarded registry of the tests.
    let guarded = Registry::guarded();
    let file = |name: &str| guarded.home().join(name).to_str().unwrap().to_owned();
    let flags = [
        "--tls-cert",
        &file("server.crt"),
        "--tls-key",
        &file("server.key"),
        "--htpasswd",
        &file("htpasswd"),
        "--read-only",
    ];
    let serving = Serving::start(&node, &flags);
    let address = &serving.address;
    let other = Node::start();
    let certs = other.path("certs.d").join(address);
    std::fs::create_dir_all(&certs).unwrap();
    let hosts = format!(
        "server = \"https://{address}\"\nca = \"{}\"\n",
        file("ca.crt")
    );
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    node.ctl(&["tag", &name, "team/app:1"]).ok();
    let there = format!("{address}/team/app:1");
    other
        .ctl(&["pull", &there])
        .code(1)
        .complains(&["refuses access"]);
    let login = ["login", "-u", "alice", "--password-stdin", address];
    other.ctl_with_stdin(&login, b"wrong").code(1);
    other.ctl_with_stdin(&login, b"secret").ok();
    other.sh(&[], &there, "echo in").ok().prints("in\n");
    other
        .ctl(&["push", &there, &format!("{address}/new:1")])
        .code(1)
        .complains(&["read-only"]);
    node.ctl(&["registry", "serve", "--listen", address])
        .code(1)
        .complains(&["in use", "--listen"]);
    node.ctl(&[
        "registry",
        "serve",
        "--htpasswd",
        &file("ca.crt"),
        "--listen",
        "127.0.0.1:0",
    ])
    .code(1)
    .complains(&["ca.crt", "line 1"]);
}

#[test]
fn nodes_fetch_from_each_other_and_from_upstream() {
    let (node, name) = Node::with_busybox();
    let mut serving = Serving::start(&node, &["--upstream", node.registry().address()]);
    let peer = format!("registry.peers=[\"http://{}\"]", serving.address);
    let second = Node::with(&[&peer]);
    second.ctl(&["pull", "-q", &name]).ok();
    // Every layer came from the node nearby, only the tag's meaning from the registry.
    let layers = fixture::busybox().layers.len();
    let mut blobs = 0;
    while blobs < layers {
        let line = serving.lines.next().unwrap();
        blobs += usize::from(line.contains("/blobs/sha256:") && line.contains(" 200 "));
    }
    // A node nearby that is away is passed over.
    let third = Node::with(&["registry.peers=[\"http://127.0.0.1:9\"]"]);
    third.sh(&[], &name, "echo here").ok().prints("here\n");
    // What nobody here has is fetched from upstream and kept.
    let fresh = node.registry().push("fresh/app", "1", fixture::busybox());
    let fourth = Node::start();
    let certs = fourth.path("certs.d").join(node.registry().address());
    std::fs::create_dir_all(&certs).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        "127.0.0.1:9", serving.address
    );
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    fourth
        .sh(&[], &fresh, "echo through")
        .ok()
        .prints("through\n");
    node.sh(&["--pull", "never"], &fresh, "echo kept")
        .ok()
        .prints("kept\n");
}
