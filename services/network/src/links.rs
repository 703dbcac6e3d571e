//! Interfaces, addresses and rules as the kernel is made to have them: the executor of what was decided elsewhere.
//!
//! Invariants: what is there already is a success, and so is the removal of what is gone; a bridge that this makes is
//! ready for use: addresses, settings, forwarding.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use gantry_sys::netns::Family;

use crate::Error;
use crate::cidr::Cidr;
use crate::names;
use crate::netlink::route::{self, Link, Veth};
use crate::netlink::{Connection, EEXIST, ENODEV, ENOENT, Message, Refused, conntrack};
use crate::schema::{EndpointRecord, NetworkRecord};
use crate::sysctl;

/// Connections to the host's kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    route: Connection,
    filter: Connection,
}

/// What of the host's addresses and routes a new subnet must not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occupied {
    pub(crate) subnet: Cidr,
    /// A route to a router: a narrower subnet that somebody asks for may be cut out of it.
    pub(crate) via: bool,
}

/// A subnet's address with the subnet's length; None for an empty text.
pub(crate) fn in_subnet(address: &str, subnet: &str) -> Option<Cidr> {
    let length = subnet.parse::<Cidr>().ok()?.length();
    Cidr::new(address.parse().ok()?, length)
}

fn unless(refused: Refused, fine: &[i32]) -> Result<(), Refused> {
    if refused.is(fine) {
        Ok(())
    } else {
        Err(refused)
    }
}

impl Kernel {
    pub(crate) fn open() -> Result<Kernel, Error> {
        let open = |family| {
            Connection::open(family).map_err(Error::kernel("open a connection to the kernel"))
        };
        Ok(Kernel {
            route: open(Family::Route)?,
            filter: open(Family::Netfilter)?,
        })
    }

    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        match self.route.query(route::get_link(name)) {
            Ok(found) => Ok(found.first().map(|body| route::parse_link(body))),
            Err(refused) if refused.is(&[ENODEV]) => Ok(None),
            Err(refused) => Err(Error::kernel(format!("look at interface {name}"))(refused)),
        }
    }

    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let found = self.route.query(route::list_links());
        let found = found.map_err(Error::kernel("list interfaces"))?;
        Ok(found.iter().map(|body| route::parse_link(body)).collect())
    }

    /// Where the host's own addresses and routes lead, those by way of `ours` left out.
    pub(crate) fn occupied(&mut self, ours: &[u32]) -> Result<Vec<Occupied>, Error> {
        let mut list = |message| {
            let found = self.route.query(message);
            found.map_err(Error::kernel("list addresses and routes"))
        };
        let mut occupied = Vec::new();
        for body in list(route::list_addresses())? {
            match route::parse_address(&body) {
                Some((index, address)) if !ours.contains(&index) => occupied.push(Occupied {
                    subnet: address.network(),
                    via: false,
                }),
                _ => {}
            }
        }
        for body in list(route::list_routes())? {
            match route::parse_route(&body) {
                Some(route) if !ours.contains(&route.interface) => occupied.push(Occupied {
                    subnet: route.to.network(),
                    via: route.via,
                }),
                _ => {}
            }
        }
        Ok(occupied)
    }

    /// Makes a network's bridge, or finds it; gives its index.
    pub(crate) fn ensure_bridge(
        &mut self,
        network: &NetworkRecord,
        ipv6: bool,
    ) -> Result<u32, Error> {
        let name = &network.bridge;
        let action = || format!("make bridge {name} of network {}", network.name);
        let index = match self.link(name)? {
            Some(link) => link.index,
            None => {
                let gateway = network.gateway4.parse::<IpAddr>().ok();
                let mac = gateway.map_or([2, 0, 0, 0, 0, 1], names::mac_of);
                let made = self
                    .route
                    .ask(vec![route::new_bridge(name, mac, network.mtu)]);
                made.map_err(Error::kernel(action()))?;
                let link = self.link(name)?;
                link.ok_or_else(|| {
                    Error::kernel(action())(std::io::Error::from(std::io::ErrorKind::NotFound))
                })?
                .index
            }
        };
        sysctl::set(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        for setting in ["accept_dad", "accept_ra"] {
            sysctl::try_set(&format!("net/ipv6/conf/{name}/{setting}"), "0");
        }
        let mut messages = vec![route::set_up(index)];
        let addresses = [
            in_subnet(&network.gateway4, &network.subnet4),
            in_subnet(&network.gateway6, &network.subnet6).filter(|_| ipv6),
        ];
        messages.extend(
            addresses
                .into_iter()
                .flatten()
                .map(|address| route::new_address(index, address)),
        );
        for verdict in self.route.each(messages).map_err(Error::kernel(action()))? {
            verdict
                .or_else(|refused| unless(refused, &[EEXIST]))
                .map_err(Error::kernel(action()))?;
        }
        sysctl::forward(ipv6)?;
        Ok(index)
    }

    /// Takes interfaces away; those that are gone are fine.
    pub(crate) fn delete_links(&mut self, names: &[String]) -> Result<(), Error> {
        delete(&mut self.route, names)
    }

    /// Makes the pair of interfaces of an endpoint, one end on the bridge and one inside.
    pub(crate) fn plug(
        &mut self,
        endpoint: &EndpointRecord,
        bridge: u32,
        mtu: u32,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), Refused> {
        let veth = Veth {
            host: &endpoint.host,
            bridge,
            mtu,
            inside: &endpoint.interface,
            mac: names::parse_mac(&endpoint.mac).unwrap_or([2, 0, 0, 0, 0, 2]),
            namespace,
        };
        self.route.ask(vec![route::new_veth(&veth)])
    }

    /// Lets packets return by the interface on which they came to its bridge.
    pub(crate) fn set_hairpin(&mut self, name: &str) -> Result<(), Error> {
        self.route
            .ask(vec![route::set_hairpin(name)])
            .map_err(Error::kernel(format!("let packets return by {name}")))
    }

    /// Puts an interface on a bridge (again).
    pub(crate) fn set_master(&mut self, name: &str, bridge: u32) -> Result<(), Error> {
        self.route
            .ask(vec![route::set_master(name, bridge)])
            .map_err(Error::kernel(format!("put {name} on its bridge")))
    }

    /// Carries out an nft batch.
    pub(crate) fn filter(&mut self, messages: Vec<Message>) -> Result<(), Error> {
        self.filter
            .batch(messages)
            .map_err(Error::kernel("change the nft table"))
    }

    /// Forgets the datagram flows to host ports. Flows that stay are a nuisance, not a failure.
    pub(crate) fn forget_flows(&mut self, ports: impl Iterator<Item = u16>) {
        for port in ports {
            for ipv4 in [true, false] {
                let forgotten = self.filter.ask(vec![conntrack::forget_udp(ipv4, port)]);
                if let Err(refused) = forgotten.or_else(|refused| unless(refused, &[ENOENT])) {
                    tracing::debug!(%refused, port, "datagram flows were not forgotten");
                }
            }
        }
    }
}

