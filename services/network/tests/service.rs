//! The network service as its callers see it, on a host of its own: every test runs again under `unshare`, with network
//! and mounts that nobody else sees.
#![allow(clippy::unwrap_used)]

mod host;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use gantry_network::Config;
use gantry_proto::network::*;
use gantry_types::ErrorKind;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use host::{Node, address_of, ask, attach, echo, fetch, isolated, ns, port, serve, shell, sockets};

#[test]
fn containers_of_the_default_network_reach_each_other_and_the_host() {
    isolated(
        "containers_of_the_default_network_reach_each_other_and_the_host",
        async || {
            let mut node = Node::start().await;
            let (a, b) = (
                node.attach(attach("a", &["bridge"])).await.unwrap(),
                node.attach(attach("b", &["bridge"])).await.unwrap(),
            );
            assert_eq!(a.endpoints[0].ipv4, "10.88.0.2/24");
            assert_eq!(a.endpoints[0].gateway_ipv4, "10.88.0.1");
            assert_eq!(
                (
                    a.endpoints[0].interface.as_str(),
                    a.endpoints[0].network.as_str()
                ),
                ("eth0", "bridge")
            );
            assert_eq!(b.endpoints[0].ipv4, "10.88.0.3/24");
            assert!(b.endpoints[0].ipv6.starts_with("fd00:6761:6e74:"), "{b:?}");
            for address in [&b.endpoints[0].ipv4, &b.endpoints[0].ipv6] {
                let at = SocketAddr::new(address_of(address), 80);
                serve(&b, at, "from b");
                assert_eq!(fetch(Some(&a), at).unwrap(), "from b");
                assert_eq!(fetch(None, at).unwrap(), "from b");
            }
            // The host answers on the gateway's address.
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let at = SocketAddr::new(
                "10.88.0.1".parse().unwrap(),
                listener.local_addr().unwrap().port(),
            );
            host::answer(listener, "from host");
            assert_eq!(fetch(Some(&a), at).unwrap(), "from host");
            let again = node.attach(attach("a", &["bridge"])).await.unwrap();
            assert_eq!(again, a);
            let info = node.network("bridge").await.unwrap();
            assert_eq!(
                (info.bridge.as_str(), info.sandboxes),
                ("gantry0", vec!["a".into(), "b".into()])
            );
            for id in ["a", "b", "b"] {
                node.detach(id, false).await;
            }
            node.assert_clean();
            node.stop().await;
            assert!(!shell("ip -o link").contains("gantry"));
            assert!(!shell("nft list ruleset").contains("gantry"));
        },
    );
}

#[test]
fn without_endpoints_there_is_loopback_alone() {
    isolated("without_endpoints_there_is_loopback_alone", async || {
        let mut node = Node::start().await;
        let sandbox = node.attach(attach("alone", &[])).await.unwrap();
        let (at, names) = ns(&sandbox, || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let links = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            Ok((listener.local_addr()?, links.lines().count()))
        });
        assert!(at.ip().is_loopback());
        assert_eq!(names, 3, "two lines of heading and lo");
        assert!(sandbox.resolv_conf.contains("nameserver"));
        for network in ["host", "none"] {
            assert!(node.network(network).await.is_ok());
            let error = node.attach(attach("x", &[network])).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
        node.detach("alone", false).await;
        node.assert_clean();
    });
}

