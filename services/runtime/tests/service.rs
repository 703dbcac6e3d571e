//! The runtime service as its callers see it: real store, snapshotter, shims and containers; on the host's network, which
//! needs no network service.
#![allow(clippy::unwrap_used)]

mod support;

use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_and_tells_how_it_ended() {
    let mut node = Node::start("run").await;
    let config = node.config("one", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let (out, err, exit) = node.run(config).await;
    assert_eq!(
        (out.as_str(), err.as_str(), exit.exit_code),
        ("out\n", "err\n", 7)
    );
    let shown = node.get("one").await.unwrap();
    assert_eq!(
        (shown.exit_code, shown.image_name.as_str()),
        (7, "docker.io/library/box:latest")
    );
    assert_eq!(node.log("one").await, "out\nerr\n");
    // Again, with input; the log goes on.
    let mut config = node.config("two", &["cat"]);
    config.open_stdin = true;
    let id = node.create(config).await.unwrap();
    let typed: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    let (out, _, exit) = node.attach(&id, typed.as_bytes()).await;
    assert_eq!((out.len(), exit.exit_code), (typed.len(), 0));
    assert!(out == typed);
    let (_, _, missing) = {
        let config = node.config("three", &["no-such"]);
        node.run(config).await
    };
    assert_eq!(missing.exit_code, 127);
    assert!(missing.error.contains("no-such"), "{missing:?}");
    let error = {
        let config = node.config("one", &["true"]);
        node.create(config).await.unwrap_err()
    };
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    let mut config = node.config("four", &["true"]);
    config.image = "nothing".into();
    assert_eq!(
        node.create(config).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    let mut config = node.config("five", &["true"]);
    config.auto_remove = true;
    node.run(config).await;
    let wait = WaitRequest {
        id: "five".into(),
        removed: true,
    };
    // Gone already, or waited for.
    let _ = node.client.wait(wait).await;
    assert_eq!(
        node.get("five").await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_service_is_not_noticed() {
    let mut node = Node::start("restart").await;
    let script = "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 9";
    let config = node.config("lives", &["sh", "-c", script]);
    let id = node.create(config).await.unwrap();
    let pid = node
        .client
        .start(StartRequest { id: id.clone() })
        .await
        .unwrap()
        .into_inner()
        .pid;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        node.restart().await;
        assert_eq!(
            node.eventually("lives", gantry_proto::runtime::Status::Running)
                .await
                .pid,
            pid
        );
        assert_eq!(node.exec("lives", &["echo", "in"]).await.0, "in\n");
    }
    // It ends while nobody is there.
    assert!(node.drain.finish(Duration::from_secs(10)).await);
    std::fs::write(format!("/proc/{pid}/root/tmp/stop"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    (node.drain, node.client) = Node::serve(&node.paths, &node.parent).await;
    let ended = node
        .eventually("lives", gantry_proto::runtime::Status::Exited)
        .await;
    assert_eq!(ended.exit_code, 9);
    let log = node.log("lives").await;
    for (at, line) in log.lines().enumerate() {
        assert_eq!(line, at.to_string(), "a gap");
    }
    node.client.start(StartRequest { id }).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_kills_and_policies() {
    let mut node = Node::start("stop").await;
    let config = node.config("deaf", &["sleep", "600"]);
    node.create(config).await.unwrap();
    let start = |name: &str| StartRequest { id: name.into() };
    let stop = |name: &str, seconds| StopRequest {
        id: name.into(),
        timeout_seconds: seconds,
        signal: String::new(),
    };
    node.client.start(start("deaf")).await.unwrap();
    let began = Instant::now();
    node.client.stop(stop("deaf", None)).await.unwrap();
    assert!(seconds(began) < 3.0, "{}", seconds(began));
    assert_eq!(node.get("deaf").await.unwrap().exit_code, 137);
    let config = node.config(
        "polite",
        &[
            "sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 0.02; done",
        ],
    );
    node.create(config).await.unwrap();
    node.client.start(start("polite")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.client.stop(stop("polite", None)).await.unwrap();
    assert_eq!(node.get("polite").await.unwrap().exit_code, 3);
    let mut config = node.config("again", &["sh", "-c", "echo x; exit 1"]);
    config.restart = Some(RestartPolicy {
        name: "on-failure".into(),
        maximum_retries: 2,
    });
    node.create(config).await.unwrap();
    node.client.start(start("again")).await.unwrap();
    let give_up = Instant::now() + Duration::from_secs(20);
    while node.log("again").await != "x\nx\nx\n" {
        assert!(Instant::now() < give_up);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = node
        .eventually("again", gantry_proto::runtime::Status::Exited)
        .await;
    assert_eq!((ended.restart_count, ended.exit_code), (2, 1));
    let kill = KillRequest {
        id: "again".into(),
        signal: "TERM".into(),
    };
    assert_eq!(
        Fault::from(node.client.kill(kill).await.unwrap_err()).kind,
        ErrorKind::WrongState
    );
    node.finish().await;
}
