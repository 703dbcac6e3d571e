//! A host for one test: a process in new network and mount namespaces, the service in it, and what looks at it.
#![allow(dead_code)]

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use gantry_chassis::{Channel, Drain, Fault, Paths};
use gantry_network::Config;
use gantry_proto::network::network_client::NetworkClient;
use gantry_proto::network::*;
use gantry_sys::netns;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::os::fd::AsFd as _;

const INSIDE: &str = "GANTRY_NETWORK_TEST_INSIDE";
const SERVE: &str = "GANTRY_NETWORK_TEST_SERVE";
const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs a test again in namespaces of its own, or, there already, runs it.
pub fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_none() {
        let status = Command::new("unshare")
            .args(["--net", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{name} failed in its own namespaces");
        return;
    }
    shell(
        "ip link set lo up; ip link add host0 type veth peer name wire0; ip link set wire0 up; ip addr add 192.0.2.1/24 dev host0; ip -6 addr add 2001:db8::1/64 dev host0 nodad; ip link set host0 up; ip route add default via 192.0.2.254",
    );
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test());
}

/// What a command prints; its own complaints go to the test's log.
pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub struct Node {
    home: PathBuf,
    drain: Drain,
    client: NetworkClient<Channel>,
}

fn paths(home: &Path) -> Paths {
    Paths {
        root: home.join("root"),
        run: home.join("run"),
    }
}

async fn run(home: &Path, config: Config, drain: Drain) {
    let socket = paths(home).socket("network");
    let listener = gantry_chassis::bind(&socket, 0o600).unwrap();
    let paths = paths(home);
    gantry_network::run(config, paths, listener.into(), drain)
        .await
        .unwrap();
}

impl Node {
    pub async fn start() -> Node {
        Node::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Node {
        Node::on(tempfile::tempdir_in("/run").unwrap().keep(), config).await
    }

    pub async fn on(home: PathBuf, config: Config) -> Node {
        let drain = Drain::new();
        let (at, ended) = (home.clone(), drain.clone());
        drain.spawn("network", async move { run(&at, config, ended).await });
        ready(&home).await;
        Node {
            client: Node::client_of(&home),
            home,
            drain,
        }
    }

    pub fn client_of(home: &Path) -> NetworkClient<Channel> {
        NetworkClient::new(gantry_chassis::connect(&paths(home).socket("network")))
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Ends the service and keeps its folders.
    pub async fn halt(self) -> PathBuf {
        drop(self.client);
        assert!(self.drain.finish(Duration::from_secs(10)).await);
        self.home
    }

    pub async fn stop(self) {
        let home = self.halt().await;
        std::fs::remove_dir_all(home).unwrap();
    }

    pub async fn restart(self) -> Node {
        Node::on(self.halt().await, Config::default()).await
    }

    pub async fn attach(&mut self, request: AttachRequest) -> Result<Sandbox, Fault> {
        Ok(self.client.attach(request).await?.into_inner())
    }

    pub async fn detach(&mut self, id: &str, keep_addresses: bool) {
        let id = id.to_owned();
        self.client
            .detach(DetachRequest { id, keep_addresses })
            .await
            .unwrap();
    }

    pub async fn get(&mut self, id: &str) -> Result<Sandbox, Fault> {
        let id = id.to_owned();
        Ok(self
            .client
            .get_sandbox(GetSandboxRequest { id })
            .await?
            .into_inner())
    }

    pub async fn list(&mut self) -> Vec<Sandbox> {
        let request = ListSandboxesRequest::default();
        self.client
            .list_sandboxes(request)
            .await
            .unwrap()
            .into_inner()
            .sandboxes
    }

    pub async fn sync(&mut self, holder: &str, ids: &[&str]) -> Vec<String> {
        let request = SyncSandboxesRequest {
            holder: holder.into(),
            ids: ids.iter().map(|&id| id.into()).collect(),
        };
        self.client
            .sync_sandboxes(request)
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    pub async fn create(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut CreateNetworkRequest),
    ) -> Result<NetworkInfo, Fault> {
        let mut request = CreateNetworkRequest {
            name: name.into(),
            ..Default::default()
        };
        change(&mut request);
        Ok(self.client.create_network(request).await?.into_inner())
    }

    pub async fn remove(&mut self, name: &str) -> Result<(), Fault> {
        let name = name.to_owned();
        self.client
            .remove_network(RemoveNetworkRequest { name })
            .await?;
        Ok(())
    }

    pub async fn network(&mut self, name: &str) -> Result<NetworkInfo, Fault> {
        let name = name.to_owned();
        Ok(self
            .client
            .get_network(GetNetworkRequest { name })
            .await?
            .into_inner())
    }

    /// Everything that containers cause on the host.
    pub fn residue(&self) -> String {
        let links = shell("ip -o link | grep -o 'gantryv[a-z2-7]*' | sort");
        let pins = shell(&format!(
            "ls {0}/run/ns; grep -c {0}/run/ns /proc/self/mountinfo || true",
            self.home.display()
        ));
        let rules = shell(
            "for m in any4 any6 one4 one6; do nft list map inet gantry $m | grep -v -e type -e flags; done",
        );
        format!("{links}{pins}{rules}")
    }

    /// The kernel takes interfaces away in its own time.
    pub fn assert_clean(&self) {
        let give_up = std::time::Instant::now() + Duration::from_secs(5);
        let clean = |residue: &str| {
            !residue.contains("gantryv")
                && !residue.contains("elements")
                && residue.starts_with("0\n")
        };
        while !clean(&self.residue()) {
            assert!(std::time::Instant::now() < give_up, "{}", self.residue());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(
            std::fs::read_dir(self.home.join("run/ns")).unwrap().count(),
            0
        );
    }
}

async fn ready(home: &Path) {
    let socket = paths(home).socket("network");
    for _ in 0..500 {
        if gantry_chassis::check_health(&socket, Duration::from_secs(10))
            .await
            .is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the service does not serve");
}

/// A process that serves, to be killed.
pub async fn serving(test: &str, home: &Path) -> Child {
    let _ = std::fs::remove_file(paths(home).socket("network"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SERVE, home)
        .spawn()
        .unwrap();
    ready(home).await;
    child
}

pub fn serve_until_killed(home: PathBuf) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&home, Config::default(), Drain::new()));
}

pub fn endpoint(network: &str) -> EndpointRequest {
    EndpointRequest {
        network: network.into(),
        ..Default::default()
    }
}

pub fn attach(id: &str, networks: &[&str]) -> AttachRequest {
    AttachRequest {
        id: id.into(),
        holder: "test".into(),
        endpoints: networks.iter().map(|network| endpoint(network)).collect(),
        ..Default::default()
    }
}

pub fn port(host_ip: &str, host_port: u32, container_port: u32, udp: bool) -> PortMapping {
    PortMapping {
        host_ip: host_ip.into(),
        host_port,
        container_port,
        protocol: i32::from(udp),
    }
}

/// "10.0.0.2/24" without its length.
pub fn address_of(cidr: &str) -> IpAddr {
    cidr.split('/').next().unwrap().parse().unwrap()
}

/// Does something inside a sandbox.
pub fn ns<T: Send>(sandbox: &Sandbox, work: impl FnOnce() -> std::io::Result<T> + Send) -> T {
    try_ns(sandbox, work).unwrap()
}

fn try_ns<T: Send>(
    sandbox: &Sandbox,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    let namespace = netns::open(Path::new(&sandbox.netns))?.unwrap();
    netns::inside(namespace.as_fd(), work)
}

fn at<T: Send>(
    from: Option<&Sandbox>,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    match from {
        Some(sandbox) => try_ns(sandbox, work),
        None => work(),
    }
}

/// Answers every connection with a text.
pub fn answer(listener: TcpListener, text: &str) {
    let text = text.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(text.as_bytes());
        }
    });
}

