//! Registries both ways: pushes, credentials, own authorities, mirrors, policies.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use gantry_tests::http::{Reply, Server, request};
use gantry_tests::{Compression, Image, Layer, Node, Registry, fixture};

fn digest_at(address: &str, name: &str, tag: &str) -> String {
    let accept = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let path = format!("/v2/{name}/manifests/{tag}");
    let answer = request("GET", address, &path, &[accept.into()], b"").unwrap();
    assert_eq!(answer.status, 200, "{path}");
    gantry_tests::image::digest(&answer.body)
}

#[test]
fn a_whole_index_goes_round_byte_for_byte() {
    let node = Node::start();
    let registry = node.registry();
    let name = registry.push_index("whole", "1", &fixture::multi_platform());
    node.ctl(&["pull", "-q", "--all-platforms", &name]).ok();
    let again = format!("{}/copied/whole:2", registry.address());
    let out = node.ctl(&["push", &name, &again]).ok();
    let digest = digest_at(registry.address(), "whole", "1");
    assert_eq!(digest_at(registry.address(), "copied/whole", "2"), digest);
    assert_eq!(
        out.stdout,
        format!("{}/copied/whole@{digest}\n", registry.address())
    );
    // What the registry has is neither sent nor mounted again.
    let out = node.ctl(&["push", &name, &again]).ok();
    assert!(out.stderr.contains("Layer already exists"), "{out:?}");
    assert!(!out.stderr.contains("Pushed"), "{out:?}");
    assert!(!out.stderr.contains("Mounted"), "{out:?}");
    // Another node finds it whole.
    let other = Node::start();
    other
        .ctl(&["run", "--rm", &again, "echo", "here"])
        .ok()
        .prints("here\n");
}

#[test]
fn layers_are_taken_over_from_another_repository() {
    let (node, name) = Node::with_busybox();
    let registry = Registry::start();
    let first = format!("{}/first/app:1", registry.address());
    let out = node.ctl(&["push", &name, &first]).ok();
    assert!(out.stderr.contains("Pushed"), "{out:?}");
    node.ctl(&["tag", &name, &first]).ok();
    let second = format!("{}/second/app:1", registry.address());
    node.ctl(&["tag", &name, &second]).ok();
    let out = node.ctl(&["push", &second]).ok();
    assert!(out.stderr.contains("Mounted from first/app"), "{out:?}");
    assert!(!out.stderr.contains("Pushed"), "{out:?}");
    let manifest = fixture::busybox().manifest();
    assert_eq!(
        digest_at(registry.address(), "second/app", "1"),
        manifest.digest
    );
}

#[test]
fn half_an_index_is_said_to_be_half() {
    let node = Node::start();
    let registry = node.registry();
    let name = registry.push_index("half", "1", &fixture::multi_platform());
    node.ctl(&["pull", "-q", &name]).ok();
    let target = Registry::start();
    let there = format!("{}/half:1", target.address());
    node.ctl(&["push", "--all-platforms", &name, &there])
        .code(1)
        .complains(&["not here", "--all-platforms"]);
    let out = node.ctl(&["push", &name, &there]).ok();
    assert!(out.stderr.contains("without the index"), "{out:?}");
    let other = Node::start();
    other
        .ctl(&["run", "--rm", &there, "echo", "one"])
        .ok()
        .prints("one\n");
    node.ctl(&["push", "--platform", "linux/riscv64", &name, &there])
        .code(1)
        .complains(&["riscv64"]);
    node.ctl(&["push", "no-such-image"])
        .code(1)
        .complains(&["no-such-image"]);
}

