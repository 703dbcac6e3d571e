//! Images and registries that mean harm: each gets a clear error or is harmless, memory stays bounded, and the engine
//! is well and empty afterwards.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_tests::http::{Reply, Server};
use gantry_tests::image::Blob;
use gantry_tests::{Image, Layer, Node, clean, fixture};

fn serve(image: &Image) -> BTreeMap<String, Reply> {
    let manifest = image.manifest();
    let mut replies = BTreeMap::new();
    for reference in ["1", manifest.digest.as_str()] {
        let reply = Reply::Bytes {
            kind: manifest.media_type.clone(),
            body: manifest.bytes.clone(),
        };
        replies.insert(format!("/v2/evil/manifests/{reference}"), reply);
    }
    for blob in image.layers.iter().chain([&image.config()]) {
        let reply = Reply::Bytes {
            kind: "application/octet-stream".into(),
            body: blob.bytes.clone(),
        };
        replies.insert(blob_path(blob), reply);
    }
    replies
}

fn blob_path(blob: &Blob) -> String {
    format!("/v2/evil/blobs/{}", blob.digest)
}

/// A node whose log may say that a pull failed.
fn wary() -> Node {
    let node = Node::start();
    node.expect_log(&["pull", "layer", "blob", "registry", "manifest"]);
    node
}

fn still_well(node: &Node) {
    let name = node.registry().push("well", "1", fixture::busybox());
    node.ctl(&["run", "--rm", &name, "echo", "well"])
        .ok()
        .prints("well\n");
}

fn with_layer(layer: Blob) -> Image {
    let mut image = fixture::busybox().clone();
    image.layers.push(layer);
    image
}

/// The engine may refuse the image or keep the entry inside; it may never touch the host.
#[test]
fn layers_never_write_outside() {
    let node = wary();
    let registry = node.registry();
    let outside = node.path("outside");
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    let victim = outside.to_string_lossy().into_owned();
    let up = "../".repeat(12);
    let link = tar_link();
    let cases = [
        (
            "dotdot",
            Layer::new().file(&format!("{up}tmp/gantry-escape"), 0o644, b"x"),
        ),
        (
            "absolute",
            Layer::new().file("/tmp/gantry-escape", 0o644, b"x"),
        ),
        (
            "symlink",
            Layer::new()
                .symlink("way", "/tmp")
                .file("way/gantry-escape", 0o644, b"x"),
        ),
        (
            "relative-symlink",
            Layer::new()
                .symlink("way", &format!("{up}tmp"))
                .file("way/gantry-escape", 0o644, b"x"),
        ),
        (
            "hardlink",
            Layer::new()
                .entry("taken", link, 0o644, &format!("{victim}/victim"), b"")
                .file("taken", 0o644, b"overwritten"),
        ),
        (
            "hardlink-up",
            Layer::new().entry(
                "taken",
                link,
                0o644,
                &format!("{up}{}/victim", &victim[1..]),
                b"",
            ),
        ),
        (
            "hardlink-through",
            Layer::new()
                .symlink("way", &victim)
                .entry("taken", link, 0o644, "way/victim", b""),
        ),
        (
            "whiteout-up",
            Layer::new().file(&format!("{up}{}/.wh.victim", &victim[1..]), 0o644, b""),
        ),
        ("whiteout-dots", Layer::new().file("etc/.wh...", 0o644, b"")),
        (
            "whiteout-through",
            Layer::new()
                .symlink("way", &victim)
                .file("way/.wh.victim", 0o644, b""),
        ),
        (
            "opaque-through",
            Layer::new()
                .symlink("way", &victim)
                .file("way/.wh..wh..opq", 0o644, b""),
        ),
        (
            "dir-through",
            Layer::new()
                .symlink("way", &victim)
                .dir("way", 0o700)
                .dir("way/made", 0o777),
        ),
    ];
    for (tag, layer) in cases {
        let name = registry.push("evil", tag, &with_layer(layer.gzip()));
        let pulled = node.ctl(&["pull", "-q", &name]);
        if pulled.code == 0 {
            node.ctl(&["run", "--rm", &name, "true"]);
        } else {
            assert!(
                pulled.stderr.len() > 10,
                "{tag}: an error that says nothing: {pulled:?}"
            );
        }
        assert!(
            !Path::new("/tmp/gantry-escape").exists(),
            "{tag}: wrote to the host"
        );
        let content = std::fs::read_to_string(outside.join("victim"));
        assert_eq!(
            content.ok().as_deref(),
            Some("untouched"),
            "{tag}: the host's file"
        );
        let links = std::os::unix::fs::MetadataExt::nlink(
            &std::fs::metadata(outside.join("victim")).unwrap(),
        );
        assert_eq!(links, 1, "{tag}: linked to the host's file");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{tag}");
    }
    still_well(&node);
}