pub fn serve(sandbox: &Sandbox, address: SocketAddr, text: &str) {
    answer(
        ns(sandbox, || {
            netns::listen_stream(address).and_then(|l| l.set_nonblocking(false).map(|()| l))
        }),
        text,
    );
}

/// Sends datagrams back.
pub fn echo(sandbox: &Sandbox, address: SocketAddr) {
    let socket = ns(sandbox, || netns::bind_datagram(address));
    socket.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

/// What is answered to a connection.
pub fn fetch(from: Option<&Sandbox>, to: SocketAddr) -> std::io::Result<String> {
    at(from, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        if text.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(text)
    })
}

/// What comes back for a datagram.
pub fn sockets(from: Option<&Sandbox>, to: SocketAddr) -> std::io::Result<String> {
    at(from, || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"ping")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

/// Asks a name server from inside a sandbox.
pub fn ask(
    sandbox: &Sandbox,
    server: SocketAddr,
    name: &str,
    kind: RecordType,
    stream: bool,
) -> (ResponseCode, Vec<String>) {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(
        Name::from_ascii(format!("{name}.")).unwrap(),
        kind,
    ));
    let bytes = query.to_vec().unwrap();
    let reply = ns(sandbox, || {
        let mut buffer = vec![0; 4096];
        if stream {
            let mut socket = TcpStream::connect_timeout(&server, PATIENCE)?;
            socket.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes())?;
            socket.write_all(&bytes)?;
            let mut length = [0; 2];
            socket.read_exact(&mut length)?;
            buffer.truncate(u16::from_be_bytes(length).into());
            socket.read_exact(&mut buffer)?;
            return Ok(buffer);
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(8)))?;
        socket.send(&bytes)?;
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    });
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    let answers = reply.answers.iter().map(|answer| answer.data.to_string());
    (reply.metadata.response_code, answers.collect())
}

/// A server of the world that knows one address.
pub fn resolver(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_queries(query.queries.iter().cloned());
            let name = query.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(
                name,
                60,
                RData::A(A::new(203, 0, 113, 5)),
            ));
            let _ = socket.send_to(&reply.to_vec().unwrap(), from);
        }
    });
}
