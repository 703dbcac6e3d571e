//! Which subnets and gateways a new network gets.
//!
//! Invariants: what is chosen overlaps no network and nothing that the host has; what is asked for may only be cut out
//! of a wider route to a router. Nothing here does IO.

use std::net::IpAddr;

use crate::Error;
use crate::cidr::Cidr;
use crate::links::Occupied;
use crate::networks::NetworkSpec;

const LENGTH4: u8 = 24;
const LENGTH6: u8 = 64;

/// What a new network is chosen against.
pub(crate) struct Wish<'a> {
    pub(crate) name: &'a str,
    pub(crate) nets: &'a [(Cidr, &'a String)],
    pub(crate) host: &'a [Occupied],
    pub(crate) spec: &'a NetworkSpec,
}

impl Wish<'_> {
    /// Subnet and gateway of a family; None when neither a subnet is given nor the pool has one.
    pub(crate) fn choose(
        &self,
        ipv4: bool,
        pool: Option<Cidr>,
    ) -> Result<Option<(Cidr, IpAddr)>, Error> {
        let mut given = self
            .spec
            .subnets
            .iter()
            .filter(|subnet| subnet.is_ipv4() == ipv4);
        let gateway = self
            .spec
            .gateways
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == ipv4);
        let subnet = match (given.next(), given.next()) {
            (Some(_), Some(second)) => {
                return Err(Error::field(
                    "subnets",
                    format!(
                        "{second} is the second of its family; give one IPv4 and one IPv6 at most"
                    ),
                ));
            }
            (Some(subnet), None) => Some(self.check(subnet.network())?),
            (None, _) => {
                let avoid: Vec<Cidr> = self
                    .nets
                    .iter()
                    .map(|(subnet, _)| *subnet)
                    .chain(self.host.iter().map(|occupied| occupied.subnet))
                    .collect();
                pool.and_then(|pool| pool.carve(if ipv4 { LENGTH4 } else { LENGTH6 }, &avoid))
            }
        };
        Ok(subnet.map(|subnet| (subnet, gateway.unwrap_or_else(|| subnet.nth(1)))))
    }

    fn check(&self, subnet: Cidr) -> Result<Cidr, Error> {
        if subnet.last() < 3 {
            return Err(Error::field(
                "subnets",
                format!("{subnet} has no room for a gateway and a container; use a /30 or larger"),
            ));
        }
        let overlap = |other: String| Error::Overlap {
            network: self.name.to_owned(),
            subnet: subnet.to_string(),
            other,
        };
        if let Some((other, name)) = self.nets.iter().find(|(other, _)| other.overlaps(&subnet)) {
            return Err(overlap(format!("{other} of network {name}")));
        }
        let clash = |occupied: &&Occupied| {
            let wider = occupied.subnet.length() < subnet.length();
            occupied.subnet.overlaps(&subnet) && !(occupied.via && wider)
        };
        if let Some(occupied) = self.host.iter().find(clash) {
            return Err(overlap(format!("{} of this host", occupied.subnet)));
        }
        Ok(subnet)
    }

    pub(crate) fn check_gateways(&self, subnet4: Cidr, subnet6: Option<Cidr>) -> Result<(), Error> {
        for gateway in &self.spec.gateways {
            let subnet = if gateway.is_ipv4() {
                Some(subnet4)
            } else {
                subnet6
            };
            let fits = subnet.is_some_and(|subnet| {
                let at = subnet.position(*gateway);
                subnet.contains(*gateway) && at != 0 && !(subnet.is_ipv4() && at == subnet.last())
            });
            if !fits {
                let subnet = subnet
                    .map(|s| s.to_string())
                    .unwrap_or_else(|| "no subnet".into());
                return Err(Error::field(
                    "gateways",
                    format!("{gateway} is no address for a gateway in {subnet}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn choose(subnet: &str, gateways: &[&str]) -> Result<String, Error> {
        let other = "other".to_owned();
        let nets = [(net("10.1.0.0/24"), &other)];
        let host = [
            Occupied {
                subnet: net("10.2.0.0/16"),
                via: false,
            },
            Occupied {
                subnet: net("10.0.0.0/8"),
                via: true,
            },
        ];
        let spec = NetworkSpec {
            subnets: subnet.parse().into_iter().collect(),
            gateways: gateways.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..NetworkSpec::default()
        };
        let wish = Wish {
            name: "new",
            nets: &nets,
            host: &host,
            spec: &spec,
        };
        let chosen = wish.choose(true, Some(net("172.16.0.0/20")))?;
        let (subnet, gateway) = chosen.unwrap();
        wish.check_gateways(subnet, None)?;
        Ok(format!("{subnet} {gateway}"))
    }

    #[test]
    fn free_subnets_are_chosen_and_clashes_named() {
        assert_eq!(choose("", &[]).unwrap(), "172.16.0.0/24 172.16.0.1");
        assert_eq!(
            choose("10.3.0.0/24", &["10.3.0.9"]).unwrap(),
            "10.3.0.0/24 10.3.0.9"
        );
        for taken in ["10.1.0.128/25", "10.2.3.0/24", "10.0.0.0/8"] {
            assert!(
                matches!(choose(taken, &[]), Err(Error::Overlap { .. })),
                "{taken}"
            );
        }
        for gateway in ["10.4.0.1", "10.3.0.0", "10.3.0.255", "fd00::1"] {
            assert!(matches!(
                choose("10.3.0.0/24", &[gateway]),
                Err(Error::Field { .. })
            ));
        }
        assert!(choose("10.3.0.0/31", &[]).is_err());
    }
}
