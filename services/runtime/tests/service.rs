//! The runtime service as its callers see it: real store, snapshotter, shims and containers; on the host's network, which
//! needs no network service.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gantry_chassis::{Channel, Drain, Fault, Paths};
use gantry_proto::network::EndpointRequest;
use gantry_proto::network::network_server::{Network, NetworkServer};
use gantry_proto::network::*;
use gantry_proto::runtime::runtime_client::RuntimeClient;
use gantry_proto::runtime::*;
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::store::{BeginIngestRequest, CommitIngestRequest, PutImageRequest};
use gantry_proto::types::Descriptor;
use gantry_types::ErrorKind;
use sha2::Digest as _;
use tonic::{Request, Response, Status};

/// Knows no sandbox: all that containers on the host's network ask of network.
struct NoNetwork;

fn refused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl Network for NoNetwork {
    async fn detach(&self, _: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        Ok(Response::new(DetachResponse {}))
    }
    async fn sync_sandboxes(
        &self,
        _: Request<SyncSandboxesRequest>,
    ) -> Result<Response<SyncSandboxesResponse>, Status> {
        Ok(Response::new(SyncSandboxesResponse::default()))
    }
    async fn get_sandbox(
        &self,
        _: Request<GetSandboxRequest>,
    ) -> Result<Response<Sandbox>, Status> {
        Err(Status::not_found("none"))
    }
    async fn create_network(
        &self,
        _: Request<CreateNetworkRequest>,
    ) -> Result<Response<NetworkInfo>, Status> {
        refused()
    }
    async fn remove_network(
        &self,
        _: Request<RemoveNetworkRequest>,
    ) -> Result<Response<RemoveNetworkResponse>, Status> {
        refused()
    }
    async fn get_network(
        &self,
        _: Request<GetNetworkRequest>,
    ) -> Result<Response<NetworkInfo>, Status> {
        refused()
    }
    async fn list_networks(
        &self,
        _: Request<ListNetworksRequest>,
    ) -> Result<Response<ListNetworksResponse>, Status> {
        refused()
    }
    async fn attach(&self, _: Request<AttachRequest>) -> Result<Response<Sandbox>, Status> {
        refused()
    }
    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        refused()
    }
}

struct Node {
    home: tempfile::TempDir,
    paths: Paths,
    peers: Drain,
    drain: Drain,
    client: RuntimeClient<Channel>,
    parent: String,
}

fn shim() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap().join("gantry-shim");
    assert!(
        built.exists(),
        "build the shim first: cargo build -p gantry-shim"
    );
    built
}

