//! Networks: finding, making and removing them, and what of each is in memory.
//!
//! Invariants: no two networks overlap, and none overlaps what the host had when it was made; every network has IPv4; a
//! bridge exists before its network is recorded, and its record is gone before the bridge goes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{PoisonError, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::choice::Wish;
use crate::cidr::Cidr;
use crate::dns::{Member, Server, Zone};
use crate::engine::{Engine, State, ip_of};
use crate::firewall::Bridge;
use crate::ipam::Pool;
use crate::links::in_subnet;
use crate::schema::{CursorRecord, EndpointRecord, NetworkRecord, SandboxRecord};
use crate::{Error, names};

/// The engine's own.
pub(crate) const DEFAULT: &str = "bridge";
/// Those that the runtime makes without us.
pub(crate) const FOREIGN: [(&str, &str); 2] = [("host", "host"), ("none", "null")];

const MTU: u32 = 1500;
/// The least that IPv6 works with.
const LEAST_MTU: u32 = 1280;
/// Fewest letters of an id that name a network.
const SHORTEST_ID: usize = 3;
/// How much of an id is a name.
const SHORT_ID: usize = 12;

/// A network that is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkSpec {
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) subnets: Vec<Cidr>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) internal: bool,
    pub(crate) mtu: u32,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) disable_ipv6: bool,
}

/// A network in memory.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) record: NetworkRecord,
    pub(crate) pool4: Pool,
    pub(crate) pool6: Option<Pool>,
    /// Index of the bridge, once it was seen to be there.
    pub(crate) bridge: Option<u32>,
    pub(crate) names: Option<Server>,
}

impl Net {
    /// None when the record makes no sense.
    pub(crate) fn new(record: NetworkRecord) -> Option<Net> {
        let pool4 = Pool::new(record.subnet4.parse().ok()?, record.gateway4.parse().ok()?);
        let pool6 = match record.subnet6.is_empty() {
            true => None,
            false => Some(Pool::new(
                record.subnet6.parse().ok()?,
                record.gateway6.parse().ok()?,
            )),
        };
        Some(Net {
            record,
            pool4,
            pool6,
            bridge: None,
            names: None,
        })
    }

    pub(crate) fn cursor(&self) -> CursorRecord {
        CursorRecord {
            last4: self.pool4.cursor().to_string(),
            last6: self
                .pool6
                .as_ref()
                .map(|pool| pool.cursor().to_string())
                .unwrap_or_default(),
        }
    }

    pub(crate) fn resume(&mut self, cursor: &CursorRecord) {
        if let Ok(last) = cursor.last4.parse() {
            self.pool4.resume(last);
        }
        if let (Some(pool), Ok(last)) = (&mut self.pool6, cursor.last6.parse()) {
            pool.resume(last);
        }
    }

    pub(crate) fn give_back(&mut self, address: IpAddr, owner: &str) {
        match (&mut self.pool6, address) {
            (_, IpAddr::V4(_)) => self.pool4.give_back(address, owner),
            (Some(pool), IpAddr::V6(_)) => pool.give_back(address, owner),
            (None, IpAddr::V6(_)) => {}
        }
    }

    /// Takes the addresses that a record has.
    pub(crate) fn restore(&mut self, endpoint: &EndpointRecord, owner: &str) {
        let v4 = ip_of(&endpoint.ipv4).map(|ip| self.pool4.take(Some(ip), owner));
        let v6 =
            ip_of(&endpoint.ipv6).and_then(|ip| Some(self.pool6.as_mut()?.take(Some(ip), owner)));
        for refused in [v4, v6].into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(?refused, owner, "an address is recorded that cannot be");
        }
    }

    pub(crate) fn rules(&self) -> Bridge<'_> {
        let gateway = self.record.gateway4.parse::<Ipv4Addr>().ok();
        Bridge {
            name: &self.record.bridge,
            internal: self.record.internal,
            subnets: [&self.record.subnet4, &self.record.subnet6]
                .into_iter()
                .filter_map(|subnet| subnet.parse().ok())
                .collect(),
            names: gateway
                .zip(self.names.as_ref())
                .map(|(gateway, server)| (gateway, server.datagrams, server.streams)),
        }
    }

    pub(crate) fn endpoint(
        &self,
        number: usize,
        host: String,
        mac: String,
        ipv4: IpAddr,
        ipv6: Option<IpAddr>,
        aliases: &[String],
    ) -> EndpointRecord {
        let with_length = |ip: IpAddr, subnet: &str| {
            in_subnet(&ip.to_string(), subnet)
                .map(|cidr| cidr.to_string())
                .unwrap_or_default()
        };
        // An internal network leads nowhere, so it has no gateway for those on it.
        let leads = |gateway: &str| if self.record.internal { "" } else { gateway }.to_owned();
        EndpointRecord {
            network_id: self.record.id.clone(),
            network: self.record.name.clone(),
            interface: format!("eth{number}"),
            host,
            mac,
            ipv4: with_length(ipv4, &self.record.subnet4),
            ipv6: ipv6
                .map(|ip| with_length(ip, &self.record.subnet6))
                .unwrap_or_default(),
            gateway4: leads(&self.record.gateway4),
            gateway6: ipv6
                .map(|_| leads(&self.record.gateway6))
                .unwrap_or_default(),
            aliases: aliases.to_vec(),
        }
    }

    /// Starts to answer names on a network that has them.
    pub(crate) fn serve_names(&mut self, engine: &Engine) -> Result<(), Error> {
        let gateway = self.record.gateway4.parse::<Ipv4Addr>().ok();
        let Some(gateway) = gateway.filter(|_| !self.record.default && self.names.is_none()) else {
            return Ok(());
        };
        let server = Server::start(gateway, &engine.zones, &self.record.id, &engine.drain);
        let action = format!("answer names of network {} on {gateway}", self.record.name);
        self.names = Some(server.map_err(Error::kernel(action))?);
        let zone = Zone::new(&self.record.name, self.record.internal, &engine.upstreams);
        engine.zones().insert(self.record.id.clone(), zone);
        Ok(())
    }

    /// Makes a sandbox's names known.
    pub(crate) fn name(&self, engine: &Engine, sandbox: &SandboxRecord, endpoint: &EndpointRecord) {
        if self.names.is_none() {
            return;
        }
        let short = sandbox.id.get(..SHORT_ID).unwrap_or(&sandbox.id).to_owned();
        let mut names: Vec<String> = [sandbox.name.clone(), short]
            .into_iter()
            .chain(endpoint.aliases.iter().cloned())
            .filter(|name| !name.is_empty())
            .collect();
        names.dedup();
        let member = Member {
            names,
            ipv4: ip_of(&endpoint.ipv4).and_then(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            }),
            ipv6: ip_of(&endpoint.ipv6).and_then(|ip| match ip {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            }),
            servers: sandbox
                .dns_servers
                .iter()
                .filter_map(|s| s.parse().ok())
                .collect(),
        };
        if let Some(zone) = engine.zones().get_mut(&self.record.id) {
            zone.insert(&sandbox.id, member);
        }
    }
}