#[test]
fn published_ports_answer_on_every_way() {
    isolated("published_ports_answer_on_every_way", async || {
        let mut node = Node::start().await;
        let mut request = attach("web", &["bridge"]);
        request.ports = vec![port("", 8080, 80, false), port("", 8080, 80, true)];
        let web = node.attach(request).await.unwrap();
        let other = node.attach(attach("other", &["bridge"])).await.unwrap();
        node.create("back", |_| {}).await.unwrap();
        let far = node.attach(attach("far", &["back"])).await.unwrap();
        serve(&web, "0.0.0.0:80".parse().unwrap(), "web");
        serve(&web, "[::]:80".parse().unwrap(), "web");
        echo(&web, "0.0.0.0:80".parse().unwrap());
        echo(&web, "[::]:80".parse().unwrap());
        let askers = [None, Some(&web), Some(&other), Some(&far)];
        for (from, bridged) in askers.into_iter().flat_map(|from| [(from, 0), (from, 1)]) {
            // A host may or may not have its bridges show packets to the rules.
            for family in ["ip", "ip6"] {
                let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
                let _ = std::fs::write(setting, bridged.to_string());
            }
            let mut ways = vec!["192.0.2.1:8080", "10.88.0.1:8080", "[2001:db8::1]:8080"];
            if from.is_none() {
                ways.extend(["127.0.0.1:8080", "[::1]:8080"]);
            }
            for way in ways {
                let at: SocketAddr = way.parse().unwrap();
                let who = from.map_or("host", |sandbox| &sandbox.id);
                assert_eq!(
                    fetch(from, at).ok().as_deref(),
                    Some("web"),
                    "{who} to {way} ({bridged})"
                );
                assert_eq!(
                    sockets(from, at).unwrap_or_default(),
                    "ping",
                    "datagram of {who} to {way} ({bridged})"
                );
            }
        }
        // Unpublished ports are for the host and the same network only.
        serve(&web, "0.0.0.0:81".parse().unwrap(), "hidden");
        let hidden = SocketAddr::new(address_of(&web.endpoints[0].ipv4), 81);
        assert_eq!(fetch(Some(&other), hidden).unwrap(), "hidden");
        assert!(fetch(Some(&far), hidden).is_err());
        // The host's loopback is not for containers, though its bridge would route it.
        host::answer(TcpListener::bind("127.0.0.1:7777").unwrap(), "private");
        ns(&other, || {
            shell(
                "ip route add 127.0.0.1/32 via 10.88.0.1; ip rule add pref 0 lookup main; ip route del local 127.0.0.1 table local; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
            );
            Ok(())
        });
        assert!(fetch(Some(&other), "127.0.0.1:7777".parse().unwrap()).is_err());
        for id in ["web", "other", "far"] {
            node.detach(id, false).await;
        }
        assert!(fetch(None, "127.0.0.1:8080".parse().unwrap()).is_err());
        // A flow does not stay with a container that is gone, when another has the port.
        let flow = UdpSocket::bind("0.0.0.0:0").unwrap();
        flow.connect("192.0.2.1:8080").unwrap();
        flow.set_read_timeout(Some(Duration::from_millis(1500)))
            .unwrap();
        for id in ["one", "two"] {
            let mut request = attach(id, &["bridge"]);
            request.ports = vec![port("", 8080, 80, true)];
            let sandbox = node.attach(request).await.unwrap();
            echo(&sandbox, "0.0.0.0:80".parse().unwrap());
            flow.send(b"flow").unwrap();
            assert_eq!(flow.recv(&mut [0; 9]).ok(), Some(4), "{id}");
            node.detach(id, false).await;
            // The kernel takes the interface away a moment later.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        TcpListener::bind("0.0.0.0:8080").unwrap();
        UdpSocket::bind("[::]:8080").unwrap();
        node.assert_clean();
    });
}

#[test]
fn ports_are_for_the_address_that_was_named_and_conflicts_are_told() {
    isolated(
        "ports_are_for_the_address_that_was_named_and_conflicts_are_told",
        async || {
            let mut node = Node::start().await;
            let mut request = attach("local", &["bridge"]);
            request.name = "named".into();
            request.ports = vec![port("127.0.0.1", 9000, 80, false), port("", 0, 80, false)];
            let local = node.attach(request).await.unwrap();
            serve(&local, "0.0.0.0:80".parse().unwrap(), "local");
            assert_eq!(
                fetch(None, "127.0.0.1:9000".parse().unwrap()).unwrap(),
                "local"
            );
            assert!(fetch(None, "192.0.2.1:9000".parse().unwrap()).is_err());
            let chosen = local.ports[1].host_port;
            assert!(chosen > 1024);
            let at = format!("192.0.2.1:{chosen}").parse().unwrap();
            assert_eq!(fetch(None, at).unwrap(), "local");

            let before = node.residue();
            let mut request = attach("second", &["bridge"]);
            request.ports = vec![port("", 9001, 80, false), port("", 9000, 80, false)];
            let error = node.attach(request.clone()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::AlreadyExists);
            assert!(
                error.message.contains("9000/tcp") && error.message.contains("named"),
                "{error}"
            );
            let process = TcpListener::bind("0.0.0.0:9002").unwrap();
            request.ports = vec![port("", 9001, 80, false), port("", 9002, 80, false)];
            let error = node.attach(request.clone()).await.unwrap_err();
            assert!(
                error.message.contains("9002/tcp") && error.message.contains("process"),
                "{error}"
            );
            // Nothing of what failed is left, and what it had taken is free.
            assert_eq!(node.residue(), before);
            TcpListener::bind("0.0.0.0:9001").unwrap();
            drop(process);
            let second = node.attach(request).await.unwrap();
            serve(&second, "0.0.0.0:80".parse().unwrap(), "second");
            assert_eq!(
                fetch(None, "127.0.0.1:9002".parse().unwrap()).unwrap(),
                "second"
            );
            let mut request = attach("nowhere", &["bridge"]);
            request.ports = vec![port("198.51.100.7", 80, 80, false)];
            assert_eq!(
                node.attach(request).await.unwrap_err().kind,
                ErrorKind::InvalidArgument
            );
            for id in ["local", "second"] {
                node.detach(id, false).await;
            }
            node.assert_clean();
        },
    );
}

#[test]
fn networks_have_names_and_keep_apart() {
    isolated("networks_have_names_and_keep_apart", async || {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = Config {
            dns_upstreams: vec![upstream.local_addr().unwrap().to_string()],
            ..Config::default()
        };
        host::resolver(upstream);
        let mut node = Node::with(config).await;
        let info = node
            .create("back", |request| {
                request.labels.extend([("a".into(), "b".into())])
            })
            .await
            .unwrap();
        assert_eq!(info.subnets[0], "10.88.1.0/24");
        assert_eq!(
            (info.driver.as_str(), info.mtu, info.labels["a"].as_str()),
            ("bridge", 1500, "b")
        );
        let mut request = attach("0123456789abcdef", &["back"]);
        request.name = "db".into();
        request.endpoints[0].aliases = vec!["store".into()];
        let db = node.attach(request).await.unwrap();
        let client = node
            .attach(attach("client", &["back", "bridge"]))
            .await
            .unwrap();
        assert!(
            client.resolv_conf.starts_with("nameserver 10.88.1.1\n"),
            "{}",
            client.resolv_conf
        );
        let server: SocketAddr = "10.88.1.1:53".parse().unwrap();
        let address = address_of(&db.endpoints[0].ipv4).to_string();
        for name in ["db", "store", "0123456789ab", "DB", "db.back"] {
            for stream in [false, true] {
                let reply = ask(&client, server, name, RecordType::A, stream);
                assert_eq!(reply.1, std::slice::from_ref(&address), "{name} {stream}");
            }
        }
        let six = address_of(&db.endpoints[0].ipv6).to_string();
        assert_eq!(ask(&client, server, "db", RecordType::AAAA, false).1, [six]);
        let back = ask(
            &client,
            server,
            "2.1.88.10.in-addr.arpa",
            RecordType::PTR,
            false,
        );
        assert_eq!(back.1, ["db.back."]);
        assert_eq!(
            ask(&client, server, "example.com", RecordType::A, false).1,
            ["203.0.113.5"]
        );
        // Who is on two networks has his way out by the first.
        let routes = ns(&client, || Ok(shell("ip route show default")));
        assert_eq!(routes.trim(), "default via 10.88.1.1 dev eth0");
        // Who has the default network first is answered all the same.
        let late = node
            .attach(attach("late", &["bridge", "back"]))
            .await
            .unwrap();
        assert!(late.resolv_conf.starts_with("nameserver 10.88.1.1\n"));
        assert_eq!(ask(&late, server, "db", RecordType::A, false).1.len(), 1);
        node.detach("late", false).await;
        // Another network reaches neither the container nor its names.
        node.create("front", |_| {}).await.unwrap();
        let other = node.attach(attach("other", &["front"])).await.unwrap();
        serve(&db, "0.0.0.0:80".parse().unwrap(), "db");
        let at = SocketAddr::new(address.parse().unwrap(), 80);
        assert_eq!(fetch(Some(&client), at).unwrap(), "db");
        assert!(fetch(Some(&other), at).is_err());
        let front: SocketAddr = "10.88.2.1:53".parse().unwrap();
        assert_eq!(
            ask(&other, front, "db", RecordType::A, false).1,
            ["203.0.113.5"]
        );
        let error = node.remove("back").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::WrongState);
        assert!(
            error.message.contains("db") && error.message.contains("client"),
            "{error}"
        );
        for id in ["0123456789abcdef", "client", "other"] {
            node.detach(id, false).await;
        }
        node.remove(&info.id[..12]).await.unwrap();
        assert_eq!(
            node.remove("back").await.unwrap_err().kind,
            ErrorKind::NotFound
        );
        node.assert_clean();
    });
}

