//! The rtnetlink messages that we speak: links, addresses, routes (rtnetlink(7), linux/if_link.h, linux/veth.h).
//!
//! Invariant: makes and reads messages, sends none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{CREATE, DUMP, EXCLUSIVE, Message, attributes, u32_at};
use crate::cidr::Cidr;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_PEER: u16 = 1;
const BRIDGE_PORT_MODE: u16 = 4;

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A bridge that is up.
pub(crate) fn new_bridge(name: &str, mac: [u8; 6], mtu: u32) -> Message {
    let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_header(0, UP, UP));
    message
        .text(IFLA_IFNAME, name)
        .number(IFLA_MTU, mtu)
        .attr(IFLA_ADDRESS, &mac)
        .nest(IFLA_LINKINFO, |info| {
            info.text(INFO_KIND, "bridge");
        });
    message
}

/// A pair of interfaces: one on a bridge here and up, the other inside a namespace and down, since the kernel does not
/// let the other end go up before both are there. One queue each: the kernel would make one a processor, each with its
/// entries in sysfs, and an interface without a queue discipline gains nothing by them.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a str,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    pub(crate) inside: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) namespace: BorrowedFd<'a>,
}

pub(crate) fn new_veth(veth: &Veth<'_>) -> Message {
    let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_header(0, UP, UP));
    message
        .text(IFLA_IFNAME, veth.host)
        .number(IFLA_MTU, veth.mtu)
        .number(IFLA_MASTER, veth.bridge)
        .number(IFLA_NUM_TX_QUEUES, 1)
        .number(IFLA_NUM_RX_QUEUES, 1)
        .nest(IFLA_LINKINFO, |info| {
            info.text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
                data.headed(VETH_PEER, &link_header(0, 0, 0), |peer| {
                    // A descriptor's number is never negative.
                    let namespace = veth.namespace.as_raw_fd().unsigned_abs();
                    peer.text(IFLA_IFNAME, veth.inside)
                        .number(IFLA_MTU, veth.mtu)
                        .attr(IFLA_ADDRESS, &veth.mac)
                        .number(IFLA_NUM_TX_QUEUES, 1)
                        .number(IFLA_NUM_RX_QUEUES, 1)
                        .number(IFLA_NET_NS_FD, namespace);
                });
            });
        });
    message
}

/// Lets a bridge send packets back to where they came from: a container that asks a port published by itself.
pub(crate) fn set_hairpin(name: &str) -> Message {
    let mut message = Message::new(NEW_LINK, 0, &link_header(0, 0, 0));
    message.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.text(INFO_SLAVE_KIND, "bridge")
            .nest(INFO_SLAVE_DATA, |data| {
                data.attr(BRIDGE_PORT_MODE, &[1]);
            });
    });
    message
}

pub(crate) fn set_up(index: u32) -> Message {
    Message::new(NEW_LINK, 0, &link_header(index, UP, UP))
}

pub(crate) fn set_master(name: &str, bridge: u32) -> Message {
    let mut message = Message::new(NEW_LINK, 0, &link_header(0, UP, UP));
    message.text(IFLA_IFNAME, name).number(IFLA_MASTER, bridge);
    message
}

pub(crate) fn delete_link(name: &str) -> Message {
    let mut message = Message::new(DELETE_LINK, 0, &link_header(0, 0, 0));
    message.text(IFLA_IFNAME, name);
    message
}

pub(crate) fn get_link(name: &str) -> Message {
    let mut message = Message::new(GET_LINK, 0, &link_header(0, 0, 0));
    message.text(IFLA_IFNAME, name);
    message
}

pub(crate) fn list_links() -> Message {
    Message::new(GET_LINK, DUMP, &link_header(0, 0, 0))
}

/// An interface as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) master: u32,
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value)
        .trim_end_matches('\0')
        .to_owned()
}

pub(crate) fn parse_link(body: &[u8]) -> Link {
    let mut link = Link {
        index: u32_at(body, 4),
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_LINKINFO => {
                link.kind = attributes(value)
                    .find(|(kind, _)| *kind == INFO_KIND)
                    .map(|(_, value)| text(value))
                    .unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn to_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value)
            .ok()
            .map(|o| Ipv4Addr::from(o).into()),
        16 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|o| Ipv6Addr::from(o).into()),
        _ => None,
    }
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection: the address is good at once, and we know that it is unique.
const NODAD: u32 = 2;

pub(crate) fn new_address(index: u32, address: Cidr) -> Message {
    let ip = address.address();
    let mut header = [0; 8];
    header[0] = family(ip);
    header[1] = address.length();
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, CREATE | EXCLUSIVE, &header);
    message
        .attr(IFA_LOCAL, &octets(ip))
        .attr(IFA_ADDRESS, &octets(ip))
        .number(IFA_FLAGS, NODAD);
    if address.is_ipv4() && address.length() < 31 {
        message.attr(IFA_BROADCAST, &octets(address.nth(address.last())));
    }
    message
}

pub(crate) fn list_addresses() -> Message {
    Message::new(GET_ADDRESS, DUMP, &[0; 8])
}

/// An address and the index of its interface.
pub(crate) fn parse_address(body: &[u8]) -> Option<(u32, Cidr)> {
    let length = *body.get(1)?;
    let find = |wanted| {
        attributes(body.get(8..).unwrap_or_default())
            .find(|(kind, _)| *kind == wanted)
            .and_then(|(_, value)| to_address(value))
    };
    let address = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    Some((u32_at(body, 4), Cidr::new(address, length)?))
}

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;

pub(crate) fn default_route(gateway: IpAddr, interface: u32) -> Message {
    let header = [
        family(gateway),
        0,
        0,
        0,
        TABLE_MAIN,
        PROTOCOL_BOOT,
        0,
        UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(NEW_ROUTE, CREATE | EXCLUSIVE, &header);
    message
        .attr(RTA_GATEWAY, &octets(gateway))
        .number(RTA_OIF, interface);
    message
}

pub(crate) fn list_routes() -> Message {
    Message::new(GET_ROUTE, DUMP, &[0; 12])
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Cidr,
    pub(crate) interface: u32,
    /// It leads to a router, not to the network itself.
    pub(crate) via: bool,
}

/// None for the default route and for what is no plain route.
pub(crate) fn parse_route(body: &[u8]) -> Option<Route> {
    let (length, table, kind) = (*body.get(1)?, *body.get(4)?, *body.get(7)?);
    if length == 0 || table != TABLE_MAIN || kind != UNICAST {
        return None;
    }
    let (mut to, mut interface, mut via) = (None, 0, false);
    for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
        match kind {
            RTA_DST => to = to_address(value),
            RTA_OIF => interface = u32_at(value, 0),
            RTA_GATEWAY => via = true,
            _ => {}
        }
    }
    Some(Route {
        to: Cidr::new(to?, length)?,
        interface,
        via,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Connection;
    use gantry_sys::netns::Family;

    #[test]
    fn the_kernel_tells_of_the_loopback() {
        let mut kernel = Connection::open(Family::Route).unwrap();
        let found = kernel.query(get_link("lo")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(parse_link(&found[0]).index, 1);
        let all = kernel.query(list_links()).unwrap();
        assert!(all.iter().any(|body| parse_link(body).name == "lo"));
        let refused = kernel.query(get_link("nosuchlink")).unwrap_err();
        assert!(refused.is(&[super::super::ENODEV]), "{refused}");
    }
}