#[test]
fn a_registry_with_its_own_authority_and_users() {
    let (node, name) = Node::with_busybox();
    let registry = Registry::guarded();
    let there = format!("{}/private:1", registry.address());
    // Unknown authority first: nothing is sent to it.
    let login = [
        "login",
        "-u",
        "alice",
        "--password-stdin",
        registry.address(),
    ];
    node.ctl_with_stdin(&login, b"secret").code(1);
    let certs = node.path("certs.d").join(registry.address());
    std::fs::create_dir_all(&certs).unwrap();
    let server = format!(
        "server = \"https://{}\"\nca = {:?}\n",
        registry.address(),
        registry.home().join("ca.crt")
    );
    std::fs::write(certs.join("hosts.toml"), server).unwrap();
    node.ctl(&["push", &name, &there])
        .code(1)
        .complains(&["refuses access"]);
    node.ctl_with_stdin(&login, b"wrong")
        .code(1)
        .complains(&["refuses access"]);
    assert!(!node.path("docker/config.json").exists());
    node.ctl_with_stdin(&login, b"secret\n")
        .ok()
        .prints("Login Succeeded\n");
    let text = std::fs::read_to_string(node.path("docker/config.json")).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let mode = std::fs::metadata(node.path("docker/config.json")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    node.ctl(&["push", &name, &there]).ok();
    node.ctl(&["image", "tags", &there]).ok().prints("1\n");
    node.ctl(&["rmi", "-f", &there]);
    node.ctl(&["run", "--rm", "--pull", "always", &there, "echo", "in"])
        .ok()
        .prints("in\n");
    node.ctl(&["logout", registry.address()]).ok();
    node.ctl(&["pull", "-q", &there])
        .code(1)
        .complains(&["refuses access"]);
    let out = node.ctl(&["logout", registry.address()]).ok();
    assert!(out.stderr.contains("Not logged in"), "{out:?}");
}

#[test]
fn mirrors_stand_in_for_a_registry() {
    let node = Node::start();
    let registry = node.registry();
    let name = registry.push("mirrored/app", "1", fixture::busybox());
    let dead = Server::start(BTreeMap::from([(
        "/v2/mirrored/app/manifests/1?ns=gone.invalid".to_owned(),
        Reply::Status(500),
    )]));
    let certs = node.path("certs.d/gone.invalid");
    std::fs::create_dir_all(&certs).unwrap();
    let hosts = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        dead.address(),
        registry.address()
    );
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    node.ctl(&[
        "run",
        "--rm",
        "gone.invalid/mirrored/app:1",
        "echo",
        "mirrored",
    ])
    .ok()
    .prints("mirrored\n");
    let asked: Vec<String> = dead.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/v2/mirrored/app/manifests/1?ns=gone.invalid"]);
    // The name is the registry's, not the mirror's.
    let listed = node.ctl(&["images", "--format", "{{.Repository}}"]).ok();
    listed.prints("gone.invalid/mirrored/app\n");

    let conf = format!(
        "[[registry]]\nprefix = \"moved.invalid/old\"\nlocation = \"{}/mirrored\"\n[[registry]]\nlocation = \"bad.invalid\"\nblocked = true\n[aliases]\nshorty = \"{}\"\n",
        registry.address(),
        name.trim_end_matches(":1"),
    );
    std::fs::write(node.path("registries.conf"), conf).unwrap();
    node.ctl(&["run", "--rm", "moved.invalid/old/app:1", "echo", "moved"])
        .ok()
        .prints("moved\n");
    node.ctl(&["pull", "bad.invalid/x"]).code(1).complains(&[
        "blocks",
        "registries.conf",
        "bad.invalid",
    ]);
    node.ctl(&["run", "--rm", "shorty:1", "echo", "short"])
        .ok()
        .prints("short\n");
    std::fs::write(node.path("registries.conf"), "[[registry]").unwrap();
    node.ctl(&["pull", &name])
        .code(1)
        .complains(&["registries.conf"]);
}

#[test]
fn policies_say_when_the_registry_is_asked() {
    let node = Node::start();
    let registry = Registry::start();
    let name = registry.push("asked", "1", fixture::busybox());
    node.ctl(&["pull", "-q", "--policy", "never", &name])
        .code(1)
        .complains(&["no such image here"]);
    node.ctl(&["pull", "-q", "--policy", "missing", &name]).ok();
    let mut changed = fixture::busybox().clone();
    changed
        .layers
        .push(Layer::new().file("new", 0o644, b"new").gzip());
    registry.push("asked", "1", &changed);
    node.ctl(&["pull", "-q", "--policy", "missing", &name]).ok();
    node.sh(&["--pull", "never"], &name, "cat /new").code(1);
    node.sh(&["--pull", "newer"], &name, "cat /new")
        .ok()
        .prints("new");
    drop(registry);
    node.sh(&["--pull", "newer"], &name, "cat /new")
        .ok()
        .prints("new");
    node.sh(&["--pull", "always"], &name, "cat /new").code(125);
}

#[test]
fn a_large_layer_comes_and_goes_in_pieces() {
    let node = Node::start();
    let mut bytes = vec![0u8; 70 << 20];
    let mut state = 1u64;
    for chunk in bytes.chunks_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let digest = gantry_tests::image::digest(&bytes);
    let mut image = Image::new(fixture::busybox().layers.clone());
    image.layers.push(
        Layer::new()
            .file("large", 0o644, &bytes)
            .pack(Compression::None),
    );
    let name = node.registry().push("large", "1", &image);
    let sum = format!("{}  /large\n", digest.trim_start_matches("sha256:"));
    node.sh(&[], &name, "sha256sum /large").ok().prints(&sum);
    let target = Registry::start();
    let there = format!("{}/large:1", target.address());
    node.ctl(&["push", "-q", &name, &there]).ok();
    let other = Node::start();
    other.sh(&[], &there, "sha256sum /large").ok().prints(&sum);
}

#[test]
fn what_refers_to_an_image_is_listed() {
    let node = Node::start();
    let registry = node.registry();
    let name = registry.push("referred", "1", fixture::busybox());
    let subject = fixture::busybox().manifest();
    let referrer = format!("sha256:{}", "b".repeat(64));
    // docker-registry has no referrers API: the fallback tag is a plain index.
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": referrer, "size": 7, "artifactType": "application/spdx+json",
            "annotations": {"made": "by tests"}
        }],
    });
    let replies = BTreeMap::from([(
        format!("/v2/referred/referrers/{}", subject.digest),
        Reply::Bytes {
            kind: "application/vnd.oci.image.index.v1+json".into(),
            body: index.to_string().into_bytes(),
        },
    )]);
    let server = Server::start(replies);
    let pinned = format!("{}/referred@{}", server.address(), subject.digest);
    node.ctl(&[
        "image",
        "referrers",
        "--format",
        "{{.Digest}} {{.ArtifactType}}",
        &pinned,
    ])
    .ok()
    .prints(&format!("{referrer} application/spdx+json\n"));
    node.ctl(&["image", "referrers", "-q", "--type", "other", &pinned])
        .ok()
        .prints("");
    node.ctl(&["image", "referrers", "-q", &name])
        .ok()
        .prints("");
}