fn tar_link() -> tar::EntryType {
    tar::EntryType::Link
}

#[test]
fn devices_in_a_layer_open_nothing() {
    let node = wary();
    // Kernel messages, 1:11: readable for root of the host.
    let layer = Layer::new()
        .device("kmsg", tar::EntryType::Char, 1, 11)
        .gzip();
    let name = node.registry().push("evil", "device", &with_layer(layer));
    let out = node.ctl(&["run", "--rm", &name, "head", "-c", "1", "/kmsg"]);
    assert_ne!(out.code, 0, "{out:?}");
    assert_eq!(out.stdout, "");
    still_well(&node);
}

#[test]
fn damaged_layers_are_refused() {
    let node = wary();
    let registry = node.registry();
    let honest = || Layer::new().file("f", 0o644, &[7; 5000]);
    let mut cut_gzip = honest().gzip();
    cut_gzip.bytes.truncate(cut_gzip.bytes.len() / 2);
    cut_gzip.size = cut_gzip.bytes.len() as u64;
    cut_gzip.digest = gantry_tests::image::digest(&cut_gzip.bytes);
    // A size field of eight gigabytes with nothing behind it; a pax record that claims to be endless.
    let mut huge = vec![0u8; 512];
    huge[..4].copy_from_slice(b"huge");
    huge[124..136].copy_from_slice(b"77777777777\0");
    let cases = [
        ("short-file", honest().truncated(2000)),
        ("short-gzip", cut_gzip),
        ("noise", Layer::new().raw(&[0x5a; 4096]).gzip()),
        ("huge", Layer::new().raw(&huge).gzip()),
        (
            "pax",
            Layer::new()
                .entry(
                    "p",
                    tar::EntryType::XHeader,
                    0o644,
                    "",
                    b"99999999999999999999 path=x\n",
                )
                .file("f", 0o644, b"x")
                .gzip(),
        ),
        (
            "pax-short",
            Layer::new()
                .entry("p", tar::EntryType::XHeader, 0o644, "", b"3 path=x\n")
                .file("f", 0o644, b"x")
                .gzip(),
        ),
    ];
    for (tag, layer) in cases {
        let name = registry.push("evil", tag, &with_layer(layer));
        let pulled = node.ctl(&["pull", "-q", &name]).code(1);
        assert!(
            pulled.stderr.contains("sha256:") || pulled.stderr.contains("layer"),
            "{tag}: {pulled:?}"
        );
    }
    let mut lying = fixture::busybox().clone();
    lying.diff_ids = Some(vec![
        format!("sha256:{}", "1".repeat(64));
        lying.layers.len()
    ]);
    let name = registry.push("evil", "diff-id", &lying);
    node.ctl(&["pull", "-q", &name])
        .code(1)
        .complains(&["layer"]);
    let mut few = fixture::busybox().clone();
    few.diff_ids = Some(vec![few.layers[0].diff_id.clone()]);
    let name = registry.push("evil", "few-diff-ids", &few);
    assert_ne!(node.ctl(&["run", "--rm", &name, "true"]).code, 0);
    assert_eq!(
        node.ctl(&["images", "-q"]).ok().stdout,
        "",
        "nothing half-done is listed"
    );
    still_well(&node);
}

#[test]
fn a_bomb_is_not_unpacked_in_memory() {
    let node = wary();
    // One gigabyte of zeros in one megabyte: fine on disk, as long as memory stays small.
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let file = node.path("bomb.tar");
    std::fs::write(&file, header.as_bytes()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len((1 << 30) + 512 + 1024)
        .unwrap();
    let file = file.display();
    let sum = gantry_tests::command::shell(&format!(
        "sha256sum {file} | cut -d' ' -f1; gzip -1n {file}"
    ));
    let bytes = std::fs::read(format!("{file}.gz")).unwrap();
    let layer = Blob {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        digest: gantry_tests::image::digest(&bytes),
        size: bytes.len() as u64,
        bytes,
        diff_id: format!("sha256:{}", sum.trim()),
    };
    let name = node.registry().push("evil", "bomb", &with_layer(layer));
    node.ctl(&["pull", "-q", &name]).ok();
    for pid in node.engine() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 200 << 10, "process {pid} used {kib} KiB");
    }
    node.ctl(&["run", "--rm", &name, "stat", "-c", "%s", "/zeros"])
        .ok()
        .prints("1073741824\n");
}

