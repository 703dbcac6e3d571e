//! Networks: published ports, names, the bridge, none and host.
#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use gantry_tests::command::{shell, tcp};
use gantry_tests::{Node, eventually, fixture};
use serde_json::json;

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// One answer a connection: the words that follow.
const SERVER: &str = "while :; do echo \"$0 $(hostname)\" | nc -l -p 80; done";

fn answers(address: &str, text: &str) {
    let mut last = String::new();
    eventually(&format!("{address} answers {text:?}"), || {
        last = tcp(address, "").unwrap_or_default();
        last == text
    });
}

#[test]
fn none_has_loopback_alone() {
    let (node, image) = Node::with_busybox();
    node.sh(
        &["--network", "none"],
        &image,
        "ls /sys/class/net; ip -4 -o addr | awk '{print $2, $4}'; ip route",
    )
    .ok()
    .prints("lo\nlo 127.0.0.1/8\n");
}

#[test]
fn host_is_the_hosts() {
    let (node, image) = Node::with_busybox();
    let inside = node
        .sh(
            &["--network", "host"],
            &image,
            "readlink /proc/self/ns/net; hostname",
        )
        .ok();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(
        inside.stdout,
        format!("{}\n{}", host.display(), shell("hostname"))
    );
}

#[test]
fn the_bridge_gives_an_address_and_a_way_out() {
    let (node, image) = Node::with_busybox();
    let out = node.sh(&[], &image, "ip -4 -o addr show eth0 | awk '{print $4}'; ip route | awk '/^default/{print $3}'; cat /sys/class/net/eth0/mtu").ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    let (address, gateway) = (lines[0], lines[1]);
    assert!(
        address.starts_with("10.20") && lines[2] == "1500",
        "{out:?}"
    );
    // The host answers on the gateway's address, also to what is not published.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        use std::io::Write as _;
        listener.accept().unwrap().0.write_all(b"host\n").unwrap();
    });
    node.sh(&[], &image, &format!("nc -w 5 {gateway} {port} </dev/null"))
        .ok()
        .prints("host\n");
    server.join().unwrap();
}

#[test]
fn published_ports_answer_on_every_way() {
    let (node, image) = Node::with_busybox();
    let port = free_port();
    node.detached(
        &["--name", "web", "-h", "web", "-p", &format!("{port}:80")],
        &image,
        &["sh", "-c", SERVER, "here"],
    );
    answers(&format!("127.0.0.1:{port}"), "here web\n");
    answers(&format!("[::1]:{port}"), "here web\n");
    let address = shell("hostname -I")
        .split_whitespace()
        .find(|a| !a.contains(':'))
        .map(str::to_owned);
    if let Some(address) = address {
        answers(&format!("{address}:{port}"), "here web\n");
        // From another container by the host's address.
        node.sh(&[], &image, &format!("nc -w 5 {address} {port} </dev/null"))
            .ok()
            .prints("here web\n");
    }
    let gateway = node
        .sh(&[], &image, "ip route | awk '/^default/{print $3}'")
        .ok();
    node.sh(
        &[],
        &image,
        &format!("nc -w 5 {} {port} </dev/null", gateway.text()),
    )
    .ok()
    .prints("here web\n");
    let inside = node.inspect("web")["NetworkSettings"].clone();
    assert_eq!(
        inside["Ports"]["80/tcp"][0]["HostPort"],
        json!(port.to_string())
    );
    node.ctl(&[
        "run",
        "-d",
        "-p",
        &format!("{port}:80"),
        &image,
        "sleep",
        "9",
    ])
    .code(125)
    .complains(&[&port.to_string()]);
    node.ctl(&["rm", "-f", "web"]).ok();
    assert!(
        tcp(&format!("127.0.0.1:{port}"), "").is_err(),
        "the port is closed again"
    );
    TcpListener::bind(("0.0.0.0", port)).unwrap();
}

#[test]
fn a_port_of_one_address_is_not_on_the_others() {
    let (node, image) = Node::with_busybox();
    let port = free_port();
    node.detached(
        &["-h", "local", "-p", &format!("127.0.0.1:{port}:80")],
        &image,
        &["sh", "-c", SERVER, "only"],
    );
    answers(&format!("127.0.0.1:{port}"), "only local\n");
    let other = shell("hostname -I")
        .split_whitespace()
        .find(|a| !a.contains(':'))
        .map(str::to_owned);
    if let Some(other) = other {
        assert!(tcp(&format!("{other}:{port}"), "").is_err());
    }
}