impl State {
    /// The id of the network that a name, an id or the beginning of an id means.
    pub(crate) fn find(&self, text: &str) -> Result<String, Error> {
        if FOREIGN.iter().any(|(name, _)| *name == text) {
            return Err(Error::field(
                "network",
                format!("{text:?} has no endpoints; it is the runtime's to make"),
            ));
        }
        let mut nets = self.networks.values();
        if let Some(net) = nets.find(|net| net.record.name == text || net.record.id == text) {
            return Ok(net.record.id.clone());
        }
        let begins = |id: &&String| text.len() >= SHORTEST_ID && id.starts_with(text);
        let mut found = self.networks.keys().filter(begins);
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id.clone()),
            (Some(_), Some(_)) => Err(Error::field(
                "network",
                format!("id {text:?} fits several networks; write more of it"),
            )),
            _ => Err(Error::NoNetwork(text.to_owned())),
        }
    }

    /// The live sandboxes on a network.
    pub(crate) fn users(&self, network: &str) -> Vec<&SandboxRecord> {
        let on = |sandbox: &&SandboxRecord| {
            sandbox.live && sandbox.endpoints.iter().any(|e| e.network_id == network)
        };
        self.sandboxes.values().filter(on).collect()
    }
}

/// A network as it is told of: its record and the sandboxes on it.
pub(crate) type Told = (NetworkRecord, Vec<String>);

fn told(state: &State, id: &str) -> Option<Told> {
    let record = state.networks.get(id)?.record.clone();
    let users = state
        .users(id)
        .into_iter()
        .map(|sandbox| sandbox.id.clone());
    Some((record, users.collect()))
}

