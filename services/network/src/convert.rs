//! Wire values to plain ones and back, at the border only. What is no address, port or name is refused here.

use std::net::IpAddr;

use gantry_proto::network as pb;

use crate::engine::{EndpointSpec, SandboxSpec};
use crate::networks::{FOREIGN, NetworkSpec, Told};
use crate::schema::{EndpointRecord, PortRecord, SandboxRecord};
use crate::{Error, names};

fn ip(field: &'static str, text: &str) -> Result<IpAddr, Error> {
    text.parse()
        .map_err(|_| Error::field(field, format!("{text:?} is no IP address")))
}

fn of_family(field: &'static str, text: &str, ipv4: bool) -> Result<Option<IpAddr>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = ip(field, text)?;
    if address.is_ipv4() != ipv4 {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        return Err(Error::field(
            field,
            format!("{text:?} is no {family} address"),
        ));
    }
    Ok(Some(address))
}

pub(crate) fn from_create(wire: pb::CreateNetworkRequest) -> Result<NetworkSpec, Error> {
    let subnet = |text: &String| {
        text.parse().map_err(|()| {
            Error::field(
                "subnets",
                format!("{text:?} is no network; write one like 10.5.0.0/24"),
            )
        })
    };
    Ok(NetworkSpec {
        name: wire.name,
        driver: wire.driver,
        subnets: wire.subnets.iter().map(subnet).collect::<Result<_, _>>()?,
        gateways: wire
            .gateways
            .iter()
            .map(|text| ip("gateways", text))
            .collect::<Result<_, _>>()?,
        internal: wire.internal,
        mtu: wire.mtu,
        labels: wire.labels,
        disable_ipv6: wire.disable_ipv6,
    })
}

fn from_endpoint(wire: pb::EndpointRequest) -> Result<EndpointSpec, Error> {
    let mac = match wire.mac.as_str() {
        "" => None,
        text => Some(names::parse_mac(&text.to_lowercase()).ok_or_else(|| {
            Error::field(
                "endpoints.mac",
                format!(
                    "{text:?} is no unicast hardware address; write one like 02:42:ac:11:00:02"
                ),
            )
        })?),
    };
    Ok(EndpointSpec {
        ipv4: of_family("endpoints.ipv4", &wire.ipv4, true)?,
        ipv6: of_family("endpoints.ipv6", &wire.ipv6, false)?,
        network: wire.network,
        aliases: wire.aliases,
        mac,
    })
}

fn from_port(wire: pb::PortMapping) -> Result<PortRecord, Error> {
    if wire.container_port == 0 || wire.container_port > 65_535 || wire.host_port > 65_535 {
        return Err(Error::field(
            "ports",
            format!(
                "{} to {}: a container's port is 1 to 65535, a host's 0 (chosen) to 65535",
                wire.host_port, wire.container_port
            ),
        ));
    }
    let host_ip = match wire.host_ip.as_str() {
        "" => String::new(),
        text => ip("ports.host_ip", text)?.to_string(),
    };
    Ok(PortRecord {
        host_ip,
        host_port: wire.host_port,
        container_port: wire.container_port,
        udp: wire.protocol == pb::Protocol::Udp as i32,
    })
}

pub(crate) fn from_attach(wire: pb::AttachRequest) -> Result<SandboxSpec, Error> {
    names::check_id(&wire.id).map_err(|reason| Error::field("id", reason))?;
    for server in &wire.dns_servers {
        ip("dns_servers", server)?;
    }
    // A line break would be a line of the user's in resolv.conf.
    for text in wire.dns_search.iter().chain(&wire.dns_options) {
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(Error::field(
                "dns_search, dns_options",
                format!("{text:?} is not one word"),
            ));
        }
    }
    Ok(SandboxSpec {
        endpoints: wire
            .endpoints
            .into_iter()
            .map(from_endpoint)
            .collect::<Result<_, _>>()?,
        ports: wire
            .ports
            .into_iter()
            .map(from_port)
            .collect::<Result<_, _>>()?,
        id: wire.id,
        holder: wire.holder,
        name: wire.name,
        hostname: wire.hostname,
        dns_servers: wire.dns_servers,
        dns_search: wire.dns_search,
        dns_options: wire.dns_options,
    })
}

