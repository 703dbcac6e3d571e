//! The state of the service and the two operations that count: a sandbox comes, a sandbox goes.
//!
//! Invariants: one lock orders everything, and what holds it is synchronous code on a thread that may block, so that a
//! caller who leaves interrupts nothing. Attach acts on the kernel first and records last: what was not recorded is
//! swept at the next start. Detach records first: what was not taken away is swept at the next start.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_chassis::Drain;
use gantry_meta::{Db, Table};
use gantry_sys::netns;

use crate::cidr::Cidr;
use crate::dns::Zones;
use crate::firewall;
use crate::journal::Journal;
use crate::links::{self, Kernel};
use crate::netlink::{EEXIST, ENODEV};
use crate::networks::Net;
use crate::pool::Pool;
use crate::ports::udp_ports;
use crate::publish::Held;
use crate::reaper::{Gone, Reaper};
use crate::reserve::{self, Undo};
use crate::resolv::{self, Given};
use crate::schema::{CursorRecord, EndpointRecord, NetworkRecord, PortRecord, SandboxRecord};
use crate::{Config, Error, sysctl};

/// An interface that is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointSpec {
    pub(crate) network: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) ipv4: Option<IpAddr>,
    pub(crate) ipv6: Option<IpAddr>,
    pub(crate) mac: Option<[u8; 6]>,
}

/// A sandbox that is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct SandboxSpec {
    pub(crate) id: String,
    pub(crate) holder: String,
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) endpoints: Vec<EndpointSpec>,
    pub(crate) ports: Vec<PortRecord>,
    pub(crate) dns_servers: Vec<String>,
    pub(crate) dns_search: Vec<String>,
    pub(crate) dns_options: Vec<String>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) networks: BTreeMap<String, Net>,
    pub(crate) sandboxes: BTreeMap<String, SandboxRecord>,
    pub(crate) held: HashMap<String, Vec<Held>>,
    pub(crate) kernel: Kernel,
    pub(crate) journal: Journal,
    /// The nft table is as the records say.
    pub(crate) table: bool,
    /// Nothing more is begun.
    pub(crate) ended: bool,
}

/// The service of one engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) pool4: Cidr,
    pub(crate) pool6: Option<Cidr>,
    pub(crate) upstreams: Vec<SocketAddr>,
    /// Where namespaces are pinned.
    pub(crate) namespaces: PathBuf,
    pub(crate) ipv6: bool,
    pub(crate) drain: Drain,
    pub(crate) pool: Arc<Pool>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) zones: Zones,
    pub(crate) db: Db,
    pub(crate) network_table: Table<NetworkRecord>,
    pub(crate) sandbox_table: Table<SandboxRecord>,
    pub(crate) cursor_table: Table<CursorRecord>,
    pub(crate) state: Mutex<State>,
}

pub(crate) fn ip_of(cidr: &str) -> Option<IpAddr> {
    cidr.parse::<Cidr>().ok().map(|cidr| cidr.address())
}

impl State {
    /// Makes the nft table anew from what is known.
    pub(crate) fn rebuild(&mut self, table: &str) -> Result<(), Error> {
        let mut elements = Vec::new();
        for net in self.networks.values() {
            elements.extend(firewall::of_bridge(&net.rules()));
        }
        for sandbox in self.sandboxes.values().filter(|sandbox| sandbox.live) {
            elements.extend(self.elements(sandbox));
        }
        self.table = false;
        self.kernel.filter(firewall::ruleset(table, &elements))?;
        self.table = true;
        Ok(())
    }
}

