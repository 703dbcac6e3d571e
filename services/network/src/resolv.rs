//! What a container's /etc/resolv.conf says (resolv.conf(5)).
//!
//! Invariant: a loopback server of the host is never given to a container, whose loopback is another one.

use std::net::{IpAddr, SocketAddr};

/// What stands in when the host has only servers on its loopback, as docker has it.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
const HOST: &str = "/etc/resolv.conf";
/// Where systemd-resolved names the servers behind its own loopback address.
const BEHIND: &str = "/run/systemd/resolve/resolv.conf";

/// The lines that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolv {
    pub(crate) servers: Vec<String>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Resolv {
    pub(crate) fn parse(text: &str) -> Resolv {
        let mut found = Resolv::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => found.servers.extend(words.next()),
                // The last of these lines holds.
                Some("search" | "domain") => found.search = words.collect(),
                Some("options") => found.options.extend(words),
                _ => {}
            }
        }
        found
    }

    pub(crate) fn show(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        for (word, values) in [("search", &self.search), ("options", &self.options)] {
            if !values.is_empty() {
                text.push_str(&format!("{word} {}\n", values.join(" ")));
            }
        }
        text
    }
}

fn is_loopback(server: &str) -> bool {
    let plain = server.split('%').next().unwrap_or_default();
    plain.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host's own, as it is now.
pub(crate) fn of_host() -> Resolv {
    let read = |path: &str| Resolv::parse(&std::fs::read_to_string(path).unwrap_or_default());
    let host = read(HOST);
    if !host.servers.is_empty() && host.servers.iter().all(|server| server == "127.0.0.53") {
        let behind = read(BEHIND);
        if !behind.servers.is_empty() {
            return Resolv {
                servers: behind.servers,
                ..host
            };
        }
    }
    host
}

/// What the user gave; what is empty comes from elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) servers: &'a [String],
    pub(crate) search: &'a [String],
    pub(crate) options: &'a [String],
}

/// The content for a container: `names` is the address of its network's own name server; `upstreams` are configured
/// servers that stand for the host's.
pub(crate) fn content(
    host: &Resolv,
    upstreams: &[SocketAddr],
    names: Option<IpAddr>,
    given: Given<'_>,
) -> String {
    let or = |given: &[String], other: &[String]| {
        if given.is_empty() {
            other.to_vec()
        } else {
            given.to_vec()
        }
    };
    let mut content = Resolv {
        servers: or(given.servers, &host.servers),
        // "." asks for no search list at all.
        search: or(given.search, &host.search)
            .into_iter()
            .filter(|s| s != ".")
            .collect(),
        options: or(given.options, &host.options),
    };
    if let Some(names) = names {
        content.servers = vec![names.to_string()];
        if !content
            .options
            .iter()
            .any(|option| option.starts_with("ndots:"))
        {
            content.options.push("ndots:0".into());
        }
    } else if given.servers.is_empty() {
        if !upstreams.is_empty() {
            content.servers = upstreams
                .iter()
                .filter(|server| server.port() == 53)
                .map(|server| server.ip().to_string())
                .collect();
        }
        content.servers.retain(|server| !is_loopback(server));
        if content.servers.is_empty() {
            content.servers = FALLBACK.map(str::to_owned).to_vec();
        }
    }
    content.show()
}

/// Where names that are no container's are asked for, from the host.
pub(crate) fn upstreams(configured: &[SocketAddr], given: &[IpAddr]) -> Vec<SocketAddr> {
    if !given.is_empty() {
        return given.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
    }
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let host = of_host();
    host.servers
        .iter()
        .filter_map(|server| server.parse().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Given<'_> = Given {
        servers: &[],
        search: &[],
        options: &[],
    };

    fn host() -> Resolv {
        Resolv::parse("# x\nnameserver 127.0.0.1\nnameserver 9.9.9.9\nsearch a b\noptions edns0\n")
    }

    #[test]
    fn the_default_network_gets_the_hosts_without_loopback() {
        assert_eq!(
            content(&host(), &[], None, NONE),
            "nameserver 9.9.9.9\nsearch a b\noptions edns0\n"
        );
        let only_loopback = Resolv::parse("nameserver ::1\nnameserver 127.0.0.53\n");
        assert_eq!(
            content(&only_loopback, &[], None, NONE),
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
        );
        let upstream = ["192.0.2.1:53".parse().unwrap()];
        assert!(content(&host(), &upstream, None, NONE).starts_with("nameserver 192.0.2.1\n"));
    }

    #[test]
    fn what_was_given_holds() {
        let (servers, search) = (["127.0.0.9".to_owned()], [".".to_owned()]);
        let given = Given {
            servers: &servers,
            search: &search,
            options: &[],
        };
        assert_eq!(
            content(&host(), &[], None, given),
            "nameserver 127.0.0.9\noptions edns0\n"
        );
        let names = content(&host(), &[], Some("10.0.0.1".parse().unwrap()), given);
        assert_eq!(names, "nameserver 10.0.0.1\noptions edns0 ndots:0\n");
    }
}
