//! All containers, and what they share: the database, the peers, the host's ways.
//!
//! Invariants: a name belongs to one container from before anything is made for it until everything of it is gone; nothing is
//! created until the peers were told which containers there are, so that their cleaning up never meets a new one.

mod create;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_chassis::{Drain, Paths};
use gantry_meta::{Db, Table};
use gantry_sys::cgroup::Layout;
use tokio::sync::watch;

use crate::config::Config;
use crate::container::Container;
use crate::convert::ContainerConfig;
use crate::error::Error;
use crate::events::Events;
use crate::launch::{self, Host};
use crate::peers::Peers;
use crate::schema::{self, ContainerRecord, RunRecord};

/// Digits of an id that name a shim's folder.
const SHORT: usize = 16;

/// Unix time in nanoseconds.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<String, Arc<Container>>,
    /// Names, also of containers that are being made.
    names: HashMap<String, String>,
    /// Callers' keys.
    keys: HashMap<String, String>,
}

/// Everything of the service.
#[derive(Debug)]
pub struct Hub {
    /// The settings.
    pub config: Config,
    /// Where the instance lives.
    pub paths: Paths,
    /// The shim's program.
    pub shim: PathBuf,
    /// What the host is like.
    pub host: Host,
    /// The other services.
    pub peers: Peers,
    /// The end of the service.
    pub drain: Drain,
    /// What happened.
    pub events: Events,
    db: Db,
    containers: Table<ContainerRecord>,
    runs: Table<RunRecord>,
    index: Mutex<Index>,
    synced: watch::Sender<bool>,
    execs: Mutex<HashMap<String, watch::Sender<Option<i32>>>>,
}

/// The shim's program: as configured, beside this one, or in PATH.
fn find_shim(configured: &str) -> PathBuf {
    if !configured.is_empty() {
        return configured.into();
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join("gantry-shim")));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| "gantry-shim".into())
}

impl Hub {
    /// Opens the records. Nothing is dialled yet.
    ///
    /// # Errors
    /// When the database or a folder is unusable, or the host has no control groups.
    pub fn open(config: Config, paths: Paths, drain: Drain) -> Result<Arc<Self>, Error> {
        let root = paths.data("runtime");
        std::fs::create_dir_all(root.join("containers")).map_err(Error::io("make", &root))?;
        let shims = paths.run.join("shim");
        std::fs::create_dir_all(&shims).map_err(Error::io("make", &shims))?;
        let groups = Path::new("/proc/self/mountinfo");
        let layout = Layout::detect().map_err(Error::io("find the control groups in", groups))?;
        let parent = config.cgroup_parent.trim_matches('/').to_owned();
        // The lock on the database comes first: a service that is still ending holds it until it has put the group away.
        let db = Db::open(&root.join("db"), schema::VERSION, &[])?;
        layout
            .prepare_parent(&parent)
            .map_err(Error::io("make the control group", Path::new(&parent)))?;
        let host = Host {
            layout,
            cgroup_parent: parent,
            permitted: gantry_sys::caps::permitted()
                .map_err(Error::io("read the capabilities in", groups))?,
            default_pids_limit: config.default_pids_limit,
            log: (config.log_max_size, config.log_max_files),
        };
        let hub = Self {
            shim: find_shim(&config.shim),
            peers: Peers::new(&paths, &drain),
            events: Events::new(config.events_kept),
            containers: Table::new(&db, schema::CONTAINERS),
            runs: Table::new(&db, schema::RUNS),
            index: Mutex::default(),
            synced: watch::channel(false).0,
            execs: Mutex::default(),
            config,
            paths,
            host,
            drain,
            db,
        };
        hub.load()?;
        Ok(Arc::new(hub))
    }