fn present(texts: [String; 2]) -> Vec<String> {
    texts.into_iter().filter(|text| !text.is_empty()).collect()
}

pub(crate) fn to_network((record, sandboxes): Told) -> pb::NetworkInfo {
    pb::NetworkInfo {
        id: record.id,
        name: record.name,
        driver: "bridge".into(),
        subnets: present([record.subnet4, record.subnet6]),
        gateways: present([record.gateway4, record.gateway6]),
        internal: record.internal,
        mtu: record.mtu,
        labels: record.labels,
        bridge: record.bridge,
        sandboxes,
        created_at: Some(prost_types::Timestamp {
            seconds: record.created_at.div_euclid(1_000_000_000),
            nanos: i32::try_from(record.created_at.rem_euclid(1_000_000_000)).unwrap_or(0),
        }),
    }
}

/// The networks that the runtime makes itself.
pub(crate) fn foreign() -> impl Iterator<Item = pb::NetworkInfo> {
    FOREIGN.iter().map(|(name, driver)| pb::NetworkInfo {
        id: (*name).to_owned(),
        name: (*name).to_owned(),
        driver: (*driver).to_owned(),
        ..pb::NetworkInfo::default()
    })
}

fn to_endpoint(record: EndpointRecord) -> pb::Endpoint {
    pb::Endpoint {
        network: record.network,
        network_id: record.network_id,
        interface: record.interface,
        mac: record.mac,
        ipv4: record.ipv4,
        ipv6: record.ipv6,
        gateway_ipv4: record.gateway4,
        gateway_ipv6: record.gateway6,
        aliases: record.aliases,
    }
}

fn to_port(record: PortRecord) -> pb::PortMapping {
    let protocol = if record.udp {
        pb::Protocol::Udp
    } else {
        pb::Protocol::Tcp
    };
    pb::PortMapping {
        host_ip: record.host_ip,
        host_port: record.host_port,
        container_port: record.container_port,
        protocol: protocol.into(),
    }
}

pub(crate) fn to_sandbox(record: SandboxRecord, netns: &std::path::Path) -> pb::Sandbox {
    pb::Sandbox {
        id: record.id,
        holder: record.holder,
        netns: netns.to_string_lossy().into_owned(),
        endpoints: record.endpoints.into_iter().map(to_endpoint).collect(),
        ports: record.ports.into_iter().map(to_port).collect(),
        resolv_conf: record.resolv_conf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut pb::AttachRequest)) -> String {
        let mut wire = pb::AttachRequest {
            id: "a".into(),
            endpoints: vec![pb::EndpointRequest::default()],
            ports: vec![pb::PortMapping {
                container_port: 80,
                ..Default::default()
            }],
            ..Default::default()
        };
        from_attach(wire.clone()).unwrap();
        change(&mut wire);
        from_attach(wire).unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_named() {
        assert!(wrong(|w| w.id = "../x".into()).starts_with("id: "));
        assert!(wrong(|w| w.endpoints[0].ipv4 = "fd00::1".into()).contains("IPv4"));
        assert!(wrong(|w| w.endpoints[0].ipv6 = "10.0.0.1".into()).contains("IPv6"));
        assert!(wrong(|w| w.endpoints[0].mac = "ff:ff:ff:ff:ff:ff".into()).contains("mac"));
        assert!(wrong(|w| w.ports[0].container_port = 0).contains("ports"));
        assert!(wrong(|w| w.ports[0].host_port = 70_000).contains("70000"));
        assert!(wrong(|w| w.ports[0].host_ip = "localhost".into()).contains("host_ip"));
        assert!(wrong(|w| w.dns_servers = vec!["x".into()]).contains("dns_servers"));
        assert!(
            wrong(|w| w.dns_search = vec!["a\nnameserver 6.6.6.6".into()]).contains("dns_search")
        );
    }
}