#[test]
fn networks_are_refused_with_reasons() {
    isolated("networks_are_refused_with_reasons", async || {
        let mut node = Node::start().await;
        let subnet = |text: &'static str| {
            move |request: &mut CreateNetworkRequest| request.subnets = vec![text.into()]
        };
        let tiny = node.create("tiny", subnet("10.249.77.0/30")).await.unwrap();
        assert_eq!(tiny.gateways[0], "10.249.77.1");
        for (name, text, kind) in [
            ("tiny", "10.5.0.0/24", ErrorKind::AlreadyExists),
            ("bridge", "", ErrorKind::AlreadyExists),
            ("host", "", ErrorKind::AlreadyExists),
            ("over", "10.249.77.0/24", ErrorKind::AlreadyExists),
            ("hosts", "192.0.2.0/25", ErrorKind::AlreadyExists),
            ("small", "10.5.0.0/31", ErrorKind::InvalidArgument),
            ("bad name", "10.5.0.0/24", ErrorKind::InvalidArgument),
        ] {
            let change = |request: &mut CreateNetworkRequest| {
                request.subnets = Some(text)
                    .filter(|t| !t.is_empty())
                    .map(Into::into)
                    .into_iter()
                    .collect();
            };
            let error = node.create(name, change).await.unwrap_err();
            assert_eq!(error.kind, kind, "{name}: {error}");
        }
        let error = node
            .create("x", |r| r.driver = "macvlan".into())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        for builtin in ["bridge", "host", "none"] {
            assert_eq!(
                node.remove(builtin).await.unwrap_err().kind,
                ErrorKind::WrongState
            );
        }
        // A /30 holds one container, again and again.
        for _ in 0..3 {
            let sandbox = node.attach(attach("one", &["tiny"])).await.unwrap();
            assert_eq!(sandbox.endpoints[0].ipv4, "10.249.77.2/30");
            let error = node.attach(attach("two", &["tiny"])).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Exhausted);
            assert!(error.message.contains("tiny"), "{error}");
            node.detach("one", false).await;
        }
        // No way out, but the host and each other.
        let inner = |request: &mut CreateNetworkRequest| {
            request.internal = true;
            request.disable_ipv6 = true;
        };
        node.create("inner", inner).await.unwrap();
        let a = node.attach(attach("a", &["inner"])).await.unwrap();
        let mut request = attach("b", &["inner"]);
        request.ports = vec![port("", 9100, 80, false)];
        let b = node.attach(request).await.unwrap();
        assert!(
            b.ports.is_empty()
                && b.endpoints[0].gateway_ipv4.is_empty()
                && b.endpoints[0].ipv6.is_empty()
        );
        serve(&b, "0.0.0.0:80".parse().unwrap(), "inner");
        let at = SocketAddr::new(address_of(&b.endpoints[0].ipv4), 80);
        assert_eq!(fetch(Some(&a), at).unwrap(), "inner");
        assert_eq!(
            ns(&a, || Ok(shell(
                "ip route show default; ip -6 addr show dev eth0"
            ))),
            ""
        );
        let gateway: SocketAddr = a
            .resolv_conf
            .split_whitespace()
            .nth(1)
            .map(|ip| format!("{ip}:53"))
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            ask(&a, gateway, "example.com", RecordType::A, false).0,
            ResponseCode::NXDomain
        );
        let outside = node.attach(attach("outside", &["bridge"])).await.unwrap();
        serve(&outside, "0.0.0.0:80".parse().unwrap(), "outside");
        let out = SocketAddr::new(address_of(&outside.endpoints[0].ipv4), 80);
        ns(&a, || {
            shell(
                "ip route add default via $(ip -4 -o addr show dev eth0 | awk '{print $4}' | sed 's/\\.[0-9]*\\/.*/.1/')",
            );
            Ok(())
        });
        assert!(fetch(Some(&a), out).is_err());
        for id in ["a", "b", "outside"] {
            node.detach(id, false).await;
        }
        node.assert_clean();
    });
}
