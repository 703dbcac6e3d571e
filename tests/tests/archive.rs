//! Images as files: `save` and `load`, with other tools on the other side; `history`, trees, prunes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use gantry_tests::command::shell;
use gantry_tests::{Image, Node, fixture};

fn skopeo(arguments: &[&str]) {
    let out = Command::new("skopeo")
        .args(["copy", "-q", "--src-tls-verify=false"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(out.status.success(), "{arguments:?}: {out:?}");
}

/// Writes a tar archive from paths and bytes.
fn archive(at: &Path, entries: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(std::fs::File::create(at).unwrap());
    for (path, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Also what the library would not let pass.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap();
}

#[test]
fn what_is_saved_is_what_was_pulled() {
    let node = Node::start();
    let registry = node.registry();
    let whole = registry.push_index("saved/whole", "1", &fixture::multi_platform());
    let single = registry.push("saved/single", "2", fixture::busybox());
    node.ctl(&["pull", "-q", "--all-platforms", &whole]).ok();
    node.ctl(&["pull", "-q", &single]).ok();
    let file = node.path("both.tar");
    let file = file.to_str().unwrap();
    node.ctl(&["save", "-o", file, &whole, &single]).ok();
    // The same images give the same bytes.
    let again = node.path("again.tar");
    node.ctl(&["save", "-o", again.to_str().unwrap(), &single, &whole])
        .ok();
    assert!(std::fs::read(file).unwrap() == std::fs::read(&again).unwrap());

    let other = Node::start();
    let loaded = other.ctl(&["load", "-i", file]).ok();
    for name in [&whole, &single] {
        let line = format!("Loaded image: {name}\n");
        assert!(loaded.stdout.contains(&line), "{loaded:?}");
        other
            .ctl(&["run", "--rm", "--pull", "never", name, "echo", "here"])
            .ok()
            .prints("here\n");
    }
    let digests = |node: &Node| {
        node.ctl(&["images", "--format", "{{.Repository}} {{.Digest}} {{.ID}}"])
            .ok()
            .stdout
    };
    assert_eq!(digests(&node), digests(&other));
    let tree = other.ctl(&["images", "--tree"]).ok().stdout;
    assert!(
        tree.contains("linux/amd64") && tree.contains("linux/arm64"),
        "{tree}"
    );
    assert!(!tree.contains("not here"), "{tree}");

    // One platform alone, through a pipe and compressed.
    let gz = node.path("one.tar.gz");
    let ctl = gantry_tests::bin("ctl");
    let (from, to) = (node.path("run"), gz.display());
    shell(&format!(
        "{} -H {} save --platform linux/arm64 {whole} | gzip -1 >{to}",
        ctl.display(),
        from.display()
    ));
    let third = Node::start();
    shell(&format!(
        "{} -H {} load <{to}",
        ctl.display(),
        third.path("run").display()
    ));
    let seen = third.ctl(&["images", "--tree"]).ok().stdout;
    assert!(
        seen.contains("linux/arm64") && !seen.contains("amd64"),
        "{seen}"
    );
    node.ctl(&["save", "--platform", "linux/riscv64", "-o", file, &whole])
        .code(1)
        .complains(&["riscv64"]);
    // A failure leaves the old file.
    assert!(std::fs::read(file).unwrap() == std::fs::read(&again).unwrap());
}

#[test]
fn other_tools_read_and_write_the_same_archives() {
    let node = Node::start();
    let layers = &fixture::busybox().layers;
    // Without the zstd layer, which docker's older form has no word for.
    let image = Image::new(vec![layers[0].clone(), layers[2].clone()]);
    let name = node.registry().push("plain", "1", &image);
    node.ctl(&["pull", "-q", &name]).ok();
    let at = |name: &str| node.path(name).to_str().unwrap().to_owned();
    node.ctl(&["save", "-o", &at("ours.tar"), &name]).ok();
    let config = image.config().digest;
    let manifest = image.manifest().digest;
    // As a docker archive and as an OCI layout.
    skopeo(&[
        &format!("docker-archive:{}", at("ours.tar")),
        &format!("dir:{}", at("as-docker")),
    ]);
    skopeo(&[
        "--preserve-digests",
        &format!("oci-archive:{}", at("ours.tar")),
        &format!("oci:{}:x", at("as-oci")),
    ]);
    let index = std::fs::read_to_string(node.path("as-oci/index.json")).unwrap();
    assert!(index.contains(&manifest), "{index}");

    let other = Node::start();
    // Docker's older form: a layer a file, links, no manifest of its own.
    skopeo(&[
        &format!("docker://{name}"),
        &format!("docker-archive:{}:theirs/old:1", at("old.tar")),
    ]);
    other
        .ctl(&["load", "-i", &at("old.tar")])
        .ok()
        .prints("Loaded image: theirs/old:1\n");
    other
        .sh(
            &["--pull", "never"],
            "theirs/old:1",
            "cat /etc/motd; ls /opt/full",
        )
        .ok()
        .prints("first\nnew\n");
    let ids = other.ctl(&["images", "--no-trunc", "-q"]).ok();
    ids.prints(&format!("{config}\n"));

    // A layout that names nothing is kept by its id.
    skopeo(&[
        &format!("docker://{name}"),
        &format!("oci-archive:{}", at("nameless.tar")),
    ]);
    let third = Node::start();
    third
        .ctl(&["load", "-i", &at("nameless.tar")])
        .ok()
        .prints(&format!("Loaded image ID: {config}\n"));
    let short = &config["sha256:".len()..][..12];
    third
        .ctl(&["run", "--rm", short, "echo", "by id"])
        .ok()
        .prints("by id\n");
    third
        .ctl(&[
            "images",
            "--filter",
            "dangling=true",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.ID}}",
        ])
        .ok()
        .prints(&format!("<none>:<none> {short}\n"));
    third.ctl(&["tag", short, "named:now"]).ok();
    third.ctl(&["image", "prune", "-f"]).ok();
    third
        .ctl(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .ok()
        .prints("named:now\n");
}

#[test]
fn hostile_archives_leave_nothing() {
    let (node, name) = Node::with_busybox();
    node.ctl(&["save", "-o", node.path("good.tar").to_str().unwrap(), &name])
        .ok();
    let good = std::fs::read(node.path("good.tar")).unwrap();
    let zeros = "0".repeat(64);
    let blob = format!("blobs/sha256/{zeros}");
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{zeros}","size":2,"annotations":{{"io.containerd.image.name":"docker.io/library/evil:1"}}}}]}}"#
    );
    let other = Node::start();
    let refuse = |name: &str, words: &[&str]| {
        let at = node.path(name);
        other
            .ctl(&["load", "-i", at.to_str().unwrap()])
            .code(1)
            .complains(words);
        other.ctl(&["images", "-q"]).ok().prints("");
    };
    let make = |name: &str, entries: &[(&str, &[u8])]| archive(&node.path(name), entries);
    make("up.tar", &[("../../escape.json", b"{}")]);
    refuse("up.tar", &["../../escape.json", "leaves the archive"]);
    make("absolute.tar", &[("/etc/escape.json", b"{}")]);
    refuse("absolute.tar", &["absolute"]);
    make(
        "wrong.tar",
        &[(&blob, b"{}"), ("index.json", index.as_bytes())],
    );
    refuse("wrong.tar", &[&blob, "digest"]);
    make("missing.tar", &[("index.json", index.as_bytes())]);
    refuse("missing.tar", &["not whole"]);
    make("nothing.tar", &[("readme.txt", b"hello")]);
    refuse("nothing.tar", &["names no image"]);
    make(
        "docker.tar",
        &[(
            "manifest.json",
            br#"[{"Config":"a.json","RepoTags":["evil:1"],"Layers":["l.tar"]}]"#,
        )],
    );
    refuse("docker.tar", &["a.json", "not there"]);
    make("huge.tar", &[("index.json", &vec![b' '; 5 << 20])]);
    refuse("huge.tar", &["index.json", "4 MiB"]);
    std::fs::write(node.path("half.tar"), &good[..good.len() / 2]).unwrap();
    refuse("half.tar", &["archive"]);
    std::fs::write(
        node.path("text.tar"),
        "this is no archive at all\n".repeat(100),
    )
    .unwrap();
    refuse("text.tar", &["no tar archive"]);
    std::fs::write(node.path("empty.tar"), "").unwrap();
    refuse("empty.tar", &["empty"]);
    assert!(!Path::new("/etc/escape.json").exists());
    assert!(gantry_tests::clean::traces(&other.path("root/store/ingest"), "").is_empty());
    // What came in before the fault is reclaimed at once when asked for.
    other.ctl(&["gc"]).ok();
    assert!(
        gantry_tests::clean::traces(&other.path("root/store/blobs"), "")
            .iter()
            .all(|at| at.ends_with("sha256") || at.ends_with("sha512"))
    );
}

#[test]
fn history_and_filters_tell_what_is_there() {
    let node = Node::start();
    let image = fixture::busybox().clone();
    let name = node.registry().push("told", "1", &image);
    node.ctl(&["pull", "-q", &name]).ok();
    node.ctl(&["tag", &name, "other:1"]).ok();
    let listed = |filter: &str| {
        node.ctl(&["images", "--filter", filter, "--format", "{{.Repository}}"])
            .ok()
            .stdout
    };
    assert_eq!(listed("reference=oth*"), "other\n");
    assert_eq!(listed("dangling=true"), "");
    assert_eq!(
        listed(&format!("digest={}", image.manifest().digest))
            .lines()
            .count(),
        2
    );
    assert_eq!(listed("label=none"), "");
    node.ctl(&["images", "--filter", "colour=red"])
        .code(1)
        .complains(&["colour=red", "reference=PATTERN"]);
    node.ctl(&["history", "-q", &name]).ok();
    node.ctl(&["history", "none"])
        .code(1)
        .complains(&["no such image"]);
    // Used by a container: kept by a prune of everything.
    node.ctl(&["create", "--name", "user", "other:1"]).ok();
    node.ctl(&["image", "prune", "-a", "-f"]).ok();
    assert_eq!(listed("dangling=false").lines().count(), 2);
    node.ctl(&["rm", "user"]).ok();
    let out = node.ctl(&["image", "prune", "-a", "-f"]).ok();
    assert!(out.stdout.contains("untagged: other:1"), "{out:?}");
    assert!(!out.stdout.contains("space: 0B"), "{out:?}");
    assert_eq!(listed("dangling=false"), "");
}
