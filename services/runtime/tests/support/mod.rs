//! A node under test, and the names that its tests speak with.
#![allow(unused_imports)] // each is for the tests, which take all

pub use std::path::PathBuf;
pub use std::time::{Duration, Instant};

pub use gantry_chassis::{Channel, Drain, Fault, Paths};
pub use gantry_proto::network::EndpointRequest;
pub use gantry_proto::network::network_server::{Network, NetworkServer};
pub use gantry_proto::network::*;
pub use gantry_proto::runtime::runtime_client::RuntimeClient;
pub use gantry_proto::runtime::*;
pub use gantry_proto::store::store_client::StoreClient;
pub use gantry_proto::store::{BeginIngestRequest, CommitIngestRequest, PutImageRequest};
pub use gantry_proto::types::Descriptor;
pub use gantry_types::ErrorKind;
use sha2::Digest as _;
pub use tonic::{Request, Response, Status};

/// Knows no sandbox: all that containers on the host's network ask of network.
pub struct NoNetwork;

pub fn refused<T>() -> Result<Response<T>, Status> {
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

pub struct Node {
    pub home: tempfile::TempDir,
    pub paths: Paths,
    pub peers: Drain,
    pub drain: Drain,
    pub client: RuntimeClient<Channel>,
    pub parent: String,
}

pub fn shim() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap().join("gantry-shim");
    assert!(
        built.exists(),
        "build the shim first: cargo build -p gantry-shim"
    );
    built
}

impl Node {
    pub async fn start(name: &str) -> Node {
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

    pub async fn serve(paths: &Paths, parent: &str) -> (Drain, RuntimeClient<Channel>) {
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

    pub async fn restart(&mut self) {
        assert!(
            self.drain.finish(Duration::from_secs(10)).await,
            "it drains"
        );
        let (drain, client) = Node::serve(&self.paths, &self.parent).await;
        (self.drain, self.client) = (drain, client);
    }

    pub async fn put(&self, bytes: &[u8]) -> Descriptor {
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
    pub async fn image(&self) {
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

    pub fn config(&self, name: &str, command: &[&str]) -> ContainerConfig {
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

    pub async fn create(&mut self, config: ContainerConfig) -> Result<String, Fault> {
        let request = CreateRequest {
            config: Some(config),
            idempotency_key: String::new(),
        };
        Ok(self.client.create(request).await?.into_inner().id)
    }

    /// Runs attached; returns output, errors, and how it ended.
    pub async fn run(&mut self, config: ContainerConfig) -> (String, String, WaitResponse) {
        let id = self.create(config).await.unwrap();
        self.attach(&id, &[]).await
    }

    pub async fn attach(&mut self, id: &str, typed: &[u8]) -> (String, String, WaitResponse) {
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

    pub async fn get(&mut self, id: &str) -> Result<Container, Fault> {
        Ok(self
            .client
            .get(GetRequest { id: id.into() })
            .await?
            .into_inner())
    }

    pub async fn exec(&mut self, id: &str, args: &[&str]) -> (String, WaitResponse) {
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

    pub async fn log(&mut self, id: &str) -> String {
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

    pub async fn remove(&mut self, id: &str) -> Result<(), Fault> {
        self.client
            .remove(RemoveRequest {
                id: id.into(),
                force: true,
                volumes: true,
            })
            .await?;
        Ok(())
    }

    pub async fn eventually(
        &mut self,
        id: &str,
        status: gantry_proto::runtime::Status,
    ) -> Container {
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
    pub async fn finish(mut self) {
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

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn seconds(time: Instant) -> f64 {
    time.elapsed().as_secs_f64()
}
