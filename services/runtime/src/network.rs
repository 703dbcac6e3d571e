//! What a container asks of the network service, and the files in /etc that tell it of its place.
//!
//! Invariant: the files are the container's own and written anew at each start.

use std::fmt::Write as _;
use std::path::Path;

use crate::convert::{ContainerConfig, EndpointRequest, PortMapping, Protocol};
use crate::error::Error;
use crate::hub::Hub;
use crate::peers::{Sandbox, Wish};
use crate::schema::ContainerRecord;

/// Where the container's network namespace comes from.
#[derive(Debug)]
pub enum Mode {
    /// Its own, made by network.
    Own(Wish),
    /// The host's.
    Host,
    /// Another container's.
    Join(Sandbox),
}

/// Works out what to ask for.
///
/// # Errors
/// For a mixture of modes, or a container to join that does not run.
pub fn wish(record: &ContainerRecord, config: &ContainerConfig, hub: &Hub) -> Result<Mode, Error> {
    let network = config.network.clone().unwrap_or_default();
    let first = crate::spec::first_network(config);
    if let Some(other) = first.strip_prefix("container:") {
        let other = hub.find(other)?;
        other.running("share the network of")?;
        let view = other.view();
        return Ok(Mode::Join(Sandbox {
            netns: view.netns.clone(),
            endpoints: view.endpoints.clone(),
            ports: Vec::new(),
            resolv_conf: std::fs::read_to_string(other.home.join("resolv.conf"))
                .unwrap_or_default(),
        }));
    }
    if first == "host" {
        return Ok(Mode::Host);
    }
    let endpoints = if first == "none" {
        Vec::new()
    } else if network.endpoints.is_empty() {
        vec![EndpointRequest {
            network: "bridge".into(),
            ..EndpointRequest::default()
        }]
    } else {
        let named = |endpoint: &EndpointRequest| EndpointRequest {
            network: match endpoint.network.as_str() {
                "" | "default" => "bridge".into(),
                name => name.to_owned(),
            },
            ..endpoint.clone()
        };
        network.endpoints.iter().map(named).collect()
    };
    let mut ports = network.ports.clone();
    if network.publish_all {
        for exposed in &record.exposed {
            let (number, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
            let protocol = if protocol == "udp" {
                Protocol::Udp
            } else {
                Protocol::Tcp
            };
            let container_port = number.parse().unwrap_or(0);
            let is_known = |port: &PortMapping| {
                port.container_port == container_port && port.protocol == i32::from(protocol)
            };
            if container_port != 0 && !ports.iter().any(is_known) {
                ports.push(PortMapping {
                    container_port,
                    protocol: protocol.into(),
                    ..PortMapping::default()
                });
            }
        }
    }
    Ok(Mode::Own(Wish {
        name: record.name.clone(),
        hostname: record.hostname.clone(),
        endpoints,
        ports,
        dns_servers: network.dns_servers,
        dns_search: network.dns_search,
        dns_options: network.dns_options,
    }))
}

/// Writes hosts, hostname and resolv.conf.
///
/// # Errors
/// When they cannot be written.
pub fn write_files(
    home: &Path,
    record: &ContainerRecord,
    config: &ContainerConfig,
    sandbox: &Sandbox,
) -> Result<(), Error> {
    let network = config.network.clone().unwrap_or_default();
    let host = sandbox.netns.is_empty();
    let mut resolv = sandbox.resolv_conf.clone();
    if host {
        resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        if !network.dns_servers.is_empty() {
            resolv = network
                .dns_servers
                .iter()
                .map(|server| format!("nameserver {server}\n"))
                .collect();
        }
    }
    let files = [
        ("hosts", hosts(record, config, sandbox)),
        ("hostname", format!("{}\n", record.hostname)),
        ("resolv.conf", resolv),
    ];
    for (name, content) in files {
        let path = home.join(name);
        std::fs::write(&path, content).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

fn hosts(record: &ContainerRecord, config: &ContainerConfig, sandbox: &Sandbox) -> String {
    let network = config.network.clone().unwrap_or_default();
    let mut text = if sandbox.netns.is_empty() {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned()
    };
    let gateway = sandbox
        .endpoints
        .iter()
        .map(|endpoint| bare(&endpoint.gateway_ipv4))
        .find(|address| !address.is_empty())
        .unwrap_or("127.0.0.1");
    for extra in &network.extra_hosts {
        let Some((name, address)) = extra.split_once([':', '=']) else {
            continue;
        };
        let address = if address == "host-gateway" {
            gateway
        } else {
            address.trim_start_matches('[').trim_end_matches(']')
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    let mut names = record.hostname.clone();
    if !config.domainname.is_empty() {
        names = format!("{0}.{1} {0}", record.hostname, config.domainname);
    }
    for endpoint in &sandbox.endpoints {
        for address in [&endpoint.ipv4, &endpoint.ipv6] {
            if !address.is_empty() {
                let _ = writeln!(text, "{}\t{names}", bare(address));
            }
        }
    }
    if sandbox.endpoints.is_empty() && !sandbox.netns.is_empty() {
        let _ = writeln!(text, "127.0.0.1\t{names}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Endpoint;

    #[test]
    fn hosts_names_the_container_and_what_was_added() {
        let record = ContainerRecord {
            hostname: "box".into(),
            ..ContainerRecord::default()
        };
        let mut config = ContainerConfig::default();
        let network = config.network.get_or_insert_default();
        network.extra_hosts = vec![
            "db:10.9.8.7".into(),
            "six:[::7]".into(),
            "up:host-gateway".into(),
        ];
        let sandbox = Sandbox {
            netns: "/n".into(),
            endpoints: vec![Endpoint {
                ipv4: "10.0.0.2/24".into(),
                ipv6: "fd00::2/64".into(),
                gateway_ipv4: "10.0.0.1".into(),
                ..Endpoint::default()
            }],
            ..Sandbox::default()
        };
        let text = hosts(&record, &config, &sandbox);
        for line in [
            "10.9.8.7\tdb",
            "::7\tsix",
            "10.0.0.1\tup",
            "10.0.0.2\tbox",
            "fd00::2\tbox",
            "127.0.0.1\tlocalhost",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