#[test]
fn registries_that_lie_are_caught() {
    let image = with_layer(Layer::new().file("f", 0o644, &[9; 200_000]).gzip());
    let layer = image.layers.last().unwrap().clone();
    let other = vec![1u8; layer.bytes.len()];
    let loop_a = format!("/v2/evil/blobs/{}?a", layer.digest);
    let loop_b = format!("/v2/evil/blobs/{}?b", layer.digest);
    let size = layer.bytes.len() as u64;
    let cases: Vec<(&str, Vec<(String, Reply)>)> = vec![
        (
            "other bytes",
            vec![(
                blob_path(&layer),
                Reply::Bytes {
                    kind: "x/y".into(),
                    body: other.clone(),
                },
            )],
        ),
        (
            "too few",
            vec![(
                blob_path(&layer),
                Reply::Bytes {
                    kind: "x/y".into(),
                    body: other[..100].to_vec(),
                },
            )],
        ),
        (
            "breaks off for ever",
            vec![(
                blob_path(&layer),
                Reply::Lie {
                    claimed: size,
                    body: other[..100].to_vec(),
                },
            )],
        ),
        (
            "too many",
            vec![(blob_path(&layer), Reply::Flood { claimed: 1 << 50 })],
        ),
        (
            "redirect loop",
            vec![
                (blob_path(&layer), Reply::Redirect(loop_a.clone())),
                (loop_a, Reply::Redirect(loop_b.clone())),
                (loop_b, Reply::Redirect(blob_path(&layer))),
            ],
        ),
        ("forbidden", vec![(blob_path(&layer), Reply::Status(403))]),
        (
            "manifest is noise",
            vec![(
                "/v2/evil/manifests/1".into(),
                Reply::Bytes {
                    kind: "application/vnd.oci.image.manifest.v1+json".into(),
                    body: b"{\"layers\": 3".to_vec(),
                },
            )],
        ),
        (
            "endless manifest",
            vec![(
                "/v2/evil/manifests/1".into(),
                Reply::Flood { claimed: 1 << 40 },
            )],
        ),
    ];
    for (what, lies) in cases {
        let node = wary();
        let mut replies = serve(&image);
        replies.extend(lies);
        let server = Server::start(replies);
        let began = Instant::now();
        let out = node.ctl(&["pull", "-q", &format!("{}/evil:1", server.address())]);
        assert_eq!(out.code, 1, "{what}: {out:?}");
        assert!(
            out.stderr.contains("evil") || out.stderr.contains("sha256:"),
            "{what}: the error names the image or the blob: {out:?}"
        );
        assert!(
            began.elapsed() < gantry_tests::patience(Duration::from_secs(60)),
            "{what}: took {:?}",
            began.elapsed()
        );
        assert_eq!(node.ctl(&["images", "-q"]).ok().stdout, "", "{what}");
        let hex = layer.digest.trim_start_matches("sha256:");
        let kept: Vec<_> = clean::traces(&node.path("root/store/blobs"), hex);
        assert!(
            kept.is_empty(),
            "{what}: bytes of another digest are kept as {kept:?}"
        );
        still_well(&node);
    }
}

#[test]
fn a_stalled_registry_holds_up_nobody_else() {
    let node = wary();
    let image = with_layer(Layer::new().file("f", 0o644, &[3; 100_000]).gzip());
    let layer = image.layers.last().unwrap().clone();
    let mut replies = serve(&image);
    replies.insert(blob_path(&layer), Reply::Stall { length: layer.size });
    let server = Server::start(replies);
    let mut stalled = node
        .command(&["pull", "-q", &format!("{}/evil:1", server.address())])
        .spawn()
        .unwrap();
    gantry_tests::eventually("the layer was asked for", || {
        server
            .seen()
            .iter()
            .any(|seen| seen.path == blob_path(&layer))
    });
    still_well(&node);
    assert!(
        stalled.try_wait().unwrap().is_none(),
        "the stalled pull goes on waiting"
    );
    // Who gives up leaves nothing that runs on.
    clean::signal(stalled.id().cast_signed(), "INT");
    gantry_tests::eventually("ctl ends on Ctrl-C", || {
        stalled.try_wait().unwrap().is_some()
    });
    still_well(&node);
}

#[test]
fn a_full_disk_is_an_error_and_not_an_end() {
    let node = wary();
    node.expect_log(&["space", "full"]);
    node.down();
    let root = node.path("root").display().to_string();
    gantry_tests::command::shell(&format!(
        "rm -rf {root} && mkdir {root} && mount -t tmpfs -o size=24m none {root}"
    ));
    node.up();
    let big: Vec<u8> = (0..32_000_000u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8)
        .collect();
    let image = with_layer(Layer::new().file("big", 0o644, &big).gzip());
    let name = node.registry().push("evil", "big", &image);
    let out = node.ctl(&["pull", "-q", &name]).code(1);
    assert!(out.stderr.to_lowercase().contains("space"), "{out:?}");
    gantry_tests::command::shell(&format!("mount -o remount,size=200m {root}"));
    node.ctl(&["pull", "-q", &name]).ok();
    node.ctl(&["run", "--rm", &name, "stat", "-c", "%s", "/big"])
        .ok()
        .prints("32000000\n");
    node.assert_clean();
    node.down();
    gantry_tests::command::shell(&format!("umount {root}"));
}
