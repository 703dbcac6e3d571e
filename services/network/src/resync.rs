//! Start and end: bringing records and kernel together, and putting away what nobody uses.
//!
//! Invariants: records are the truth and what is ours in the kernel without a record is swept; what a live sandbox has is
//! mended, never made anew while it is there; a start that finds everything in order changes nothing that a packet sees.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use gantry_chassis::{Drain, Paths};
use gantry_meta::{Db, Table};
use gantry_sys::netns::{self, Family};

use crate::dns::Zones;
use crate::engine::{Engine, State, ip_of, without_ipv6};
use crate::firewall;
use crate::journal::Journal;
use crate::links::{self, Kernel};
use crate::netlink::Connection;
use crate::networks::{DEFAULT, Net, NetworkSpec};
use crate::pool::Pool;
use crate::publish;
use crate::reaper::Reaper;
use crate::schema::{self, NetworkRecord, SandboxRecord};
use crate::{Config, Error, names, sysctl};

/// The sandboxes that are known: the journal's in the boot that it is of, else the database's, without their namespaces.
fn sandboxes(
    db: &Db,
    table: &Table<SandboxRecord>,
    journal: &Journal,
    found: Option<Vec<SandboxRecord>>,
) -> Result<BTreeMap<String, SandboxRecord>, Error> {
    let stored: BTreeMap<String, SandboxRecord> = table
        .scan()?
        .into_iter()
        .map(|(_, record)| (record.id.clone(), record))
        .collect();
    let Some(found) = found else {
        let mut kept = BTreeMap::new();
        for (id, mut record) in stored {
            record.live = false;
            record.ports.clear();
            journal.put(&record)?;
            kept.insert(id, record);
        }
        return Ok(kept);
    };
    let known: BTreeMap<String, SandboxRecord> = found
        .into_iter()
        .map(|record| (record.id.clone(), record))
        .collect();
    let mut batch = db.batch();
    for id in stored.keys().filter(|id| !known.contains_key(*id)) {
        table.delete(&mut batch, id.as_bytes());
    }
    for (id, record) in &known {
        if stored.get(id) != Some(record) {
            table.put(&mut batch, id.as_bytes(), record);
        }
    }
    db.commit_lazy(batch)?;
    Ok(known)
}

impl Engine {
    /// Opens everything and brings the kernel into line. For a thread that may block.
    pub(crate) fn open(config: Config, paths: &Paths, drain: &Drain) -> Result<Engine, Error> {
        config.validate().map_err(Error::Config)?;
        let (pool4, pool6, upstreams) = (config.pool4(), config.pool6(), config.upstreams());
        let namespaces = paths.run.join("ns");
        std::fs::create_dir_all(&namespaces).map_err(Error::io("make", &namespaces))?;
        let db = Db::open(&paths.data("network").join("db"), schema::VERSION, &[])?;
        let network_table: Table<NetworkRecord> = Table::new(&db, schema::NETWORKS);
        let sandbox_table = Table::new(&db, schema::SANDBOXES);
        let cursor_table: Table<schema::CursorRecord> = Table::new(&db, schema::CURSORS);
        let (journal, found) = Journal::open(&paths.run.join("network"))?;
        let sandboxes = sandboxes(&db, &sandbox_table, &journal, found)?;
        let mut networks = BTreeMap::new();
        for (_, record) in network_table.scan()? {
            let id = record.id.clone();
            let mut net = Net::new(record).ok_or_else(|| Error::Record {
                path: Path::new("network").join(&id),
                reason: "its subnet or gateway is no address".into(),
            })?;
            if let Some(cursor) = cursor_table.get(id.as_bytes())? {
                net.resume(&cursor);
            }
            networks.insert(id, net);
        }
        let engine = Engine {
            pool: Pool::new(config.netns_pool),
            reaper: Reaper::start(db.clone())?,
            zones: Zones::default(),
            pool4: pool4.map_err(Error::Config)?,
            pool6: pool6.map_err(Error::Config)?,
            upstreams: upstreams.map_err(Error::Config)?,
            config,
            namespaces,
            ipv6: sysctl::has_ipv6(),
            drain: drain.clone(),
            db,
            network_table,
            sandbox_table,
            cursor_table,
            state: Mutex::new(State {
                networks,
                sandboxes,
                held: HashMap::new(),
                kernel: Kernel::open()?,
                journal,
                table: false,
                ended: false,
            }),
        };
        {
            let mut state = engine.lock()?;
            engine.resync(&mut state)?;
        }
        Ok(engine)
    }

