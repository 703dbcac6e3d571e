//! The two base images: a tiny one from Debian's busybox-static, and a real Debian by debootstrap.
//!
//! Invariants: both are made once (the Debian one a checkout, under target/fixtures) and are the same for every test.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use crate::image::{Blob, Compression, Image, Index, Layer, host_architecture, pack};
use crate::workspace;

/// Lines of /etc/passwd in both layers of the busybox image.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nalice:x:1000:\naudio:x:29:alice\nvideo:x:44:\n";

/// Three layers: the base, one that changes, hides and adds, and one with a directory made opaque.
pub fn busybox() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::new(busybox_layers()))
}

fn busybox_layers() -> Vec<Blob> {
    let path = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .expect("busybox is missing (apt-get install busybox-static)");
    let listed = Command::new(path).arg("--list").output().unwrap();
    let applets = String::from_utf8(listed.stdout).unwrap();
    let mut base = Layer::new();
    for (dir, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o755),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("var/", 0o755),
        ("var/lib/", 0o755),
        ("root/", 0o700),
        ("seed/", 0o751),
    ] {
        base = base.dir(dir, mode);
    }
    base = base
        .file("bin/busybox", 0o755, &std::fs::read(path).unwrap())
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("etc/motd", 0o644, b"first\n")
        .file("etc/hidden", 0o644, b"hidden\n")
        .file("etc/not-executable", 0o644, b"#!/bin/sh\n")
        .file("seed/file", 0o640, b"seeded\n");
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let base =
        base.owner(1000, 1000)
            .dir("home/alice/", 0o700)
            .file("home/alice/own", 0o600, b"alice\n");
    let changes = Layer::new()
        .dir("etc/", 0o755)
        .file("etc/motd", 0o644, b"second\n")
        .whiteout("etc/hidden")
        .dir("opt/", 0o755)
        .dir("opt/full/", 0o755)
        .file("opt/full/old", 0o644, b"old\n");
    let opaque = Layer::new()
        .dir("opt/", 0o755)
        .dir("opt/full/", 0o755)
        .opaque("opt/full")
        .file("opt/full/new", 0o644, b"new\n");
    vec![
        base.gzip(),
        changes.pack(Compression::Zstd),
        opaque.pack(Compression::None),
    ]
}

/// An index whose wrong members cannot run here: arm (or amd64) first, then this machine.
pub fn multi_platform() -> Index {
    let other = if host_architecture() == "amd64" {
        ("arm64", "v8")
    } else {
        ("amd64", "")
    };
    let mut foreign = Image::new(vec![
        Layer::new()
            .file("foreign", 0o644, other.0.as_bytes())
            .gzip(),
    ]);
    foreign.architecture = other.0.into();
    let mut platform = json!({"os": "linux", "architecture": other.0});
    if !other.1.is_empty() {
        platform["variant"] = json!(other.1);
    }
    let attestation = Image::new(vec![Layer::new().file("statement", 0o644, b"{}").gzip()]);
    Index {
        images: vec![
            (foreign, platform),
            (
                attestation,
                json!({"os": "unknown", "architecture": "unknown"}),
            ),
            (
                busybox().clone(),
                json!({"os": "linux", "architecture": host_architecture()}),
            ),
        ],
    }
}

/// Debian (minbase, with python3) and a layer of everything that a file system can hold on top.
///
/// # Panics
/// When debootstrap fails, with its words.
pub fn debian() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dir = workspace().join("target/fixtures");
        std::fs::create_dir_all(&dir).unwrap();
        // Several test programs may want it at once; the first makes it.
        let lock = File::create(dir.join("debian.lock")).unwrap();
        lock.lock().unwrap();
        let tar = dir.join("debian.tar");
        if !tar.exists() {
            bootstrap(&dir, &tar);
        }
        Image::new(vec![
            pack(&std::fs::read(&tar).unwrap(), Compression::Gzip),
            varied_layer(),
            Layer::new()
                .dir("etc/", 0o755)
                .whiteout("etc/issue.net")
                .dir("srv/", 0o755)
                .dir("srv/replaced/", 0o700)
                .opaque("srv/replaced")
                .file("srv/replaced/new", 0o600, b"new\n")
                .gzip(),
        ])
    })
}

fn varied_layer() -> Blob {
    // A version 2 file capability, cap_net_raw+ep, as setcap writes it.
    let capability = [
        1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    Layer::new()
        .dir("etc/", 0o755)
        .file("etc/hosts", 0o644, b"")
        .file("etc/resolv.conf", 0o644, b"")
        .file("etc/hostname", 0o644, b"image\n")
        .dir("srv/", 0o755)
        .dir("srv/replaced/", 0o755)
        .file("srv/replaced/old", 0o644, b"old\n")
        .file("srv/first", 0o644, b"linked\n")
        .hardlink("srv/second", "srv/first")
        .symlink("srv/dangling", "../nowhere")
        .symlink("srv/absolute", "/etc/passwd")
        .file("srv/setuid", 0o4755, b"x")
        .file("srv/setgid", 0o2755, b"x")
        .file("srv/unreadable", 0o000, b"secret\n")
        .dir("srv/sticky/", 0o1777)
        .entry("srv/fifo", tar::EntryType::Fifo, 0o640, "", b"")
        .file_with_xattrs(
            "srv/capable",
            0o755,
            b"x",
            &[("security.capability", &capability)],
        )
        .file_with_xattrs("srv/noted", 0o644, b"x", &[("user.note", b"a\0b\n")])
        .owner(12345, 54321)
        .file("srv/owned", 0o644, b"mine\n")
        .owner(0, 0)
        .file("srv/big", 0o644, &vec![b'x'; 3 << 20])
        .gzip()
}

fn bootstrap(dir: &Path, tar: &Path) {
    println!("making the Debian image with debootstrap (once a checkout)");
    let work = tempfile::tempdir_in(dir).unwrap();
    let root = work.path().join("root");
    let suite = "bookworm";
    let mirror = "http://deb.debian.org/debian";
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{command:?}: {text}");
    };
    run(Command::new("debootstrap")
        .args(["--variant=minbase", "--include=python3", suite])
        .arg(&root)
        .arg(mirror));
    for leftover in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let _ = std::fs::remove_dir_all(root.join(leftover));
        std::fs::create_dir_all(root.join(leftover).join("partial")).unwrap();
    }
    let part = dir.join("debian.tar.part");
    run(Command::new("tar")
        .args(["--numeric-owner", "--one-file-system", "--sort=name"])
        .args([
            "--format=pax",
            "--pax-option=delete=atime,delete=ctime",
            "--xattrs",
        ])
        // Device nodes of the builder are not part of an image.
        .args(["--exclude=./dev/*", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&part)
        .arg("."));
    std::fs::rename(&part, tar).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_is_whole() {
        let image = busybox();
        assert_eq!(image.layers.len(), 3);
        let dir = tempfile::tempdir().unwrap();
        image.write_layout(dir.path(), "latest");
        assert!(dir.path().join("oci-layout").is_file());
    }
}
