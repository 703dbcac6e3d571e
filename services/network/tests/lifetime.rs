//! What lasts: addresses, restarts, kills, and how long an attach takes. Runs as `service.rs` does, on hosts of its own.
#![allow(clippy::unwrap_used)]

mod host;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use gantry_network::Config;
use gantry_proto::network::*;
use gantry_types::ErrorKind;
use hickory_proto::rr::RecordType;
use host::{Node, address_of, ask, attach, endpoint, fetch, isolated, ns, port, serve, shell};

#[test]
fn addresses_are_kept_and_given_as_asked() {
    isolated("addresses_are_kept_and_given_as_asked", async || {
        let mut node = Node::start().await;
        let first = node.attach(attach("first", &["bridge"])).await.unwrap();
        node.detach("first", true).await;
        node.assert_clean();
        let wish = |id: &str, ipv4: &str, mac: &str| {
            let mut request = attach(id, &[]);
            request.endpoints = vec![EndpointRequest {
                ipv4: ipv4.into(),
                mac: mac.into(),
                ..endpoint("bridge")
            }];
            request
        };
        let error = node
            .attach(wish("thief", "10.88.0.2", ""))
            .await
            .unwrap_err();
        assert!(
            error.message.contains("10.88.0.2") && error.message.contains("first"),
            "{error}"
        );
        let fixed = node
            .attach(wish("fixed", "10.88.0.77", "02:00:00:00:00:77"))
            .await
            .unwrap();
        assert_eq!(fixed.endpoints[0].ipv4, "10.88.0.77/24");
        let shown = ns(&fixed, || {
            Ok(shell("cat /proc/net/arp >/dev/null; ip -o link show eth0"))
        });
        assert!(shown.contains("02:00:00:00:00:77"), "{shown}");
        let error = node
            .attach(wish("twin", "", "02:00:00:00:00:77"))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        for (ipv4, mac) in [("10.88.1.5", ""), ("10.88.0.1", ""), ("10.88.0.255", "")] {
            let error = node.attach(wish("wrong", ipv4, mac)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        }
        let mut node = node.restart().await;
        let again = node.attach(attach("first", &["bridge"])).await.unwrap();
        assert_eq!(again.endpoints[0].ipv4, first.endpoints[0].ipv4);
        assert_eq!(again.endpoints[0].ipv6, first.endpoints[0].ipv6);
        node.detach("first", true).await;
        assert_eq!(node.sync("test", &["fixed"]).await, ["first"]);
        let reused = node.attach(wish("thief", "10.88.0.2", "")).await.unwrap();
        assert_eq!(reused.endpoints[0].ipv4, "10.88.0.2/24");
        assert_eq!(node.sync("nobody", &[]).await, Vec::<String>::new());
        assert_eq!(node.sync("test", &[]).await, ["fixed", "thief"]);
        node.assert_clean();
    });
}

#[test]
fn a_restart_keeps_what_lives_and_sweeps_the_rest() {
    isolated(
        "a_restart_keeps_what_lives_and_sweeps_the_rest",
        async || {
            let mut node = Node::start().await;
            node.create("back", |_| {}).await.unwrap();
            let mut request = attach("web", &["back"]);
            request.name = "web".into();
            request.ports = vec![port("", 8080, 80, false)];
            let web = node.attach(request).await.unwrap();
            let gone = node.attach(attach("gone", &["bridge"])).await.unwrap();
            serve(&web, "0.0.0.0:80".parse().unwrap(), "web");
            let all = ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080"]
                .map(|at| at.parse::<SocketAddr>().unwrap());
            let node = {
                let stopped = node.halt().await;
                // While the service is away the kernel's part works on.
                assert_eq!(fetch(None, all[2]).unwrap(), "web");
                shell(&format!("umount {} ; rm -f {}", gone.netns, gone.netns));
                shell(
                    "ip link add gantryvaaaaaaaa type veth peer name other; ip link add gantrybaaaaaaaa type bridge",
                );
                shell(
                    "ip link add gantryfriend type bridge; nft flush ruleset; nft add table inet friend",
                );
                std::fs::write(stopped.join("run/ns/stray"), "").unwrap();
                stopped
            };
            let mut node = Node::on(node, Config::default()).await;
            let links = shell("ip -o link");
            assert!(
                !links.contains("aaaaaaaa") && links.contains("gantryfriend"),
                "{links}"
            );
            assert!(shell("nft list ruleset").contains("friend"));
            assert!(!node.home().join("run/ns/stray").exists());
            for at in all {
                assert_eq!(fetch(None, at).unwrap(), "web", "{at}");
            }
            assert_eq!(node.get("web").await.unwrap(), web);
            assert_eq!(
                node.get("gone").await.unwrap_err().kind,
                ErrorKind::NotFound
            );
            let client = node.attach(attach("client", &["back"])).await.unwrap();
            let server = "10.88.1.1:53".parse().unwrap();
            assert_eq!(ask(&client, server, "web", RecordType::A, false).1.len(), 1);
            let again = node.attach(attach("gone", &["bridge"])).await.unwrap();
            assert_eq!(again.endpoints[0].ipv4, gone.endpoints[0].ipv4);

            // Interfaces that somebody took away come back.
            let home = node.halt().await;
            shell(
                "ip link del gantry0; for v in $(ip -o link | grep -o 'gantryv[a-z2-7]*'); do ip link del $v; done",
            );
            let mut node = Node::on(home, Config::default()).await;
            for at in all {
                assert_eq!(fetch(None, at).unwrap(), "web", "{at}");
            }
            // So does the table, with the next port.
            shell("nft flush ruleset");
            let mut request = attach("late", &["bridge"]);
            request.ports = vec![port("", 8081, 80, false)];
            let late = node.attach(request).await.unwrap();
            serve(&late, "0.0.0.0:80".parse().unwrap(), "late");
            assert_eq!(
                fetch(None, "192.0.2.1:8081".parse().unwrap()).unwrap(),
                "late"
            );
            assert_eq!(fetch(None, all[2]).unwrap(), "web");
            for id in ["web", "client", "gone", "late"] {
                node.detach(id, false).await;
            }
            node.assert_clean();
            node.stop().await;
            assert_eq!(
                shell("ip -o link").matches("gantry").count(),
                1,
                "the friend's"
            );
        },
    );
}

#[test]
fn a_kill_leaves_nothing_that_a_start_does_not_put_right() {
    if let Some(home) = std::env::var_os("GANTRY_NETWORK_TEST_SERVE") {
        return host::serve_until_killed(home.into());
    }
    isolated(
        "a_kill_leaves_nothing_that_a_start_does_not_put_right",
        async || {
            let home = tempfile::tempdir_in("/run").unwrap();
            let mut known: Vec<Sandbox> = Vec::new();
            for round in 0..12u64 {
                let mut child = host::serving(
                    "a_kill_leaves_nothing_that_a_start_does_not_put_right",
                    home.path(),
                )
                .await;
                let client = Node::client_of(home.path());
                let (stop, mut attached) = (
                    Instant::now() + Duration::from_millis(3 + 9 * round),
                    Vec::new(),
                );
                let mut detached = Vec::new();
                let work = async {
                    for number in 0.. {
                        let mut request = attach(&format!("s{round}-{number}"), &["bridge"]);
                        request.ports = vec![port("", 0, 80, number % 2 == 0)];
                        let Ok(made) = client.clone().attach(request).await else {
                            break;
                        };
                        let made = made.into_inner();
                        let id = made.id.clone();
                        attached.push(made);
                        if number % 3 == 2 {
                            let request = DetachRequest {
                                id: id.clone(),
                                keep_addresses: false,
                            };
                            detached.push(id);
                            if client.clone().detach(request).await.is_err() {
                                break;
                            }
                        }
                    }
                };
                let _ = tokio::time::timeout_at(stop.into(), work).await;
                child.kill().unwrap();
                child.wait().unwrap();
                known.extend(
                    attached
                        .into_iter()
                        .filter(|sandbox| !detached.contains(&sandbox.id)),
                );
            }
            let mut node = Node::on(home.keep(), Config::default()).await;
            let listed = node.list().await;
            // What was acknowledged is there as it was; what was under way may be there whole.
            for sandbox in &known {
                assert!(listed.contains(sandbox), "{sandbox:?} was lost");
            }
            let links = shell("ip -o link | grep -c gantryv || true");
            assert_eq!(links.trim(), listed.len().to_string());
            let mut ids: Vec<&str> = listed.iter().map(|sandbox| sandbox.id.as_str()).collect();
            assert!(!ids.is_empty());
            for sandbox in &listed {
                let address: IpAddr = address_of(&sandbox.endpoints[0].ipv4);
                serve(sandbox, SocketAddr::new(address, 80), &sandbox.id);
                assert_eq!(
                    fetch(None, SocketAddr::new(address, 80)).unwrap(),
                    sandbox.id
                );
            }
            ids.sort_unstable();
            let mut gone = node.sync("test", &[]).await;
            gone.sort_unstable();
            gone.retain(|id| ids.contains(&id.as_str()));
            assert_eq!(gone, ids);
            node.assert_clean();
        },
    );
}

#[test]
fn attaching_is_quick() {
    isolated("attaching_is_quick", async || {
        let mut node = Node::start().await;
        node.attach(attach("warm", &["bridge"])).await.unwrap();
        let (mut plain, mut published, mut detached) = (Vec::new(), Vec::new(), Vec::new());
        let mut asked = Vec::new();
        for round in 0..40 {
            // The pool is full again before the next one comes.
            tokio::time::sleep(Duration::from_millis(60)).await;
            let id = format!("s{round}");
            let mut request = attach(&id, &["bridge"]);
            let times = if round % 2 == 0 {
                &mut plain
            } else {
                &mut published
            };
            if round % 2 == 1 {
                request.ports = vec![port("", 0, 80, false)];
            }
            let start = Instant::now();
            node.attach(request).await.unwrap();
            times.push(start.elapsed());
            let start = Instant::now();
            node.detach(&id, false).await;
            detached.push(start.elapsed());
            let start = Instant::now();
            node.get("warm").await.unwrap();
            asked.push(start.elapsed());
        }
        for (what, times) in [
            ("attach", &mut plain),
            ("attach with a port", &mut published),
            ("detach", &mut detached),
            ("a call that does nothing", &mut asked),
        ] {
            times.sort_unstable();
            let middle = times[times.len() / 2];
            println!(
                "{what}: median {middle:?}, least {:?}, most {:?}",
                times[0],
                times[times.len() - 1]
            );
            assert!(middle < Duration::from_millis(50), "{what}: {middle:?}");
        }
        node.detach("warm", false).await;
        node.assert_clean();
    });
}