    fn load(&self) -> Result<(), Error> {
        let text = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
        let mut runs: HashMap<String, RunRecord> = self
            .runs
            .scan()?
            .into_iter()
            .map(|(key, run)| (text(key), run))
            .collect();
        let mut index = self.lock();
        for (key, record) in self.containers.scan()? {
            let id = text(key);
            let run = runs.remove(&id).unwrap_or_default();
            index.names.insert(record.name.clone(), id.clone());
            if !record.idempotency_key.is_empty() {
                index
                    .keys
                    .insert(record.idempotency_key.clone(), id.clone());
            }
            let container = Container::new(&id, record, run, self.home(&id), self.shim_dir(&id));
            index.by_id.insert(id, container);
        }
        // Folders of containers that were being made or removed.
        let homes = self.paths.data("runtime").join("containers");
        for entry in std::fs::read_dir(&homes)
            .map_err(Error::io("list", &homes))?
            .flatten()
        {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !index.by_id.contains_key(&id)
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(id, %error, "the folder of a container that is gone is left");
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn home(&self, id: &str) -> PathBuf {
        self.paths.data("runtime").join("containers").join(id)
    }

    fn shim_dir(&self, id: &str) -> PathBuf {
        let short: String = id.chars().take(SHORT).collect();
        self.paths.run.join("shim").join(short)
    }

    /// The container with this id, name, or beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoContainer`], [`Error::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<Arc<Container>, Error> {
        let index = self.lock();
        let bare = text.strip_prefix('/').unwrap_or(text);
        let named = index.names.get(bare).and_then(|id| index.by_id.get(id));
        if let Some(found) = index.by_id.get(text).or(named) {
            return Ok(found.clone());
        }
        let mut fitting = index
            .by_id
            .iter()
            .filter(|(id, _)| !text.is_empty() && id.starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some((_, found)), None) => Ok(found.clone()),
            (Some(_), Some(_)) => Err(Error::Ambiguous(text.to_owned())),
            (None, _) => Err(Error::NoContainer(text.to_owned())),
        }
    }

    /// Every container, newest first.
    pub fn list(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.lock().by_id.values().cloned().collect();
        all.sort_by_key(|container| std::cmp::Reverse(container.view().record.created_at));
        all
    }