impl Engine {
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return Err(Error::Ending);
        }
        Ok(state)
    }

    pub(crate) fn pin_path(&self, id: &str) -> PathBuf {
        self.namespaces.join(id)
    }

    /// Makes a sandbox, or finds it.
    pub(crate) fn attach(&self, spec: &SandboxSpec) -> Result<SandboxRecord, Error> {
        let mut state = self.lock()?;
        if let Some(live) = state.sandboxes.get(&spec.id).filter(|sandbox| sandbox.live) {
            return Ok(live.clone());
        }
        // Its own interfaces must be gone, as the new ones have their names.
        self.reaper.wait_for(&spec.id);
        self.collect(&mut state);
        match self.try_make(&mut state, spec) {
            // Somebody who is going may have had it.
            Err(Error::NoAddress { .. } | Error::AddressTaken { .. }) if self.reaper.wait_all() => {
                self.collect(&mut state);
                self.try_make(&mut state, spec)
            }
            made => made,
        }
    }

    /// Gives back the addresses of those who are gone.
    fn collect(&self, state: &mut State) {
        for (network, owner, address) in self.reaper.freed() {
            if let Some(net) = state.networks.get_mut(&network) {
                net.give_back(address, &owner);
            }
        }
    }

    fn try_make(&self, state: &mut State, spec: &SandboxSpec) -> Result<SandboxRecord, Error> {
        let mut undo = Undo::default();
        let made = self.make(state, spec, &mut undo);
        if made.is_err() {
            self.take_back(state, &spec.id, undo);
        }
        made
    }

    fn make(
        &self,
        state: &mut State,
        spec: &SandboxSpec,
        undo: &mut Undo,
    ) -> Result<SandboxRecord, Error> {
        let endpoints = self.reserve(state, spec, undo)?;
        let ports = reserve::hold(state, spec, &endpoints, undo)?;
        // Any network of its own has a server that knows the names of all of them.
        let names = endpoints
            .iter()
            .filter_map(|endpoint| state.networks.get(&endpoint.network_id))
            .find(|net| !net.record.default)
            .and_then(|net| net.record.gateway4.parse().ok());
        let given = Given {
            servers: &spec.dns_servers,
            search: &spec.dns_search,
            options: &spec.dns_options,
        };
        let record = SandboxRecord {
            id: spec.id.clone(),
            holder: spec.holder.clone(),
            name: spec.name.clone(),
            hostname: spec.hostname.clone(),
            live: true,
            resolv_conf: resolv::content(&resolv::of_host(), &self.upstreams, names, given),
            endpoints,
            ports,
            dns_servers: spec.dns_servers.clone(),
        };
        self.plug(state, &record, undo)?;
        undo.elements = state.elements(&record);
        if !undo.elements.is_empty() {
            self.open_ports(state, &record, &undo.elements)?;
        }
        self.keep(state, &record)?;
        // From here on nothing fails.
        let old = state.sandboxes.insert(record.id.clone(), record.clone());
        for endpoint in old.iter().flat_map(|old| &old.endpoints) {
            if !record
                .endpoints
                .iter()
                .any(|e| e.ipv4 == endpoint.ipv4 && e.ipv6 == endpoint.ipv6)
            {
                release_addresses(state, &record, endpoint);
            }
        }
        for endpoint in &record.endpoints {
            if let Some(net) = state.networks.get(&endpoint.network_id) {
                net.name(self, &record, endpoint);
            }
        }
        let target = state
            .published(&record.endpoints)
            .and_then(|e| ip_of(&e.ipv4));
        let mut held = std::mem::take(&mut undo.held);
        if let Some(target) = target {
            for port in &mut held {
                port.serve(target, &self.drain);
            }
        }
        if !held.is_empty() {
            state.held.insert(record.id.clone(), held);
        }
        Ok(record)
    }

    /// Writes a record where it survives: at once for this boot, soon for the next.
    fn keep(&self, state: &mut State, record: &SandboxRecord) -> Result<(), Error> {
        state.journal.put(record)?;
        let mut batch = self.db.batch();
        self.sandbox_table
            .put(&mut batch, record.id.as_bytes(), record);
        for endpoint in &record.endpoints {
            if let Some(net) = state.networks.get(&endpoint.network_id) {
                let id = endpoint.network_id.as_bytes();
                self.cursor_table.put(&mut batch, id, &net.cursor());
            }
        }
        self.reaper.write(batch);
        Ok(())
    }

    /// Makes the namespace with its interfaces and pins it.
    fn plug(
        &self,
        state: &mut State,
        record: &SandboxRecord,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        if !record.endpoints.is_empty() && !state.table {
            state.rebuild(&self.config.table)?;
        }
        let path = self.pin_path(&record.id);
        let mut fresh = self
            .pool
            .take()
            .map_err(Error::io("make namespace", &path))?;
        let routes = links::default_routes(&record.endpoints);
        for (endpoint, routes) in record.endpoints.iter().zip(&routes) {
            undo.links.push(endpoint.host.clone());
            self.make_endpoint(state, endpoint, fresh.namespace.as_fd())?;
            if endpoint.ipv6.is_empty() {
                without_ipv6(fresh.namespace.as_fd(), &endpoint.interface);
            }
            links::configure(&mut fresh.route, endpoint, routes)?;
        }
        undo.pinned = true;
        match netns::pin(fresh.namespace.as_fd(), &path) {
            // What a killed process has left, which the sweep missed since the folder was not ours then.
            Err(error) if error.raw_os_error() == Some(EEXIST) => {
                netns::unpin(&path).and_then(|()| netns::pin(fresh.namespace.as_fd(), &path))
            }
            other => other,
        }
        .map_err(Error::io("pin namespace", &path))
    }

    /// Makes one endpoint's interfaces. A bridge that somebody took away is made again.
    pub(crate) fn make_endpoint(
        &self,
        state: &mut State,
        endpoint: &EndpointRecord,
        namespace: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let action = || format!("attach to network {}", endpoint.network);
        let mut again = true;
        loop {
            let Some(net) = state.networks.get_mut(&endpoint.network_id) else {
                return Err(Error::NoNetwork(endpoint.network.clone()));
            };
            let bridge = match net.bridge {
                Some(bridge) => bridge,
                None => {
                    let index = state.kernel.ensure_bridge(&net.record, self.ipv6)?;
                    *net.bridge.insert(index)
                }
            };
            match state
                .kernel
                .plug(endpoint, bridge, net.record.mtu, namespace)
            {
                Ok(()) => return Ok(()),
                Err(refused) if again && refused.is(&[EEXIST]) => {
                    state
                        .kernel
                        .delete_links(std::slice::from_ref(&endpoint.host))?;
                }
                Err(refused) if again && refused.is(&[ENODEV, EINVAL]) => {
                    net.bridge = None;
                }
                Err(refused) => return Err(Error::kernel(action())(refused)),
            }
            again = false;
        }
    }

    fn take_back(&self, state: &mut State, id: &str, undo: Undo) {
        let mut results = vec![self.close_ports(state, &undo.elements)];
        if undo.pinned {
            let path = self.pin_path(id);
            results.push(netns::unpin(&path).map_err(Error::io("unpin namespace", &path)));
        }
        results.push(state.kernel.delete_links(&undo.links));
        for held in undo.held {
            held.release();
        }
        for (network, address) in undo.addresses {
            if let Some(net) = state.networks.get_mut(&network) {
                net.give_back(address, id);
            }
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, id, "an attach that failed left something; the next start sweeps it");
        }
    }

    /// Takes a sandbox away; none is fine.
    pub(crate) fn detach(&self, id: &str, keep_addresses: bool) -> Result<(), Error> {
        let mut state = self.lock()?;
        match state.sandboxes.get(id).cloned() {
            Some(record) => self.forget(&mut state, &record, keep_addresses),
            None => Ok(()),
        }
    }

    pub(crate) fn forget(
        &self,
        state: &mut State,
        record: &SandboxRecord,
        keep_addresses: bool,
    ) -> Result<(), Error> {
        let id = &record.id;
        if keep_addresses && record.endpoints.is_empty() {
            return self.forget(state, record, false);
        }
        // Recorded first: what is not taken away below is swept at the next start.
        if keep_addresses {
            let reserved = SandboxRecord {
                live: false,
                ports: Vec::new(),
                resolv_conf: String::new(),
                ..record.clone()
            };
            self.keep(state, &reserved)?;
            state.sandboxes.insert(id.clone(), reserved);
        } else {
            state.journal.remove(id)?;
            let mut batch = self.db.batch();
            self.sandbox_table.delete(&mut batch, id.as_bytes());
            self.reaper.write(batch);
            state.sandboxes.remove(id);
        }
        let mut gone = Gone {
            id: id.clone(),
            ..Gone::default()
        };
        if !keep_addresses {
            for endpoint in &record.endpoints {
                let addresses = [&endpoint.ipv4, &endpoint.ipv6];
                let addresses = addresses.into_iter().filter_map(|ip| ip_of(ip));
                gone.addresses
                    .extend(addresses.map(|ip| (endpoint.network_id.clone(), ip)));
            }
        }
        let unplugged = if record.live {
            let hosts = record
                .endpoints
                .iter()
                .map(|endpoint| endpoint.host.clone());
            gone.links.extend(hosts);
            self.unplug(state, record)
        } else {
            Ok(())
        };
        self.reaper.remove(gone);
        unplugged
    }

    /// Takes everything of a sandbox but its interfaces from the kernel; goes on past a failure and tells the first.
    fn unplug(&self, state: &mut State, record: &SandboxRecord) -> Result<(), Error> {
        for zone in self.zones().values_mut() {
            zone.remove(&record.id);
        }
        let elements = state.elements(record);
        let ports = self.close_ports(state, &elements);
        for held in state.held.remove(&record.id).into_iter().flatten() {
            held.release();
        }
        state.kernel.forget_flows(udp_ports(record));
        let path = self.pin_path(&record.id);
        let unpinned = netns::unpin(&path).map_err(Error::io("unpin namespace", &path));
        ports.and(unpinned)
    }

    /// Takes away the sandboxes of a holder that it no longer names, and their reservations.
    pub(crate) fn sync(&self, holder: &str, ids: &[String]) -> Result<Vec<String>, Error> {
        let mut state = self.lock()?;
        let gone: Vec<SandboxRecord> = state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.holder == holder && !ids.contains(&sandbox.id))
            .cloned()
            .collect();
        let results: Vec<Result<(), Error>> = gone
            .iter()
            .map(|record| self.forget(&mut state, record, false))
            .collect();
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(gone.into_iter().map(|record| record.id).collect())
    }

    /// A live sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> Result<SandboxRecord, Error> {
        let state = self.lock()?;
        let found = state.sandboxes.get(id).filter(|sandbox| sandbox.live);
        found
            .cloned()
            .ok_or_else(|| Error::NoSandbox(id.to_owned()))
    }

    /// The live sandboxes of a holder, or of all.
    pub(crate) fn sandboxes(&self, holder: &str) -> Result<Vec<SandboxRecord>, Error> {
        let state = self.lock()?;
        let all = state.sandboxes.values().filter(|sandbox| sandbox.live);
        Ok(all
            .filter(|sandbox| holder.is_empty() || sandbox.holder == holder)
            .cloned()
            .collect())
    }
}

const EINVAL: i32 = 22;

/// A network without IPv6 gives not even a link-local address.
pub(crate) fn without_ipv6(namespace: std::os::fd::BorrowedFd<'_>, interface: &str) {
    let setting = format!("net/ipv6/conf/{interface}/disable_ipv6");
    let done = netns::inside(namespace, || {
        sysctl::try_set(&setting, "1");
        Ok(())
    });
    if let Err(error) = done {
        tracing::debug!(%error, interface, "IPv6 was left on");
    }
}

fn release_addresses(state: &mut State, record: &SandboxRecord, endpoint: &EndpointRecord) {
    if let Some(net) = state.networks.get_mut(&endpoint.network_id) {
        for address in [&endpoint.ipv4, &endpoint.ipv6]
            .into_iter()
            .filter_map(|ip| ip_of(ip))
        {
            net.give_back(address, &record.id);
        }
    }
}