#[test]
fn datagrams_are_published_too() {
    // busybox has no server for datagrams, Debian has python3.
    let node = Node::start();
    let image = node.registry().push("debian", "udp", fixture::debian());
    node.ctl(&["pull", "-q", &image]).ok();
    let port = free_port();
    let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))\nwhile True: s.sendto(*s.recvfrom(99))";
    node.detached(
        &["-p", &format!("{port}:53/udp")],
        &image,
        &["python3", "-c", script],
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    eventually("the datagram comes back", || {
        let mut back = [0; 16];
        socket.send_to(b"ping", ("127.0.0.1", port)).unwrap();
        socket
            .recv(&mut back)
            .is_ok_and(|length| &back[..length] == b"ping")
    });
}

#[test]
fn the_engine_chooses_a_free_port() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "any", "-h", "any", "-p", "80"],
        &image,
        &["sh", "-c", SERVER, "chosen"],
    );
    let ports = node.inspect("any")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].clone();
    answers(
        &format!("127.0.0.1:{}", ports.as_str().unwrap()),
        "chosen any\n",
    );
}

#[test]
fn containers_of_one_network_reach_each_other() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "one", "-h", "one"],
        &image,
        &["sh", "-c", SERVER, "peer"],
    );
    let address = node.inspect("one")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].clone();
    answers(&format!("{}:80", address.as_str().unwrap()), "peer one\n");
    node.sh(
        &[],
        &image,
        &format!("nc -w 5 {} 80 </dev/null", address.as_str().unwrap()),
    )
    .ok()
    .prints("peer one\n");
    // Names resolve on user-made networks only, as docker's do.
    node.sh(&[], &image, "nslookup one >/dev/null 2>&1").code(1);
}

#[test]
fn names_resolve_on_a_network_of_ones_own() {
    let (node, image) = Node::with_busybox();
    node.ctl(&["network", "create", "back"]).ok();
    node.detached(
        &[
            "--name",
            "db",
            "-h",
            "db-host",
            "--network",
            "back",
            "--network-alias",
            "store",
        ],
        &image,
        &["sh", "-c", SERVER, "db"],
    );
    let client = |name: &str| {
        node.sh(
            &["--network", "back"],
            &image,
            &format!("nc -w 5 {name} 80 </dev/null"),
        )
    };
    eventually("db answers by name", || {
        client("db").stdout == "db db-host\n"
    });
    client("store").ok().prints("db db-host\n");
    assert_ne!(client("nobody").code, 0);
    // Another network does not see it, by name or by address.
    let address = node.inspect("db")["NetworkSettings"]["Networks"]["back"]["IPAddress"].clone();
    assert_ne!(node.sh(&[], &image, "nc -w 2 db 80 </dev/null").code, 0);
    assert_ne!(
        node.sh(
            &[],
            &image,
            &format!("nc -w 2 {} 80 </dev/null", address.as_str().unwrap())
        )
        .code,
        0
    );
    node.ctl(&["network", "rm", "back"])
        .code(1)
        .complains(&["back"]);
    node.ctl(&["rm", "-f", "db"]).ok();
    node.ctl(&["network", "rm", "back"]).ok();
}

#[test]
fn addresses_come_free() {
    let (node, image) = Node::with_busybox();
    // A /30 holds the gateway and one container.
    node.ctl(&["network", "create", "--subnet", "10.249.77.0/30", "tiny"])
        .ok();
    for _ in 0..5 {
        node.sh(
            &["--network", "tiny"],
            &image,
            "ip -4 -o addr show eth0 | awk '{print $4}'",
        )
        .ok()
        .prints("10.249.77.2/30\n");
    }
    let id = node.detached(&["--network", "tiny"], &image, &["sleep", "60"]);
    node.ctl(&["run", "--rm", "--network", "tiny", &image, "true"])
        .code(125)
        .complains(&["tiny"]);
    node.ctl(&["rm", "-f", &id]).ok();
    node.sh(&["--network", "tiny"], &image, "true").ok();
    node.ctl(&["network", "rm", "tiny"]).ok();
}