impl Engine {
    pub(crate) fn zones(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Zone>> {
        self.zones.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops to answer a network's names.
    fn silence(&self, id: &str, server: Option<Server>) {
        self.zones().remove(id);
        if let Some(server) = server {
            server.stop();
        }
    }

    pub(crate) fn network(&self, name: &str) -> Result<Told, Error> {
        let state = self.lock()?;
        let id = state.find(name)?;
        told(&state, &id).ok_or_else(|| Error::NoNetwork(name.to_owned()))
    }

    pub(crate) fn networks(&self) -> Result<Vec<Told>, Error> {
        let state = self.lock()?;
        Ok(state
            .networks
            .keys()
            .filter_map(|id| told(&state, id))
            .collect())
    }

    pub(crate) fn create_network(&self, spec: &NetworkSpec) -> Result<Told, Error> {
        names::check_id(&spec.name).map_err(|reason| Error::field("name", reason))?;
        if !spec.driver.is_empty() && spec.driver != DEFAULT {
            return Err(Error::field(
                "driver",
                format!(
                    "{:?} is not known; write \"bridge\" or nothing",
                    spec.driver
                ),
            ));
        }
        if spec.mtu != 0 && !(LEAST_MTU..=65_535).contains(&spec.mtu) {
            return Err(Error::field(
                "mtu",
                format!("{} is not between {LEAST_MTU} and 65535", spec.mtu),
            ));
        }
        let mut state = self.lock()?;
        let taken = state
            .networks
            .values()
            .any(|net| net.record.name == spec.name);
        if taken || FOREIGN.iter().any(|(name, _)| *name == spec.name) {
            return Err(Error::NetworkExists(spec.name.clone()));
        }
        let record = self.plan(&mut state, spec, false)?;
        let id = record.id.clone();
        let bridge = record.bridge.clone();
        if let Err(error) = self.make_network(&mut state, record) {
            let server = state.networks.remove(&id).and_then(|net| net.names);
            self.silence(&id, server);
            let rebuilt = state.rebuild(&self.config.table).err();
            let removed = state.kernel.delete_links(&[bridge]).err();
            for error in rebuilt.into_iter().chain(removed) {
                tracing::warn!(%error, "a network that was not made left something; the next start sweeps it");
            }
            return Err(error);
        }
        told(&state, &id).ok_or(Error::NoNetwork(id))
    }

    fn make_network(&self, state: &mut State, record: NetworkRecord) -> Result<(), Error> {
        let id = record.id.clone();
        let wrong = || Error::field("subnets", "they cannot be used");
        let mut net = Net::new(record.clone()).ok_or_else(wrong)?;
        net.bridge = Some(state.kernel.ensure_bridge(&record, self.ipv6)?);
        net.serve_names(self)?;
        state.networks.insert(id.clone(), net);
        state.rebuild(&self.config.table)?;
        let mut batch = self.db.batch();
        self.network_table.put(&mut batch, id.as_bytes(), &record);
        Ok(tokio::runtime::Handle::current().block_on(self.db.commit(batch))?)
    }

    /// Decides everything about a new network.
    pub(crate) fn plan(
        &self,
        state: &mut State,
        spec: &NetworkSpec,
        default: bool,
    ) -> Result<NetworkRecord, Error> {
        let mut ours = Vec::new();
        let mut nets = Vec::new();
        for net in state.networks.values() {
            ours.extend(net.bridge);
            for subnet in [&net.record.subnet4, &net.record.subnet6] {
                nets.extend(
                    subnet
                        .parse::<Cidr>()
                        .ok()
                        .map(|subnet| (subnet, &net.record.name)),
                );
            }
        }
        let host = state.kernel.occupied(&ours)?;
        let wish = Wish {
            name: &spec.name,
            nets: &nets,
            host: &host,
            spec,
        };
        let (subnet4, gateway4) =
            wish.choose(true, Some(self.pool4))?
                .ok_or_else(|| Error::NoSubnet {
                    network: spec.name.clone(),
                    pool: self.pool4.to_string(),
                })?;
        let wants6 = self.ipv6 && !spec.disable_ipv6;
        let six = wish.choose(false, self.pool6.filter(|_| wants6))?;
        if six.is_some() && !wants6 {
            return Err(Error::field(
                "subnets",
                "an IPv6 subnet is given, but IPv6 is switched off here; leave it out",
            ));
        }
        wish.check_gateways(subnet4, six.map(|(subnet, _)| subnet))?;
        let id = names::random_id();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(NetworkRecord {
            name: spec.name.clone(),
            subnet4: subnet4.to_string(),
            gateway4: gateway4.to_string(),
            subnet6: six
                .map(|(subnet, _)| subnet.to_string())
                .unwrap_or_default(),
            gateway6: six
                .map(|(_, gateway)| gateway.to_string())
                .unwrap_or_default(),
            internal: spec.internal,
            mtu: if spec.mtu == 0 { MTU } else { spec.mtu },
            labels: spec.labels.clone(),
            bridge: names::bridge(&self.config.prefix, &id, default),
            created_at: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            default,
            id,
        })
    }

    pub(crate) fn remove_network(&self, name: &str) -> Result<(), Error> {
        if FOREIGN.iter().any(|(foreign, _)| *foreign == name) {
            return Err(Error::BuiltIn(name.to_owned()));
        }
        let mut state = self.lock()?;
        let id = state.find(name)?;
        let Some(net) = state.networks.get(&id) else {
            return Err(Error::NoNetwork(name.to_owned()));
        };
        if net.record.default {
            return Err(Error::BuiltIn(name.to_owned()));
        }
        let bridge = net.record.bridge.clone();
        let show = |sandbox: &SandboxRecord| match sandbox.name.is_empty() {
            true => sandbox.id.clone(),
            false => format!("{} ({})", sandbox.name, sandbox.id),
        };
        let users: Vec<String> = state.users(&id).into_iter().map(show).collect();
        if !users.is_empty() {
            return Err(Error::InUse {
                name: net.record.name.clone(),
                sandboxes: users.join(", "),
            });
        }
        let mut batch = self.db.batch();
        self.network_table.delete(&mut batch, id.as_bytes());
        self.cursor_table.delete(&mut batch, id.as_bytes());
        tokio::runtime::Handle::current().block_on(self.db.commit(batch))?;
        // Reservations on it mean nothing any more; a new start says that the network is gone.
        let server = state.networks.remove(&id).and_then(|net| net.names);
        self.silence(&id, server);
        let rebuilt = state.rebuild(&self.config.table);
        rebuilt.and(state.kernel.delete_links(&[bridge]))
    }
}
