//! The names of one network, and what is answered to a question.
//!
//! Invariants: a name that somebody on the network has is answered from here for every type of record, so that no server
//! of the world can answer for it; a network without a way out passes nothing on. Nothing here does IO but reading which
//! servers the host uses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::resolv;

/// Seconds that an answer may be kept: addresses change when containers start again.
const KEEP: u32 = 5;

/// A sandbox on the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// The first is the one that its addresses are told to have.
    pub(crate) names: Vec<String>,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Where it wants other names to be asked for; empty = where everybody does.
    pub(crate) servers: Vec<IpAddr>,
}

/// The names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Zone {
    network: String,
    /// No way out.
    internal: bool,
    upstreams: Vec<SocketAddr>,
    members: HashMap<String, Member>,
    names: HashMap<String, BTreeSet<String>>,
    addresses: BTreeMap<IpAddr, String>,
}

/// What is done with a question.
#[derive(Debug)]
pub(crate) enum Reply {
    Known(Message),
    Elsewhere(Vec<SocketAddr>),
}

impl Zone {
    pub(crate) fn new(network: &str, internal: bool, upstreams: &[SocketAddr]) -> Zone {
        Zone {
            network: network.to_lowercase(),
            internal,
            upstreams: upstreams.to_vec(),
            ..Zone::default()
        }
    }

    pub(crate) fn insert(&mut self, id: &str, mut member: Member) {
        self.remove(id);
        for name in &mut member.names {
            *name = name.to_lowercase();
            self.names
                .entry(name.clone())
                .or_default()
                .insert(id.to_owned());
        }
        let addresses = [member.ipv4.map(IpAddr::V4), member.ipv6.map(IpAddr::V6)];
        for address in addresses.into_iter().flatten() {
            self.addresses.insert(address, id.to_owned());
        }
        self.members.insert(id.to_owned(), member);
    }

    pub(crate) fn remove(&mut self, id: &str) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        for name in &member.names {
            if let Some(ids) = self.names.get_mut(name) {
                ids.remove(id);
                if ids.is_empty() {
                    self.names.remove(name);
                }
            }
        }
        self.addresses.retain(|_, owner| owner != id);
    }

    fn find(&self, name: &str) -> Option<&BTreeSet<String>> {
        self.names.get(name).or_else(|| {
            let plain = name.strip_suffix(&self.network)?.strip_suffix('.')?;
            self.names.get(plain)
        })
    }

    fn name_of(&self, address: IpAddr) -> Option<Name> {
        let member = self.members.get(self.addresses.get(&address)?)?;
        let name = member.names.first()?;
        Name::from_ascii(format!("{name}.{}.", self.network)).ok()
    }

    fn addresses_of(&self, query: &Message, question: &Query, ids: &BTreeSet<String>) -> Message {
        let mut reply = response(query);
        for member in ids.iter().filter_map(|id| self.members.get(id)) {
            let data = match question.query_type() {
                RecordType::A => member.ipv4.map(|ip| RData::A(A(ip))),
                RecordType::AAAA => member.ipv6.map(|ip| RData::AAAA(AAAA(ip))),
                _ => None,
            };
            if let Some(data) = data {
                reply.add_answer(record(question, data));
            }
        }
        reply
    }
}

/// Answers a question that came to one network's server. Who asks hears the names of every network that he is on. None
/// for what is no question.
pub(crate) fn ask(
    zones: &BTreeMap<String, Zone>,
    network: &str,
    query: &Message,
    from: IpAddr,
) -> Option<Reply> {
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let [question] = query.queries.as_slice() else {
        return Some(Reply::Known(refusal(query, ResponseCode::FormErr)));
    };
    if query.metadata.op_code != OpCode::Query {
        return Some(Reply::Known(refusal(query, ResponseCode::NotImp)));
    }
    let own = zones.get(network)?;
    let asker = own.addresses.get(&from);
    let others = zones.iter().filter(|(id, zone)| {
        *id != network && asker.is_some_and(|asker| zone.members.contains_key(asker))
    });
    let reach: Vec<&Zone> = [own]
        .into_iter()
        .chain(others.map(|(_, zone)| zone))
        .collect();
    let text = question.name().to_ascii().to_lowercase();
    let text = text.trim_end_matches('.');
    if let Some((zone, ids)) = reach.iter().find_map(|zone| Some((zone, zone.find(text)?))) {
        return Some(Reply::Known(zone.addresses_of(query, question, ids)));
    }
    if question.query_type() == RecordType::PTR
        && let Some(address) = reverse(text)
        && let Some(name) = reach.iter().find_map(|zone| zone.name_of(address))
    {
        let mut reply = response(query);
        reply.add_answer(record(question, RData::PTR(PTR(name))));
        return Some(Reply::Known(reply));
    }
    if reach.iter().all(|zone| zone.internal) {
        return Some(Reply::Known(refusal(query, ResponseCode::NXDomain)));
    }
    let given = asker
        .and_then(|id| own.members.get(id))
        .map_or(&[][..], |member| &member.servers);
    Some(Reply::Elsewhere(resolv::upstreams(&own.upstreams, given)))
}

