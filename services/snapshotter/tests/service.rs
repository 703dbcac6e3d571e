//! The snapshotter as its callers see it: real sockets, a real store, real overlay mounts.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;

use support::*;

#[tokio::test]
async fn layers_are_one_tree() {
    let mut node = Node::start().await;
    let base = tar(&[
        ("./", b'5', 0o711, ""),
        ("etc/", b'5', 0o700, ""),
        ("etc/gone", b'0', 0o644, "old"),
        ("etc/kept", b'0', 0o4755, "kept"),
        ("etc/link", b'1', 0o644, "etc/kept"),
        ("replaced/", b'5', 0o755, ""),
        ("replaced/old", b'0', 0o644, "old"),
        ("way", b'2', 0o777, "etc"),
        ("pipe", b'6', 0o600, ""),
    ]);
    let top = tar(&[
        ("etc/.wh.gone", b'0', 0, ""),
        ("etc/new", b'0', 0o640, "new"),
        ("replaced/.wh..wh..opq", b'0', 0, ""),
        ("replaced/new", b'0', 0o644, "new"),
    ]);
    let (base, top) = (
        node.layer(&base).await.unwrap(),
        node.layer(&top).await.unwrap(),
    );
    let snapshot = node.prepare("one", &[&base, &top]).await.unwrap();
    let view = View::of(&snapshot);
    assert!(!view.has("etc/gone") && !view.has("replaced/old"));
    assert_eq!(
        (view.read("etc/new"), view.read("replaced/new")),
        ("new".into(), "new".into())
    );
    // The upper layer did not describe these; what the lower one said holds.
    assert_eq!((view.mode("etc"), view.mode(".")), (0o700, 0o711));
    assert_eq!(view.mode("etc/kept"), 0o4755);
    let kept = std::fs::metadata(view.path("etc/kept")).unwrap();
    assert_eq!(
        (kept.nlink(), kept.uid(), kept.mtime()),
        (2, 7, 1_600_000_000)
    );
    assert_eq!(
        std::fs::metadata(view.path("etc")).unwrap().mtime(),
        1_600_000_000
    );
    assert!(
        std::fs::symlink_metadata(view.path("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    std::fs::write(view.path("etc/own"), "own").unwrap();
    assert_eq!(
        std::fs::read_to_string(node.data("snapshots/one/upper/etc/own")).unwrap(),
        "own"
    );
    // A repeat finds it; other layers under the same key are an error; a view cannot be written.
    assert_eq!(
        node.prepare("one", &[&base, &top]).await.unwrap().mounts,
        snapshot.mounts
    );
    assert_eq!(
        node.prepare("one", &[&base]).await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );
    let view = node
        .client
        .view(request("view", &[&base, &top]))
        .await
        .unwrap()
        .into_inner();
    assert!(View::of(&view).has("etc/new"));
    assert!(
        view.mounts[0]
            .options
            .iter()
            .all(|option| !option.starts_with("upperdir"))
    );
}

#[tokio::test]
async fn changes_become_a_layer_that_unpacks_to_the_same() {
    let mut node = Node::start().await;
    let base = node
        .layer(&tar(&[
            ("dir/", b'5', 0o750, ""),
            ("dir/file", b'0', 0o644, "old"),
            ("gone", b'0', 0o644, "x"),
        ]))
        .await
        .unwrap();
    let before = node.prepare("before", &[&base]).await.unwrap();
    let view = View::of(&before);
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    std::fs::create_dir(view.path(&"d".repeat(90))).unwrap();
    std::fs::write(view.path(&long), "long").unwrap();
    std::fs::hard_link(view.path(&long), view.path("second")).unwrap();
    std::fs::remove_file(view.path("gone")).unwrap();
    std::fs::remove_dir_all(view.path("dir")).unwrap();
    std::fs::create_dir(view.path("dir")).unwrap();
    std::fs::write(view.path("dir/other"), "other").unwrap();
    let odd = std::ffi::OsStr::new("user.odd");
    let second = gantry_sys::tree::open_dir(&view.path(".")).unwrap();
    gantry_sys::tree::set_xattr_at(&second, std::ffi::OsStr::new("second"), odd, b"a\nb").unwrap();
    drop(view);
    let request = CommitRequest {
        key: "before".into(),
        lease: "l".into(),
    };
    let first = node
        .client
        .commit(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = node.client.commit(request).await.unwrap().into_inner();
    assert_eq!(first, again, "the same tree packs to the same bytes");
    let after = node
        .prepare("after", &[&base, &first.diff_id])
        .await
        .unwrap();
    let view = View::of(&after);
    assert!(!view.has("gone") && !view.has("dir/file"));
    assert_eq!(
        (view.read("dir/other"), view.read(&long)),
        ("other".into(), "long".into())
    );
    assert_eq!(std::fs::metadata(view.path("second")).unwrap().nlink(), 2);
    let root = gantry_sys::tree::open_dir(&view.path(".")).unwrap();
    let value = gantry_sys::tree::xattr_at(&root, std::ffi::OsStr::new("second"), odd).unwrap();
    assert_eq!(value.unwrap(), b"a\nb");
}

#[tokio::test]
async fn nothing_leaves_the_layer() {
    let mut node = Node::start().await;
    let outside = node.home.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    let way = outside.to_string_lossy().into_owned();
    let up = format!("{}{}", "../".repeat(12), &way[1..]);
    let cases: [&[(&str, u8, u32, &str)]; 8] = [
        &[(&format!("{up}/new"), b'0', 0o644, "x")],
        &[(&format!("{way}/new"), b'0', 0o644, "x")],
        &[("way", b'2', 0o777, &way), ("way/new", b'0', 0o644, "x")],
        &[("way", b'2', 0o777, &up), ("way/new", b'0', 0o644, "x")],
        &[
            ("taken", b'1', 0o644, &format!("{way}/victim")),
            ("taken", b'0', 0o644, "x"),
        ],
        &[
            ("way", b'2', 0o777, &way),
            ("taken", b'1', 0o644, "way/victim"),
        ],
        &[("way", b'2', 0o777, &way), ("way/.wh.victim", b'0', 0, "")],
        &[
            ("way", b'2', 0o777, &way),
            ("way", b'5', 0o700, ""),
            ("way/new", b'0', 0o644, "x"),
        ],
    ];
    for case in cases {
        let _ = node.layer(&tar(case)).await;
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{case:?}");
        let victim = std::fs::metadata(outside.join("victim")).unwrap();
        assert_eq!((victim.nlink(), victim.len()), (1, 9), "{case:?}");
    }
    for marks in [&[("a/.wh...", b'0', 0, "")], &[(".wh.", b'0', 0, "")]] {
        assert_eq!(
            node.layer(&tar(marks)).await.unwrap_err().kind,
            ErrorKind::Corrupt
        );
    }
}

#[tokio::test]
async fn a_layer_is_what_its_diff_id_says_or_nothing() {
    let mut node = Node::start().await;
    let archive = tar(&[("f", b'0', 0o644, "content")]);
    let blob = node.put(&archive).await;
    let wrong = digest(b"something else");
    let error = node.ensure(&wrong, &blob).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(
        error.message.contains(&wrong) && error.message.contains(&blob),
        "{error}"
    );
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive).unwrap();
    let packed = packed.finish().unwrap();
    let cut = node.put(&packed[..packed.len() / 2]).await;
    assert_eq!(
        node.ensure(&blob, &cut).await.unwrap_err().kind,
        ErrorKind::Corrupt
    );
    assert_eq!(std::fs::read_dir(node.data("layers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(node.data("new")).unwrap().count(), 0);
    // Now the right ones, both packings, asked for at once.
    let gz = node.put(&packed).await;
    let zst = node
        .put(&zstd::encode_all(archive.as_slice(), 3).unwrap())
        .await;
    let mut other = Node {
        client: node.client.clone(),
        store: node.store.clone(),
        home: tempfile::tempdir().unwrap(),
        drain: Drain::new(),
    };
    let (one, two) = tokio::join!(node.ensure(&blob, &gz), other.ensure(&blob, &zst));
    assert_eq!(one.unwrap().diff_id, two.unwrap().diff_id);
    assert_eq!(std::fs::read_dir(node.data("layers")).unwrap().count(), 1);
}

#[tokio::test]
async fn volumes_are_seeded_once_and_kept_while_used() {
    let mut node = Node::start().await;
    let layer = node
        .layer(&tar(&[
            ("seed/", b'5', 0o751, ""),
            ("seed/file", b'0', 0o640, "seeded"),
        ]))
        .await
        .unwrap();
    node.prepare("box", &[&layer]).await.unwrap();
    let volume = node.volume("data", "box").await;
    assert!(node.seed("data", "box", "/seed").await);
    assert!(!node.seed("data", "box", "/seed").await);
    let path = PathBuf::from(&volume.path);
    assert_eq!(
        std::fs::read_to_string(path.join("file")).unwrap(),
        "seeded"
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o751
    );
    let remove = RemoveVolumeRequest {
        name: "data".into(),
    };
    let error = Fault::from(node.client.remove_volume(remove.clone()).await.unwrap_err());
    assert_eq!(error.kind, ErrorKind::WrongState);
    assert!(error.message.contains("box"), "{error}");
    let mut node = node.restart().await;
    let found = node
        .client
        .get_volume(GetVolumeRequest {
            name: "data".into(),
        })
        .await
        .unwrap();
    assert_eq!(found.into_inner().users, ["box"]);
    node.client
        .remove(RemoveRequest { key: "box".into() })
        .await
        .unwrap();
    node.client
        .remove(RemoveRequest { key: "box".into() })
        .await
        .unwrap();
    node.client.remove_volume(remove).await.unwrap();
    assert!(!path.exists());
    let anonymous = node.volume("", "").await;
    assert!(anonymous.anonymous && anonymous.name.len() == 64);
    let bad = CreateVolumeRequest {
        name: "../up".into(),
        ..Default::default()
    };
    assert_eq!(
        Fault::from(node.client.create_volume(bad).await.unwrap_err()).kind,
        ErrorKind::InvalidArgument
    );
}

#[tokio::test]
async fn what_was_cut_off_is_cleaned_and_what_is_unused_collected() {
    let mut node = Node::start().await;
    let layer = node.layer(&tar(&[("f", b'0', 0o644, "x")])).await.unwrap();
    node.prepare("used", &[&layer]).await.unwrap();
    node.prepare("leaked", &[&layer]).await.unwrap();
    for half in [
        "new/half",
        "layers/sha256-half",
        "snapshots/half",
        "volumes/half",
        "trash/half",
    ] {
        std::fs::create_dir_all(node.data(half).join("in")).unwrap();
    }
    let mut node = node.restart().await;
    let sync = SyncSnapshotsRequest {
        holder: "test".into(),
        keys: vec!["used".into()],
    };
    assert_eq!(
        node.client
            .sync_snapshots(sync)
            .await
            .unwrap()
            .into_inner()
            .removed,
        ["leaked"]
    );
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(node.data("trash")).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < deadline, "the trash stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for half in [
        "new/half",
        "layers/sha256-half",
        "snapshots/half",
        "volumes/half",
    ] {
        assert!(!node.data(half).exists(), "{half}");
    }
    // The blob is held and a snapshot uses the layer: it stays until neither is so.
    let collect = || CollectGarbageRequest {};
    assert!(
        node.client
            .collect_garbage(collect())
            .await
            .unwrap()
            .into_inner()
            .removed_layers
            .is_empty()
    );
    node.client
        .remove(RemoveRequest { key: "used".into() })
        .await
        .unwrap();
    assert!(
        node.client
            .collect_garbage(collect())
            .await
            .unwrap()
            .into_inner()
            .removed_layers
            .is_empty()
    );
}