impl Node {
    async fn start(name: &str) -> Node {
        let home = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: home.path().join("root"),
            run: home.path().join("run"),
        };
        let peers = Drain::new();
        for name in ["store", "snapshotter", "network"] {
            let listener = gantry_chassis::bind(&paths.socket(name), 0o600)
                .unwrap()
                .into();
            let (at, ended) = (paths.clone(), peers.clone());
            peers.spawn(name, async move {
                match name {
                    "store" => gantry_store::run(Default::default(), at, listener, ended)
                        .await
                        .unwrap(),
                    "snapshotter" => {
                        gantry_snapshotter::run(Default::default(), at, listener, ended)
                            .await
                            .unwrap()
                    }
                    _ => {
                        let routes = tonic::service::Routes::new(NetworkServer::new(NoNetwork));
                        gantry_chassis::serve("network", listener, routes, &ended)
                            .await
                            .unwrap();
                    }
                }
            });
            gantry_chassis::check_health(&paths.socket(name), Duration::from_secs(10))
                .await
                .unwrap();
        }
        let parent = format!("gantry-unit-{name}-{}", std::process::id());
        let (drain, client) = Node::serve(&paths, &parent).await;
        let node = Node {
            home,
            paths,
            peers,
            drain,
            client,
            parent,
        };
        node.image().await;
        node
    }

    async fn serve(paths: &Paths, parent: &str) -> (Drain, RuntimeClient<Channel>) {
        let drain = Drain::new();
        let config = gantry_runtime::Config {
            shim: shim().to_string_lossy().into_owned(),
            cgroup_parent: parent.into(),
            ..Default::default()
        };
        let socket = paths.socket("runtime");
        let listener = gantry_chassis::bind(&socket, 0o600).unwrap().into();
        let (at, ended) = (paths.clone(), drain.clone());
        drain.spawn("runtime", async move {
            gantry_runtime::run(config, at, listener, ended)
                .await
                .unwrap();
        });
        gantry_chassis::check_health(&socket, Duration::from_secs(10))
            .await
            .unwrap();
        (drain, RuntimeClient::new(gantry_chassis::connect(&socket)))
    }

    async fn restart(&mut self) {
        assert!(
            self.drain.finish(Duration::from_secs(10)).await,
            "it drains"
        );
        let (drain, client) = Node::serve(&self.paths, &self.parent).await;
        (self.drain, self.client) = (drain, client);
    }

    async fn put(&self, bytes: &[u8]) -> Descriptor {
        let digest = format!("sha256:{}", hex(&sha2::Sha256::digest(bytes)));
        let mut store = StoreClient::new(gantry_chassis::connect(&self.paths.socket("store")));
        let request = BeginIngestRequest {
            key: digest.clone(),
            digest: digest.clone(),
            ..Default::default()
        };
        let begun = store.begin_ingest(request).await.unwrap().into_inner();
        if !begun.exists {
            std::fs::write(&begun.path, bytes).unwrap();
            let request = CommitIngestRequest {
                key: digest.clone(),
                digest: digest.clone(),
                ..Default::default()
            };
            store.commit_ingest(request).await.unwrap();
        }
        Descriptor {
            digest,
            size: bytes.len() as i64,
            ..Default::default()
        }
    }

    /// busybox, as `box:latest`.
    async fn image(&self) {
        let mut tar = tar::Builder::new(Vec::new());
        for dir in ["bin", "etc", "tmp", "root", "data"] {
            tar.append_dir(dir, "/tmp").unwrap();
        }
        tar.append_path_with_name("/bin/busybox", "bin/busybox")
            .unwrap();
        let list = std::process::Command::new("/bin/busybox")
            .arg("--list")
            .output()
            .unwrap();
        for name in String::from_utf8(list.stdout)
            .unwrap()
            .lines()
            .filter(|name| *name != "busybox")
        {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, format!("bin/{name}"), "busybox")
                .unwrap();
        }
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n";
        let mut header = tar::Header::new_gnu();
        header.set_size(passwd.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "etc/passwd", passwd.as_slice())
            .unwrap();
        let layer = self.put(&tar.into_inner().unwrap()).await;
        let arch = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let config = format!(
            r#"{{"os":"linux","architecture":"{arch}","config":{{"Env":["PATH=/bin"],"Cmd":["sh"],"Volumes":{{"/data":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            layer.digest
        );
        let config = self.put(config.as_bytes()).await;
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":{}}},"layers":[{{"mediaType":"l","digest":"{}","size":{}}}]}}"#,
            config.digest, config.size, layer.digest, layer.size
        );
        let target = self.put(manifest.as_bytes()).await;
        let mut store = StoreClient::new(gantry_chassis::connect(&self.paths.socket("store")));
        let request = PutImageRequest {
            name: "box".into(),
            target: Some(target),
            ..Default::default()
        };
        store.put_image(request).await.unwrap();
    }

    fn config(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            image: "box".into(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            network: Some(NetworkConfig {
                endpoints: vec![EndpointRequest {
                    network: "host".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    async fn create(&mut self, config: ContainerConfig) -> Result<String, Fault> {
        let request = CreateRequest {
            config: Some(config),
            idempotency_key: String::new(),
        };
        Ok(self.client.create(request).await?.into_inner().id)
    }

    /// Runs attached; returns output, errors, and how it ended.
    async fn run(&mut self, config: ContainerConfig) -> (String, String, WaitResponse) {
        let id = self.create(config).await.unwrap();
        self.attach(&id, &[]).await
    }

    async fn attach(&mut self, id: &str, typed: &[u8]) -> (String, String, WaitResponse) {
        use attach_input::Input;
        let message = |input| AttachInput { input: Some(input) };
        let open = AttachOpen {
            id: id.into(),
            stdin: true,
            stdout: true,
            stderr: true,
            start: true,
            size: None,
        };
        let mut input = vec![message(Input::Open(open))];
        input.extend(
            typed
                .chunks(1000)
                .map(|piece| message(Input::Stdin(piece.to_vec()))),
        );
        input.push(message(Input::CloseStdin(true)));
        let mut output = self
            .client
            .attach(tokio_stream::iter(input))
            .await
            .unwrap()
            .into_inner();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match output.message().await.unwrap().unwrap().output.unwrap() {
                attach_output::Output::Started(_) => {}
                attach_output::Output::Stdout(bytes) => out.extend(bytes),
                attach_output::Output::Stderr(bytes) => err.extend(bytes),
                attach_output::Output::Exit(exit) => {
                    return (
                        String::from_utf8(out).unwrap(),
                        String::from_utf8(err).unwrap(),
                        exit,
                    );
                }
            }
        }
    }

    async fn get(&mut self, id: &str) -> Result<Container, Fault> {
        Ok(self
            .client
            .get(GetRequest { id: id.into() })
            .await?
            .into_inner())
    }

    async fn exec(&mut self, id: &str, args: &[&str]) -> (String, WaitResponse) {
        let exec = ExecOpen {
            id: id.into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        };
        let input = ExecInput {
            input: Some(exec_input::Input::Exec(exec)),
        };
        let mut output = self
            .client
            .exec(tokio_stream::iter([input]))
            .await
            .unwrap()
            .into_inner();
        let mut out = Vec::new();
        loop {
            match output.message().await.unwrap().unwrap().output.unwrap() {
                attach_output::Output::Stdout(bytes) => out.extend(bytes),
                attach_output::Output::Exit(exit) => {
                    return (String::from_utf8(out).unwrap(), exit);
                }
                _ => {}
            }
        }
    }

    async fn log(&mut self, id: &str) -> String {
        let request = LogsRequest {
            id: id.into(),
            tail: -1,
            ..Default::default()
        };
        let mut entries = self.client.logs(request).await.unwrap().into_inner();
        let mut text = String::new();
        while let Some(entry) = entries.message().await.unwrap() {
            text.push_str(&String::from_utf8(entry.data).unwrap());
        }
        text
    }

    async fn remove(&mut self, id: &str) -> Result<(), Fault> {
        self.client
            .remove(RemoveRequest {
                id: id.into(),
                force: true,
                volumes: true,
            })
            .await?;
        Ok(())
    }

    async fn eventually(&mut self, id: &str, status: gantry_proto::runtime::Status) -> Container {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let container = self.get(id).await.unwrap();
            if container.status == i32::from(status) {
                return container;
            }
            assert!(Instant::now() < give_up, "{container:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Nothing of any container is left.
    async fn finish(mut self) {
        for container in self
            .client
            .list(ListRequest {
                all: true,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
            .containers
        {
            self.remove(&container.id).await.unwrap();
        }
        assert_eq!(
            std::fs::read_dir(self.paths.run.join("shim"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            std::fs::read_dir(self.paths.root.join("runtime/containers"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            std::fs::read_dir(self.paths.root.join("snapshotter/snapshots"))
                .unwrap()
                .count(),
            0
        );
        let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let mut roots: Vec<PathBuf> = groups.map(|entry| entry.path()).collect();
        roots.push("/sys/fs/cgroup".into());
        for root in roots {
            let dir = root.join(&self.parent);
            if dir.is_dir() {
                // Only empty groups can be removed.
                std::fs::remove_dir(&dir)
                    .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.home.path().to_str().unwrap()));
        self.drain.finish(Duration::from_secs(10)).await;
        self.peers.finish(Duration::from_secs(10)).await;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(time: Instant) -> f64 {
    time.elapsed().as_secs_f64()
}

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
