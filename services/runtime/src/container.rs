//! One container: its record, its state, its shim.
//!
//! Invariants: what changes its life (start, an exit's aftermath, removal) happens one at a time, under `life`; reads come from a
//! snapshot and wait for nobody; an exit is committed before the shim is told that it may go.

mod freeze;
mod life;
mod recover;
mod stop;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::convert::{Endpoint, PortMapping};
use crate::error::Error;
use crate::launch;
use crate::peers::Sandbox;
use crate::schema::{ContainerRecord, RunRecord};
use crate::shim::Shim;
use crate::state::{Exit, State, Step};

pub use life::{Attach, Started};

/// Everything that can be seen of a container at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What it is to be.
    pub record: Arc<ContainerRecord>,
    /// How it ran.
    pub run: RunRecord,
    /// What it is.
    pub state: State,
    /// Its addresses, while it runs.
    pub endpoints: Vec<Endpoint>,
    /// Its published ports, while it runs.
    pub ports: Vec<PortMapping>,
    /// Its network namespace, while it runs.
    pub netns: String,
    /// Its log.
    pub log_path: PathBuf,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its folder, which survives a reboot.
    pub home: PathBuf,
    /// Its shim's folder, which does not.
    pub shim_dir: PathBuf,
    view: ArcSwap<View>,
    /// Counts changes, for those who wait; closed when the container is gone.
    changes: watch::Sender<u64>,
    life: Arc<tokio::sync::Mutex<()>>,
    shim: Mutex<Option<Arc<Shim>>>,
    /// Somebody asked it to end: the restart policy has no say.
    stopped: AtomicBool,
    /// It was removed.
    gone: AtomicBool,
    /// Network may know of it.
    attached: AtomicBool,
    /// Clients that still take its output.
    readers: watch::Sender<usize>,
}

/// A client that takes a container's output; its shim stays until it is dropped.
#[derive(Debug)]
pub struct Reading(Arc<Container>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.send_modify(|count| *count -= 1);
    }
}

impl Container {
    /// A container from its records.
    pub fn new(
        id: &str,
        record: ContainerRecord,
        run: RunRecord,
        home: PathBuf,
        shim_dir: PathBuf,
    ) -> Arc<Self> {
        let state = if run.removing {
            State::Removing
        } else if run.ended {
            State::Exited(Exit {
                code: run.exit_code,
                oom: run.oom_killed,
                error: run.error.clone(),
                at: run.finished_at,
            })
        } else {
            State::Created
        };
        let log_path = launch::log_path(&home);
        let view = View {
            id: id.to_owned(),
            record: Arc::new(record),
            run,
            state,
            endpoints: Vec::new(),
            ports: Vec::new(),
            netns: String::new(),
            log_path,
        };
        Arc::new(Self {
            id: id.to_owned(),
            home,
            shim_dir,
            view: ArcSwap::from_pointee(view),
            changes: watch::channel(0).0,
            life: Arc::default(),
            shim: Mutex::default(),
            stopped: AtomicBool::default(),
            gone: AtomicBool::default(),
            attached: AtomicBool::default(),
            readers: watch::channel(0).0,
        })
    }

    /// What it is now.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.view().record.name.clone()
    }

    /// Whether its removal is complete.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Its shim, while there is a line to it.
    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.line().clone()
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Option<Arc<Shim>>> {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view in one step. Callers hold `life`, or change what only they change.
    fn change(&self, alter: impl Fn(&mut View)) {
        self.view.rcu(|view| {
            let mut view = View::clone(view);
            alter(&mut view);
            view
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Takes a step if it is possible. False = it is not.
    fn step(&self, step: &Step) -> bool {
        let mut done = false;
        self.view.rcu(|view| {
            let mut view = View::clone(view);
            done = false;
            if let Some(next) = view.state.after(step) {
                view.state = next;
                done = true;
            }
            view
        });
        self.changes.send_modify(|count| *count += 1);
        done
    }

    fn refuse(&self, action: &'static str, hint: &'static str) -> Error {
        let view = self.view();
        Error::State {
            action,
            name: view.record.name.clone(),
            state: view.state.name(),
            hint,
        }
    }

    fn show_network(&self, sandbox: &Sandbox) {
        self.change(|view| {
            view.netns.clone_from(&sandbox.netns);
            view.endpoints.clone_from(&sandbox.endpoints);
            view.ports.clone_from(&sandbox.ports);
        });
    }

    /// Waits until what is seen is as wanted, or the container is gone.
    pub async fn until(&self, wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let view = self.view();
            if wanted(&view) || self.is_gone() || changes.changed().await.is_err() {
                return view;
            }
        }
    }

    /// Notes a client that takes its output.
    pub fn reading(self: &Arc<Self>) -> Reading {
        self.readers.send_modify(|count| *count += 1);
        Reading(self.clone())
    }

    /// Waits a moment for those who take its output to have all of it.
    async fn read_out(&self) {
        let mut readers = self.readers.subscribe();
        let done = readers.wait_for(|count| *count == 0);
        // One that hangs is not waited for: its output is in the log.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), done).await;
    }

    /// The shim of a running container.
    ///
    /// # Errors
    /// [`Error::State`] when it does not run.
    pub fn running(&self, action: &'static str) -> Result<Arc<Shim>, Error> {
        let view = self.view();
        match (view.state.pid(), self.shim()) {
            (Some(_), Some(shim)) => Ok(shim),
            (Some(_), None) => Err(Error::Shim {
                id: self.id.clone(),
                reason: "the line to it is being restored; try again".into(),
            }),
            _ => Err(self.refuse(action, "; start it first")),
        }
    }
}