/// Takes interfaces away; those that are gone are fine.
pub(crate) fn delete(route: &mut Connection, names: &[String]) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let action = || format!("remove {}", names.join(", "));
    let messages = names.iter().map(|name| route::delete_link(name)).collect();
    let verdicts = route.each(messages).map_err(Error::kernel(action()))?;
    verdicts
        .into_iter()
        .try_for_each(|verdict| verdict.or_else(|refused| unless(refused, &[ENODEV])))
        .map_err(Error::kernel(action()))
}

/// Gives an endpoint its addresses and, where it leads out, the default routes; `inside` speaks to its namespace.
pub(crate) fn configure(
    inside: &mut Connection,
    endpoint: &EndpointRecord,
    routes: &[IpAddr],
) -> Result<(), Error> {
    let action = || {
        format!(
            "set up {} on network {}",
            endpoint.interface, endpoint.network
        )
    };
    let found = inside.query(route::get_link(&endpoint.interface));
    let found = found.map_err(Error::kernel(action()))?;
    let index = found
        .first()
        .map_or(0, |body| route::parse_link(body).index);
    let addresses = [&endpoint.ipv4, &endpoint.ipv6];
    let addresses = addresses.iter().filter_map(|text| text.parse().ok());
    let mut messages = vec![route::set_up(index)];
    messages.extend(addresses.map(|address| route::new_address(index, address)));
    messages.extend(
        routes
            .iter()
            .map(|gateway| route::default_route(*gateway, index)),
    );
    for verdict in inside.each(messages).map_err(Error::kernel(action()))? {
        verdict
            .or_else(|refused| unless(refused, &[EEXIST]))
            .map_err(Error::kernel(action()))?;
    }
    Ok(())
}

/// The default routes by way of each endpoint: of each family the first one that leads out.
pub(crate) fn default_routes(endpoints: &[EndpointRecord]) -> Vec<Vec<IpAddr>> {
    let (mut have4, mut have6) = (false, false);
    endpoints
        .iter()
        .map(|endpoint| {
            let pick = |text: &str, have: &mut bool| {
                let gateway = text.parse().ok().filter(|_| !*have);
                *have |= gateway.is_some();
                gateway
            };
            let v4 = pick(&endpoint.gateway4, &mut have4);
            let v6 = pick(&endpoint.gateway6, &mut have6);
            v4.into_iter().chain(v6).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_way_out_of_each_family_is_taken() {
        let endpoint = |gateway4: &str, gateway6: &str| EndpointRecord {
            gateway4: gateway4.into(),
            gateway6: gateway6.into(),
            ..EndpointRecord::default()
        };
        let routes = default_routes(&[
            endpoint("", ""),
            endpoint("10.0.0.1", ""),
            endpoint("10.1.0.1", "fd00::1"),
        ]);
        let shown: Vec<usize> = routes.iter().map(Vec::len).collect();
        assert_eq!(shown, [0, 1, 1]);
        assert_eq!(routes[2], ["fd00::1".parse::<IpAddr>().unwrap()]);
    }
}
