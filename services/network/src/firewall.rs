//! Our nft table as a value: base chains that never change, and elements for networks, names and published ports.
//!
//! ```text
//! bridges    ifname                        every bridge of ours
//! internal   ifname                        those without a way out
//! same       ifname . ifname               a bridge and itself
//! home4/6    ifname . subnet               a bridge and the addresses on it
//! names      ifname . ip . proto      -> ip . port   where a network's name server listens; asked at port 53
//! any4/any6  proto . port             -> ip . port   ports published on all addresses
//! one4/one6  ip . proto . port        -> ip . port   ports published on one address
//! ```
//! Invariants: a sandbox without ports has no element; a container's ports are elements alone, so that it comes and goes
//! with one small batch; rules name no address. Nothing here does IO.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cidr::Cidr;
use crate::netlink::Message;
use crate::netlink::nft::{
    self, ACCEPT, Base, DROP, Element, Hook, IPV4, IPV6, Kind, Meta, REG1, REG2, RETURN, Rule, Set,
    Tracked, word,
};

const fn set(name: &'static str, key: &'static [Kind], data: &'static [Kind]) -> Set {
    Set {
        name,
        key,
        data,
        ranges: false,
    }
}

const fn ranges(name: &'static str, key: &'static [Kind]) -> Set {
    Set {
        name,
        key,
        data: &[],
        ranges: true,
    }
}

use Kind::{Interface, Ipv4, Ipv6, Port, Protocol};

const SETS: [Set; 10] = [
    set("bridges", &[Interface], &[]),
    set("internal", &[Interface], &[]),
    set("same", &[Interface, Interface], &[]),
    ranges("home4", &[Interface, Ipv4]),
    ranges("home6", &[Interface, Ipv6]),
    set("names", &[Interface, Ipv4, Protocol], &[Ipv4, Port]),
    set("any4", &[Protocol, Port], &[Ipv4, Port]),
    set("any6", &[Protocol, Port], &[Ipv6, Port]),
    set("one4", &[Ipv4, Protocol, Port], &[Ipv4, Port]),
    set("one6", &[Ipv6, Protocol, Port], &[Ipv6, Port]),
];

/// A bridge and what its packets may do.
#[derive(Debug, Clone)]
pub(crate) struct Bridge<'a> {
    pub(crate) name: &'a str,
    pub(crate) internal: bool,
    pub(crate) subnets: Vec<Cidr>,
    /// The gateway's address, and the ports for datagrams and streams on which names are answered.
    pub(crate) names: Option<(Ipv4Addr, u16, u16)>,
}