fn record(question: &Query, data: RData) -> Record {
    Record::from_rdata(question.name().clone(), KEEP, data)
}

fn response(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        reply.set_edns(Edns::new());
    }
    reply
}

pub(super) fn refusal(query: &Message, code: ResponseCode) -> Message {
    let mut reply = response(query);
    reply.metadata.response_code = code;
    reply
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(parts) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<&str> = parts.rsplit('.').collect();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let parts = name.strip_suffix(".ip6.arpa")?;
    let digits: String = parts.rsplit('.').collect();
    let bits = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("Back", false, &["192.0.2.1:53".parse().unwrap()]);
        let member = |names: &[&str], last: u8| Member {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            ipv4: Some(Ipv4Addr::new(10, 0, 0, last)),
            ipv6: None,
            servers: vec![],
        };
        zone.insert("a", member(&["db", "store", "0123456789ab"], 2));
        zone.insert("b", member(&["Web", "store"], 3));
        zone
    }

    fn asked(zone: &Zone, name: &str, kind: RecordType) -> Reply {
        let zones = BTreeMap::from([("n".to_owned(), zone.clone())]);
        asked_of(&zones, name, kind)
    }

    fn asked_of(zones: &BTreeMap<String, Zone>, name: &str, kind: RecordType) -> Reply {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        ask(zones, "n", &query, "10.0.0.2".parse().unwrap()).unwrap()
    }

    fn known(zone: &Zone, name: &str, kind: RecordType) -> Vec<String> {
        match asked(zone, name, kind) {
            Reply::Known(message) => {
                assert_eq!(message.metadata.response_code, ResponseCode::NoError);
                message
                    .answers
                    .iter()
                    .map(|answer| answer.data.to_string())
                    .collect()
            }
            Reply::Elsewhere(_) => panic!("{name} is not known"),
        }
    }

    #[test]
    fn names_aliases_and_addresses_are_known() {
        let zone = zone();
        for name in ["db.", "DB.", "0123456789ab.", "db.back."] {
            assert_eq!(known(&zone, name, RecordType::A), ["10.0.0.2"], "{name}");
        }
        assert_eq!(
            known(&zone, "store.", RecordType::A),
            ["10.0.0.2", "10.0.0.3"]
        );
        assert!(known(&zone, "db.", RecordType::AAAA).is_empty());
        assert!(known(&zone, "web.", RecordType::MX).is_empty());
        let back = known(&zone, "3.0.0.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(back, ["web.back."]);
    }

    #[test]
    fn what_left_or_is_foreign_is_asked_elsewhere() {
        let mut zone = zone();
        zone.remove("a");
        assert_eq!(known(&zone, "store.", RecordType::A), ["10.0.0.3"]);
        for name in ["db.", "example.com.", "back."] {
            assert!(
                matches!(asked(&zone, name, RecordType::A), Reply::Elsewhere(servers) if servers.len() == 1)
            );
        }
        let internal = Zone::new("x", true, &[]);
        assert!(matches!(
            asked(&internal, "example.com.", RecordType::A),
            Reply::Known(message) if message.metadata.response_code == ResponseCode::NXDomain
        ));
        let mut own = Zone::new("x", false, &[]);
        own.insert(
            "a",
            Member {
                ipv4: Some(Ipv4Addr::new(10, 0, 0, 2)),
                servers: vec!["192.0.2.9".parse().unwrap()],
                ..Member::default()
            },
        );
        let Reply::Elsewhere(servers) = asked(&own, "example.com.", RecordType::A) else {
            panic!("it is not known");
        };
        assert_eq!(servers, ["192.0.2.9:53".parse().unwrap()]);
    }

    #[test]
    fn who_is_on_two_networks_hears_the_names_of_both() {
        let mut other = Zone::new("front", true, &[]);
        let on_it = |last| Member {
            names: vec!["web".into(), "cache".into()],
            ipv4: Some(Ipv4Addr::new(10, 9, 0, last)),
            ..Member::default()
        };
        other.insert("c", on_it(7));
        let mut zones = BTreeMap::from([("n".to_owned(), zone()), ("o".to_owned(), other)]);
        assert!(matches!(
            asked_of(&zones, "cache.", RecordType::A),
            Reply::Elsewhere(_)
        ));
        zones.get_mut("o").unwrap().insert("a", on_it(8));
        let answers = |name| match asked_of(&zones, name, RecordType::A) {
            Reply::Known(message) => message.answers.len(),
            Reply::Elsewhere(_) => 0,
        };
        assert_eq!((answers("cache."), answers("web.")), (2, 1));
    }

    #[test]
    fn reverse_names() {
        assert_eq!(
            reverse("2.0.0.10.in-addr.arpa"),
            Some("10.0.0.2".parse().unwrap())
        );
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(six), Some("fd00::2".parse().unwrap()));
        assert_eq!(reverse("x.in-addr.arpa"), None);
        assert_eq!(reverse("1.ip6.arpa"), None);
    }
}
