//! The kernel's part of published ports: elements of the nft table, and the way back through the bridge.
//!
//! Invariant: a table that somebody emptied is made anew from the records, and nothing else is ever rebuilt on the way of
//! an attach.

use std::net::IpAddr;

use crate::Error;
use crate::engine::{Engine, State, ip_of};
use crate::firewall::{self, Publication};
use crate::netlink::nft::{self, Element};
use crate::publish;
use crate::schema::{EndpointRecord, PortRecord, SandboxRecord};

impl State {
    /// The endpoint that a sandbox's ports lead to.
    pub(crate) fn published<'a>(
        &self,
        endpoints: &'a [EndpointRecord],
    ) -> Option<&'a EndpointRecord> {
        endpoints.iter().find(|endpoint| {
            let net = self.networks.get(&endpoint.network_id);
            net.is_some_and(|net| !net.record.internal)
        })
    }

    /// The elements of a sandbox's published ports.
    pub(crate) fn elements(&self, sandbox: &SandboxRecord) -> Vec<Element> {
        let Some(endpoint) = self.published(&sandbox.endpoints) else {
            return Vec::new();
        };
        let (ipv4, ipv6) = (ip_of(&endpoint.ipv4), ip_of(&endpoint.ipv6));
        let publication = |port: &PortRecord| Publication {
            host_ip: publish::host_ip(port),
            host_port: publish::number(port.host_port),
            udp: port.udp,
            port: publish::number(port.container_port),
            ipv4: ipv4.and_then(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            }),
            ipv6: ipv6.and_then(|ip| match ip {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            }),
        };
        let mut found: Vec<Element> = sandbox
            .ports
            .iter()
            .flat_map(|port| firewall::of_publication(&publication(port)))
            .collect();
        found.sort();
        found
    }
}

impl Engine {
    /// Leads host ports to a sandbox.
    pub(crate) fn open_ports(
        &self,
        state: &mut State,
        record: &SandboxRecord,
        elements: &[Element],
    ) -> Result<(), Error> {
        let added = state
            .kernel
            .filter(nft::elements(&self.config.table, elements, true));
        if let Err(error) = added {
            // Somebody emptied the table: make it again, then add once more.
            tracing::warn!(%error, "the nft table is not as it was left; it is made anew");
            state.rebuild(&self.config.table)?;
            state
                .kernel
                .filter(nft::elements(&self.config.table, elements, true))?;
        }
        if let Some(endpoint) = state.published(&record.endpoints) {
            state.kernel.set_hairpin(&endpoint.host)?;
        }
        state.kernel.forget_flows(udp_ports(record));
        Ok(())
    }

    pub(crate) fn close_ports(&self, state: &mut State, elements: &[Element]) -> Result<(), Error> {
        if elements.is_empty() {
            return Ok(());
        }
        let removed = state
            .kernel
            .filter(nft::elements(&self.config.table, elements, false));
        // The records no longer have them.
        removed.or_else(|_| state.rebuild(&self.config.table))
    }
}

/// The host ports on which datagrams come.
pub(crate) fn udp_ports(record: &SandboxRecord) -> impl Iterator<Item = u16> {
    let datagrams = record.ports.iter().filter(|port| port.udp);
    datagrams.map(|port| publish::number(port.host_port))
}