/// A published port and where it leads.
#[derive(Debug, Clone)]
pub(crate) struct Publication {
    /// None = all addresses of both families.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) udp: bool,
    pub(crate) port: u16,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn protocol(udp: bool) -> [u8; 4] {
    [if udp { UDP } else { TCP }, 0, 0, 0]
}

fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn element(set: &'static str, key: &[&[u8]], data: &[&[u8]]) -> Element {
    Element {
        set,
        key: key.concat(),
        end: Vec::new(),
        data: data.concat(),
    }
}

/// The elements of one bridge.
pub(crate) fn of_bridge(bridge: &Bridge<'_>) -> Vec<Element> {
    let name = interface(bridge.name);
    let mut found = vec![
        element("bridges", &[&name], &[]),
        element("same", &[&name, &name], &[]),
    ];
    if bridge.internal {
        found.push(element("internal", &[&name], &[]));
    }
    for subnet in &bridge.subnets {
        let at = |position| match subnet.nth(position) {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let set = if subnet.is_ipv4() { "home4" } else { "home6" };
        found.push(Element {
            end: [name.clone(), at(subnet.last())].concat(),
            ..element(set, &[&name, &at(0)], &[])
        });
    }
    if let Some((address, datagrams, streams)) = bridge.names {
        let address = address.octets();
        for (udp, at) in [(true, datagrams), (false, streams)] {
            let key: [&[u8]; 3] = [&name, &address, &protocol(udp)];
            found.push(element("names", &key, &[&address, &port(at)]));
        }
    }
    found
}

/// The elements of one published port.
pub(crate) fn of_publication(publication: &Publication) -> Vec<Element> {
    let (proto, at, to) = (
        protocol(publication.udp),
        port(publication.host_port),
        port(publication.port),
    );
    let v4 = publication.ipv4.map(|ip| ip.octets());
    let v6 = publication.ipv6.map(|ip| ip.octets());
    let all4 = publication
        .host_ip
        .is_none_or(|ip| ip == Ipv4Addr::UNSPECIFIED);
    let all6 = publication
        .host_ip
        .is_none_or(|ip| ip == Ipv6Addr::UNSPECIFIED);
    let mut found = Vec::new();
    if let (true, Some(v4)) = (all4, v4) {
        found.push(element("any4", &[&proto, &at], &[&v4, &to]));
    }
    if let (true, Some(v6)) = (all6, v6) {
        found.push(element("any6", &[&proto, &at], &[&v6, &to]));
    }
    match (publication.host_ip, v4, v6) {
        (Some(IpAddr::V4(ip)), Some(v4), _) if !all4 => {
            found.push(element("one4", &[&ip.octets(), &proto, &at], &[&v4, &to]));
        }
        (Some(IpAddr::V6(ip)), _, Some(v6)) if !all6 => {
            found.push(element("one6", &[&ip.octets(), &proto, &at], &[&v6, &to]));
        }
        _ => {}
    }
    found
}

/// Bits of `ct status` and `ct state`.
const WAS_DNAT: u32 = 1 << 5;
const KNOWN: u32 = (1 << 1) | (1 << 2);

fn family(family: u8) -> Rule {
    Rule::new().meta(Meta::Family, REG1).equals(&[family])
}

fn from_bridge() -> Rule {
    Rule::new()
        .meta(Meta::InterfaceIn, REG1)
        .within("bridges", false)
}

fn to_bridge(rule: Rule) -> Rule {
    rule.meta(Meta::InterfaceOut, REG1).within("bridges", false)
}

fn port_to(rule: Rule, register: u32) -> Rule {
    rule.payload(Base::Transport, 2, 2, register)
}

/// The rules, chain by chain.
fn rules() -> Vec<(&'static str, Rule)> {
    let loopback4 =
        |rule: Rule, offset| rule.payload(Base::Network, offset, 1, REG1).equals(&[127]);
    let v6_loopback = Ipv6Addr::LOCALHOST.octets();
    let published = |fam: u8, one: bool| {
        let rule = family(fam);
        let (rule, at) = match (fam, one) {
            (IPV4, true) => (rule.payload(Base::Network, 16, 4, word(0)), 1),
            (_, true) => (rule.payload(Base::Network, 24, 16, REG1), 4),
            (_, false) => (rule, 0),
        };
        let rule = port_to(rule.meta(Meta::Protocol, word(at)), word(at + 1));
        let (map, to) = match (fam, one) {
            (IPV4, true) => ("one4", word(1)),
            (IPV4, false) => ("any4", word(1)),
            (_, true) => ("one6", word(4)),
            (_, false) => ("any6", word(4)),
        };
        ("publish", rule.map(map).dnat(fam, to))
    };
    let home = |fam: u8| {
        let rule = family(fam).meta(Meta::InterfaceOut, REG1);
        let (rule, set) = match fam {
            IPV4 => (rule.payload(Base::Network, 12, 4, word(4)), "home4"),
            _ => (rule.payload(Base::Network, 8, 16, REG2), "home6"),
        };
        let rule = rule.within(set, false).tracked(Tracked::Status, WAS_DNAT);
        ("postrouting", rule.masquerade())
    };
    // The port is compared in the first register, so it comes before the key is put together there.
    let names = port_to(family(IPV4), REG1)
        .equals(&53u16.to_be_bytes())
        .meta(Meta::InterfaceIn, REG1)
        .payload(Base::Network, 16, 4, word(4))
        .meta(Meta::Protocol, word(5))
        .map("names")
        .dnat(IPV4, word(1));
    vec![
        // Nobody on a bridge may speak to the host's loopback, though route_localnet would let him.
        (
            "guard",
            loopback4(from_bridge().meta(Meta::Family, REG1).equals(&[IPV4]), 16).verdict(DROP),
        ),
        ("prerouting", names),
        ("prerouting", Rule::new().destined_here().jump("publish")),
        // ::1 cannot be routed; a proxy of ours listens there.
        (
            "output",
            family(IPV6)
                .payload(Base::Network, 24, 16, REG1)
                .equals(&v6_loopback)
                .verdict(RETURN),
        ),
        ("output", Rule::new().destined_here().jump("publish")),
        published(IPV4, true),
        published(IPV4, false),
        published(IPV6, true),
        published(IPV6, false),
        (
            "forward",
            Rule::new()
                .meta(Meta::InterfaceIn, REG1)
                .meta(Meta::InterfaceOut, REG2)
                .within("same", false)
                .verdict(ACCEPT),
        ),
        (
            "forward",
            Rule::new()
                .meta(Meta::InterfaceIn, REG1)
                .within("internal", false)
                .verdict(DROP),
        ),
        (
            "forward",
            Rule::new()
                .meta(Meta::InterfaceOut, REG1)
                .within("internal", false)
                .verdict(DROP),
        ),
        (
            "forward",
            to_bridge(Rule::new())
                .tracked(Tracked::State, KNOWN)
                .verdict(ACCEPT),
        ),
        (
            "forward",
            to_bridge(Rule::new())
                .tracked(Tracked::Status, WAS_DNAT)
                .verdict(ACCEPT),
        ),
        ("forward", to_bridge(Rule::new()).verdict(DROP)),
        // Out into the world.
        (
            "postrouting",
            from_bridge()
                .meta(Meta::InterfaceOut, REG1)
                .within("bridges", true)
                .masquerade(),
        ),
        // A container that asks a published port of its own network, or of its own: the answer must come back by way of
        // the host. Where it came in is not known here when the bridge itself shows packets to the rules (br_netfilter).
        home(IPV4),
        home(IPV6),
        // The host's own loopback asks a published port.
        (
            "postrouting",
            loopback4(
                to_bridge(Rule::new())
                    .meta(Meta::Family, REG1)
                    .equals(&[IPV4]),
                12,
            )
            .masquerade(),
        ),
    ]
}

/// Makes the table anew in one step, whatever was there.
pub(crate) fn ruleset(table: &str, elements: &[Element]) -> Vec<Message> {
    let chain = |name: &str, kind: &str, hook, priority| {
        nft::new_chain(table, name, Some((kind, hook, priority)))
    };
    let mut messages = vec![
        nft::new_table(table),
        nft::delete_table(table),
        nft::new_table(table),
        chain("guard", "filter", Hook::Prerouting, -300),
        chain("prerouting", "nat", Hook::Prerouting, -100),
        chain("output", "nat", Hook::Output, -100),
        chain("postrouting", "nat", Hook::Postrouting, 100),
        chain("forward", "filter", Hook::Forward, 0),
        nft::new_chain(table, "publish", None),
    ];
    for (id, set) in (1u32..).zip(&SETS) {
        messages.push(nft::new_set(table, set, id));
    }
    for (chain, rule) in rules() {
        messages.push(rule.add(table, chain));
    }
    let mut sorted = elements.to_vec();
    sorted.sort();
    sorted.dedup();
    messages.extend(nft::elements(table, &sorted, true));
    messages
}

/// Takes the table away, whether or not it is there.
pub(crate) fn removal(table: &str) -> Vec<Message> {
    vec![nft::new_table(table), nft::delete_table(table)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(host_ip: Option<&str>) -> Publication {
        Publication {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 0x1234,
            udp: false,
            port: 80,
            ipv4: Some(Ipv4Addr::new(10, 0, 0, 2)),
            ipv6: Some("fd00::2".parse().unwrap()),
        }
    }

    fn sets(host_ip: Option<&str>) -> Vec<&'static str> {
        of_publication(&publication(host_ip))
            .iter()
            .map(|e| e.set)
            .collect()
    }

    #[test]
    fn a_port_is_published_where_it_was_asked_for() {
        assert_eq!(sets(None), ["any4", "any6"]);
        assert_eq!(sets(Some("0.0.0.0")), ["any4"]);
        assert_eq!(sets(Some("::")), ["any6"]);
        assert_eq!(sets(Some("127.0.0.1")), ["one4"]);
        assert_eq!(sets(Some("fd01::5")), ["one6"]);
        let found = of_publication(&publication(Some("127.0.0.1")));
        assert_eq!(found[0].key, [127, 0, 0, 1, 6, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(found[0].data, [10, 0, 0, 2, 0, 80, 0, 0]);
        let mut v4_only = publication(None);
        v4_only.ipv6 = None;
        assert_eq!(of_publication(&v4_only).len(), 1);
    }

    #[test]
    fn keys_are_as_long_as_their_sets_say() {
        let bridge = Bridge {
            name: "gantry0",
            internal: true,
            subnets: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            names: Some((Ipv4Addr::new(10, 0, 0, 1), 1000, 2000)),
        };
        let mut all = of_bridge(&bridge);
        for host_ip in [None, Some("1.2.3.4"), Some("fd01::5")] {
            all.extend(of_publication(&publication(host_ip)));
        }
        let length = |set: &str| match set {
            "bridges" | "internal" => (16, 0),
            "same" => (32, 0),
            "home4" => (20, 0),
            "home6" => (32, 0),
            "names" => (24, 8),
            "any4" => (8, 8),
            "any6" => (8, 20),
            "one4" => (12, 8),
            "one6" => (24, 20),
            other => panic!("{other}"),
        };
        for element in all {
            assert_eq!((element.key.len(), element.data.len()), length(element.set));
        }
    }
}
