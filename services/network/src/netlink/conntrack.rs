//! Forgetting datagram flows: the kernel keeps one on its old way as long as it lives, so a port that is published or
//! withdrawn must take the flows to it away (linux/netfilter/nfnetlink_conntrack.h).
//!
//! Invariant: only flows to the given ports are named; a kernel without filters forgets nothing.

use super::Message;

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE.
const DELETE: u16 = (1 << 8) | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
const FILTER: u16 = 25;
const FILTER_ORIG: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// Compare the protocol's number and the destination port.
const BY_NUMBER_AND_PORT: u32 = (1 << 3) | (1 << 5);
const UDP: u8 = 17;

/// Forgets the IPv4 or IPv6 flows whose first datagram went to `port`.
pub(crate) fn forget_udp(ipv4: bool, port: u16) -> Message {
    let family = if ipv4 { 2 } else { 10 };
    let mut message = Message::new(DELETE, 0, &[family, 0, 0, 0]);
    message
        .nest(TUPLE_ORIG, |tuple| {
            tuple.nest(TUPLE_PROTO, |proto| {
                proto
                    .attr(PROTO_NUMBER, &[UDP])
                    .attr(PROTO_DST_PORT, &port.to_be_bytes());
            });
        })
        .nest(FILTER, |filter| {
            filter
                .number(FILTER_ORIG, BY_NUMBER_AND_PORT)
                .number(FILTER_REPLY, 0);
        });
    message
}