    fn resync(&self, state: &mut State) -> Result<(), Error> {
        self.mark_gone(state)?;
        self.sweep(state)?;
        for record in state.sandboxes.values() {
            for endpoint in &record.endpoints {
                if let Some(net) = state.networks.get_mut(&endpoint.network_id) {
                    net.restore(endpoint, &record.id);
                }
            }
        }
        if !state.networks.values().any(|net| net.record.default) {
            self.make_default(state)?;
        }
        // What fails from here on fails again, with its words, when somebody needs it.
        self.restore_networks(state);
        let live: Vec<SandboxRecord> = state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.live)
            .cloned()
            .collect();
        for record in &live {
            if let Err(error) = self.mend(state, record) {
                tracing::warn!(%error, id = record.id, "a sandbox's network could not be mended");
            }
        }
        if let Err(error) = state.rebuild(&self.config.table) {
            tracing::warn!(%error, "the nft table could not be made; it is tried again with the next container");
        }
        Ok(())
    }

    /// A sandbox whose namespace is gone keeps its addresses and nothing else.
    fn mark_gone(&self, state: &mut State) -> Result<(), Error> {
        let State {
            sandboxes, journal, ..
        } = state;
        for record in sandboxes.values_mut().filter(|sandbox| sandbox.live) {
            let path = self.pin_path(&record.id);
            if netns::open(&path)
                .map_err(Error::io("open namespace", &path))?
                .is_some()
            {
                continue;
            }
            tracing::info!(
                id = record.id,
                "a sandbox's namespace is gone; its addresses stay reserved"
            );
            record.live = false;
            record.ports.clear();
            journal.put(record)?;
        }
        Ok(())
    }

    /// Takes away what no record explains: namespaces, interfaces, bridges. A bridge that nobody is on goes too, so that
    /// it comes back with the addresses of its record.
    fn sweep(&self, state: &mut State) -> Result<(), Error> {
        let dir = &self.namespaces;
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let name = entry.map_err(Error::io("list", dir))?.file_name();
            let known = state.sandboxes.get(&*name.to_string_lossy());
            if !known.is_some_and(|sandbox| sandbox.live) {
                let path = dir.join(&name);
                netns::unpin(&path).map_err(Error::io("unpin namespace", &path))?;
            }
        }
        let live = || state.sandboxes.values().filter(|sandbox| sandbox.live);
        let wanted = |name: &str| {
            live()
                .flat_map(|sandbox| &sandbox.endpoints)
                .any(|endpoint| {
                    let net = state.networks.get(&endpoint.network_id);
                    endpoint.host == name || net.is_some_and(|net| net.record.bridge == name)
                })
        };
        let links = state.kernel.links()?;
        let ours: Vec<String> = links
            .into_iter()
            .filter(|link| matches!(link.kind.as_str(), "veth" | "bridge"))
            .map(|link| link.name)
            .filter(|name| names::is_ours(&self.config.prefix, name) && !wanted(name))
            .collect();
        if !ours.is_empty() {
            tracing::info!(interfaces = ours.join(" "), "swept what no record explains");
        }
        state.kernel.delete_links(&ours)
    }

    /// Chooses the subnet of the network that everybody is on who names none.
    fn make_default(&self, state: &mut State) -> Result<(), Error> {
        let spec = NetworkSpec {
            name: DEFAULT.into(),
            ..NetworkSpec::default()
        };
        let record = self.plan(state, &spec, true)?;
        let mut batch = self.db.batch();
        self.network_table
            .put(&mut batch, record.id.as_bytes(), &record);
        tokio::runtime::Handle::current().block_on(self.db.commit(batch))?;
        let id = record.id.clone();
        state.networks.extend(Net::new(record).map(|net| (id, net)));
        Ok(())
    }

    fn restore_networks(&self, state: &mut State) {
        let State {
            networks, kernel, ..
        } = state;
        for net in networks.values_mut() {
            match kernel.ensure_bridge(&net.record, self.ipv6) {
                Ok(index) => net.bridge = Some(index),
                Err(error) => {
                    tracing::warn!(%error, "a bridge could not be made; it is tried again with the next container");
                    continue;
                }
            }
            if let Err(error) = net.serve_names(self) {
                tracing::warn!(%error, "names are not answered");
            }
        }
    }

    /// Gives a live sandbox back what it misses: interfaces, ports, names.
    fn mend(&self, state: &mut State, record: &SandboxRecord) -> Result<(), Error> {
        let path = self.pin_path(&record.id);
        let opened = netns::open(&path).map_err(Error::io("open namespace", &path))?;
        let Some(namespace) = opened else {
            return Ok(());
        };
        let routes = links::default_routes(&record.endpoints);
        for (endpoint, routes) in record.endpoints.iter().zip(&routes) {
            let Some(net) = state.networks.get(&endpoint.network_id) else {
                continue;
            };
            net.name(self, record, endpoint);
            let bridge = net.bridge;
            match (state.kernel.link(&endpoint.host)?, bridge) {
                (Some(link), Some(bridge)) if link.master == bridge => {}
                (Some(_), Some(bridge)) => state.kernel.set_master(&endpoint.host, bridge)?,
                (Some(_), None) => {}
                (None, _) => {
                    self.make_endpoint(state, endpoint, namespace.as_fd())?;
                    if endpoint.ipv6.is_empty() {
                        without_ipv6(namespace.as_fd(), &endpoint.interface);
                    }
                    let open = || Connection::open(Family::Route);
                    let inside = netns::inside(namespace.as_fd(), open);
                    let mut inside = inside.map_err(Error::io("enter namespace", &path))?;
                    links::configure(&mut inside, endpoint, routes)?;
                }
            }
        }
        let publishes = state
            .published(&record.endpoints)
            .filter(|_| !record.ports.is_empty());
        if let Some(endpoint) = publishes {
            state.kernel.set_hairpin(&endpoint.host)?;
        }
        let target = state
            .published(&record.endpoints)
            .and_then(|e| ip_of(&e.ipv4));
        let mut held = Vec::new();
        for port in &record.ports {
            match (publish::hold(port), target) {
                (Ok(mut port), Some(target)) => {
                    port.serve(target, &self.drain);
                    held.push(port);
                }
                (Ok(_), None) => {}
                // The kernel leads the port to the container all the same, but for IPv6 loopback.
                (Err(error), _) => {
                    tracing::warn!(%error, id = record.id, "a published port is no longer held");
                }
            }
        }
        if !held.is_empty() {
            state.held.insert(record.id.clone(), held);
        }
        Ok(())
    }

    /// Ends: lets go of ports and name servers; with no sandbox left, of table and bridges. For a thread that may block.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        self.reaper.end();
        for held in std::mem::take(&mut state.held).into_values().flatten() {
            held.release();
        }
        let servers: Vec<_> = state
            .networks
            .values_mut()
            .filter_map(|net| net.names.take())
            .collect();
        for server in servers {
            server.stop();
        }
        if state.sandboxes.values().any(|sandbox| sandbox.live) {
            return;
        }
        let bridges: Vec<String> = state
            .networks
            .values()
            .map(|net| net.record.bridge.clone())
            .collect();
        let removed = state.kernel.filter(firewall::removal(&self.config.table));
        for error in [removed.err(), state.kernel.delete_links(&bridges).err()]
            .into_iter()
            .flatten()
        {
            tracing::warn!(%error, "the engine's bridges or its nft table stay behind");
        }
    }
}