    /// Writes how a container ran, and waits until it is on disk.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save_run(&self, id: &str, run: &RunRecord) -> Result<(), Error> {
        let mut batch = self.db.batch();
        self.runs.put(&mut batch, id.as_bytes(), run);
        Ok(self.db.commit(batch).await?)
    }

    /// The same for what can be learnt again.
    ///
    /// # Errors
    /// When the database fails.
    pub fn save_run_lazily(&self, id: &str, run: &RunRecord) -> Result<(), Error> {
        let mut batch = self.db.batch();
        self.runs.put(&mut batch, id.as_bytes(), run);
        Ok(self.db.commit_lazy(batch)?)
    }

    /// Takes away everything that was made for a container, its record last.
    ///
    /// # Errors
    /// When a peer is away; a repeat goes on.
    pub async fn forget(&self, container: &Container, volumes: bool) -> Result<(), Error> {
        let id = &container.id;
        let view = container.view();
        let network = async {
            // Idempotent, and nothing may be left, also when an earlier detach was cut off.
            self.peers.detach(id).await
        };
        let (network, snapshot, lease) = tokio::join!(
            network,
            self.peers.remove_snapshot(id),
            self.peers.release(id)
        );
        network?;
        snapshot?;
        lease?;
        if volumes {
            for volume in &view.record.anonymous_volumes {
                self.peers.remove_volume(volume).await?;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&container.home)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::io("remove", &container.home)(error));
        }
        let mut batch = self.db.batch();
        self.containers.delete(&mut batch, id.as_bytes());
        self.runs.delete(&mut batch, id.as_bytes());
        self.db.commit(batch).await?;
        let mut index = self.lock();
        index.by_id.remove(id);
        index.names.retain(|_, owner| owner != id);
        index.keys.retain(|_, owner| owner != id);
        Ok(())
    }

    /// Writes an event about a container down.
    pub fn tell(&self, container: &Container, action: &'static str, attributes: &[(&str, String)]) {
        let view = container.view();
        let mut all: std::collections::BTreeMap<String, String> = view
            .record
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        all.insert("name".into(), view.record.name.clone());
        all.insert("image".into(), image_of(&view.record));
        for (key, value) in attributes {
            all.insert((*key).to_owned(), value.clone());
        }
        self.events.tell(action, &container.id, all);
    }

    /// Namespaces of other containers that this one joins.
    ///
    /// # Errors
    /// When the other one does not run.
    pub fn joined(&self, config: &ContainerConfig) -> Result<Vec<(String, String)>, Error> {
        let security = config.security.clone().unwrap_or_default();
        let mut found = Vec::new();
        for (kind, mode) in [
            ("pid", &security.pid_mode),
            ("ipc", &security.ipc_mode),
            ("uts", &security.uts_mode),
        ] {
            if let Some(other) = mode.strip_prefix("container:") {
                let other = self.find(other)?;
                other.running("share a namespace of")?;
                let pid = other.view().state.pid().unwrap_or(0);
                found.push((kind.to_owned(), format!("/proc/{pid}/ns/{kind}")));
            }
        }
        Ok(found)
    }

    /// A new exec is running: those who wait for it may.
    pub fn exec_began(&self, exec_id: &str) -> watch::Receiver<Option<i32>> {
        let (tell, wait) = watch::channel(None);
        self.execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(exec_id.to_owned(), tell);
        wait
    }

    /// An exec ended.
    pub fn exec_ended(&self, exec_id: &str, code: i32) {
        let known = self
            .execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(exec_id);
        if let Some(tell) = known {
            let _ = tell.send(Some(code));
        }
    }

    /// Ends what a lost shim leaves: itself if it hangs, the container's processes, their control groups.
    pub async fn end_processes(&self, id: &str, shim_dir: &Path) {
        if let Ok(text) = std::fs::read_to_string(shim_dir.join("pid"))
            && let Ok(pid) = text.trim().parse::<i32>()
            && is_shim_of(pid, shim_dir)
        {
            // It was dismissed and is about to end; one that was never told anything has to be ended.
            for _ in 0..50 {
                if !is_shim_of(pid, shim_dir) || !shim_dir.join("shim.sock").exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if is_shim_of(pid, shim_dir) && shim_dir.join("shim.sock").exists() {
                let _ = gantry_sys::process::kill(pid, gantry_sys::process::SIGKILL);
            }
        }
        for (_, dir) in launch::directories(&self.host, id) {
            for attempt in 0..200u64 {
                match std::fs::remove_dir(&dir) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
                    _ => break,
                }
                let inside = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                for pid in inside.lines().filter_map(|line| line.parse::<i32>().ok()) {
                    let _ = gantry_sys::process::kill(pid, gantry_sys::process::SIGKILL);
                }
                tokio::time::sleep(Duration::from_millis(1 + attempt / 10)).await;
            }
        }
    }

    /// Finds the containers that run, before anybody may ask for them.
    pub async fn recover(self: &Arc<Self>) {
        let all = self.list();
        let each: Vec<_> = all
            .iter()
            .map(|container| container.recover(self))
            .collect();
        futures_util::future::join_all(each).await;
        self.sweep_shim_dirs();
    }

    /// Tells the peers who there is, so that what they hold for others goes; until then nothing is created.
    pub async fn sync(self: Arc<Self>) {
        let mut pause = Duration::from_millis(100);
        loop {
            let ids: BTreeSet<String> = self.lock().by_id.keys().cloned().collect();
            match self.peers.sync(&ids).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::info!(%error, "the peers do not know the containers yet; trying again");
                }
            }
            tokio::select! {
                () = self.drain.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        self.synced.send_replace(true);
    }

    /// Folders of shims that belong to no container any more.
    fn sweep_shim_dirs(&self) {
        let known: BTreeSet<PathBuf> = self
            .list()
            .iter()
            .map(|container| container.shim_dir.clone())
            .collect();
        let entries = std::fs::read_dir(self.paths.run.join("shim"));
        for entry in entries.into_iter().flatten().flatten() {
            let dir = entry.path();
            if known.contains(&dir) {
                continue;
            }
            let pid = std::fs::read_to_string(dir.join("pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse::<i32>()
                && is_shim_of(pid, &dir)
            {
                let _ = gantry_sys::process::kill(pid, gantry_sys::process::SIGKILL);
            }
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "a shim's folder is left");
            }
        }
    }

    /// Returns when containers may be made.
    async fn ready(&self) -> Result<(), Error> {
        let mut synced = self.synced.subscribe();
        let wait = synced.wait_for(|synced| *synced);
        let wait = tokio::time::timeout(Duration::from_secs(20), wait);
        let outcome = tokio::select! {
            () = self.drain.cancelled() => return Err(Error::Ending),
            outcome = wait => outcome,
        };
        match outcome {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::Peer {
                peer: "store, snapshotter or network",
                fault: gantry_chassis::Fault {
                    kind: gantry_types::ErrorKind::Unavailable,
                    message: "store, snapshotter or network does not answer; look at gantryd's log"
                        .into(),
                    resource: None,
                },
            }),
        }
    }
}

/// The image as the user named it.
pub fn image_of(record: &ContainerRecord) -> String {
    record
        .config
        .as_ref()
        .map(|config| config.image.clone())
        .unwrap_or_default()
}

fn is_shim_of(pid: i32, dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .any(|part| part == dir.as_os_str().as_bytes())
    })
}
