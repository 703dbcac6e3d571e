//! What an attach takes before it touches the kernel: addresses, hardware addresses, interface names, host ports.
//!
//! Invariant: whatever is taken here is in [`Undo`] at once, so that an attach which fails at any later step gives it back.

use std::net::IpAddr;

use crate::Error;
use crate::engine::{Engine, SandboxSpec, State, ip_of};
use crate::ipam::Refusal;
use crate::names;
use crate::netlink::nft::Element;
use crate::networks::Net;
use crate::publish::{self, Held};
use crate::schema::{EndpointRecord, PortRecord};

/// What an attach that fails must take back.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    /// Network and address.
    pub(crate) addresses: Vec<(String, IpAddr)>,
    pub(crate) held: Vec<Held>,
    pub(crate) links: Vec<String>,
    pub(crate) pinned: bool,
    pub(crate) elements: Vec<Element>,
}

fn refusal(net: &Net, address: Option<IpAddr>, ipv4: bool, refusal: Refusal) -> Error {
    let network = net.record.name.clone();
    let subnet = if ipv4 {
        &net.record.subnet4
    } else {
        &net.record.subnet6
    }
    .clone();
    let field = if ipv4 {
        "endpoints.ipv4"
    } else {
        "endpoints.ipv6"
    };
    let address = address.map(|ip| ip.to_string()).unwrap_or_default();
    match refusal {
        Refusal::Full => Error::NoAddress { network, subnet },
        Refusal::Taken(owner) => Error::AddressTaken {
            network,
            address,
            owner,
        },
        Refusal::Outside => Error::field(
            field,
            format!("{address} is not in the subnet {subnet} of network {network}"),
        ),
        Refusal::Reserved => Error::field(
            field,
            format!("{address} is the gateway's or the network's own in {subnet}; choose another"),
        ),
    }
}

impl Engine {
    /// Finds the networks and takes addresses on them.
    pub(crate) fn reserve(
        &self,
        state: &mut State,
        spec: &SandboxSpec,
        undo: &mut Undo,
    ) -> Result<Vec<EndpointRecord>, Error> {
        let old = state.sandboxes.get(&spec.id).cloned().unwrap_or_default();
        let mut endpoints: Vec<EndpointRecord> = Vec::new();
        for (number, wish) in spec.endpoints.iter().enumerate() {
            let id = state.find(&wish.network)?;
            if endpoints.iter().any(|other| other.network_id == id) {
                return Err(Error::field(
                    "endpoints",
                    format!("network {} is there twice; name it once", wish.network),
                ));
            }
            let before = old
                .endpoints
                .iter()
                .find(|endpoint| endpoint.network_id == id);
            let (before4, before6) = (
                before.and_then(|e| ip_of(&e.ipv4)),
                before.and_then(|e| ip_of(&e.ipv6)),
            );
            let owners: Vec<(String, String)> = state
                .sandboxes
                .values()
                .filter(|other| other.id != spec.id)
                .flat_map(|other| other.endpoints.iter().map(move |e| (other, e)))
                .filter(|(_, endpoint)| wish.mac.is_some() && endpoint.network_id == id)
                .map(|(other, endpoint)| (endpoint.mac.clone(), other.id.clone()))
                .collect();
            let host = names::veth(&self.config.prefix, &spec.id, number, |name| {
                let mut all = state.sandboxes.values().filter(|other| other.id != spec.id);
                all.any(|other| other.endpoints.iter().any(|e| e.host == name))
            });
            let Some(net) = state.networks.get_mut(&id) else {
                return Err(Error::NoNetwork(wish.network.clone()));
            };
            let wanted = wish.ipv4.or(before4);
            let ipv4 = match net.pool4.take(wanted, &spec.id) {
                Ok(ip) => ip,
                Err(refused) => return Err(refusal(net, wanted, true, refused)),
            };
            if before4 != Some(ipv4) {
                undo.addresses.push((id.clone(), ipv4));
            }
            let wanted = wish.ipv6.or(before6);
            let ipv6 = match net.pool6.as_mut().map(|pool| pool.take(wanted, &spec.id)) {
                Some(Ok(ip)) => Some(ip),
                Some(Err(refused)) => return Err(refusal(net, wanted, false, refused)),
                None if wish.ipv6.is_some() => {
                    return Err(Error::field(
                        "endpoints.ipv6",
                        format!("network {} has no IPv6", net.record.name),
                    ));
                }
                None => None,
            };
            if let Some(ipv6) = ipv6.filter(|ip| before6 != Some(*ip)) {
                undo.addresses.push((id.clone(), ipv6));
            }
            let mac = names::show_mac(wish.mac.unwrap_or_else(|| names::mac_of(ipv4)));
            if let Some((_, owner)) = owners.iter().find(|(other, _)| *other == mac) {
                return Err(Error::AddressTaken {
                    network: net.record.name.clone(),
                    address: mac,
                    owner: owner.clone(),
                });
            }
            endpoints.push(net.endpoint(number, host, mac, ipv4, ipv6, &wish.aliases));
        }
        Ok(endpoints)
    }
}

/// Takes the host ports. A sandbox that is on internal networks alone publishes none.
pub(crate) fn hold(
    state: &State,
    spec: &SandboxSpec,
    endpoints: &[EndpointRecord],
    undo: &mut Undo,
) -> Result<Vec<PortRecord>, Error> {
    if state.published(endpoints).is_none() {
        if !spec.ports.is_empty() {
            tracing::info!(
                id = spec.id,
                "ports are not published: no network leads out"
            );
        }
        return Ok(Vec::new());
    }
    for (at, port) in spec.ports.iter().enumerate() {
        if spec.ports[..at].contains(port) && port.host_port != 0 {
            continue;
        }
        let others = state
            .sandboxes
            .values()
            .filter(|other| other.live && other.id != spec.id);
        let mut taken = others.flat_map(|other| other.ports.iter().map(move |p| (p, other)));
        if let Some((_, owner)) = taken.find(|(other, _)| publish::collide(port, other)) {
            let owner = if owner.name.is_empty() {
                &owner.id
            } else {
                &owner.name
            };
            return Err(Error::PortTaken {
                port: publish::show(port),
                owner: owner.clone(),
            });
        }
        if undo
            .held
            .iter()
            .any(|held| publish::collide(port, &held.port))
        {
            return Err(Error::field(
                "ports",
                format!(
                    "host port {} is there twice; name it once",
                    publish::show(port)
                ),
            ));
        }
        undo.held.push(publish::hold(port)?);
    }
    Ok(undo.held.iter().map(|held| held.port.clone()).collect())
}
