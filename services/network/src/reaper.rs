//! What nobody waits for: interfaces of sandboxes that went, and records on their way to the database.
//!
//! The kernel takes tens of milliseconds to let go of an interface, so it is done beside the way of a detach.
//!
//! Invariants: the addresses of a sandbox come free only when its interfaces are gone, so that two never answer for one
//! address; jobs are done in order; what a killed process leaves undone, the next start does.

use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use gantry_meta::{Batch, Db};
use gantry_sys::netns::Family;

use crate::Error;
use crate::links;
use crate::netlink::Connection;

/// A sandbox that went.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    pub(crate) id: String,
    pub(crate) links: Vec<String>,
    /// Network and address, to be given back.
    pub(crate) addresses: Vec<(String, IpAddr)>,
}

#[derive(Debug)]
enum Job {
    Remove(Gone),
    Write(Batch),
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Vec<Job>,
    /// Ids whose interfaces are not gone yet.
    going: Vec<String>,
    /// Jobs that are neither waiting nor done.
    working: bool,
    /// Addresses that may be given back.
    freed: Vec<(String, String, IpAddr)>,
    ended: bool,
}

/// The thread's mailbox.
#[derive(Debug)]
pub(crate) struct Reaper {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Reaper {
    /// Starts the thread.
    pub(crate) fn start(db: Db) -> Result<Arc<Reaper>, Error> {
        let action = "start to remove interfaces";
        let mut route = Connection::open(Family::Route).map_err(Error::kernel(action))?;
        let reaper = Arc::new(Reaper {
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = reaper.clone();
        std::thread::Builder::new()
            .name("net-reaper".into())
            .stack_size(256 << 10)
            .spawn(move || own.work(&mut route, &db))
            .map_err(Error::kernel(action))?;
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, route: &mut Connection, db: &Db) {
        loop {
            let mut inner = self.lock();
            while inner.waiting.is_empty() && !inner.ended {
                inner = self.wait(inner);
            }
            if inner.waiting.is_empty() {
                return;
            }
            inner.working = true;
            let jobs = std::mem::take(&mut inner.waiting);
            drop(inner);
            let mut gone = Vec::new();
            for job in jobs {
                match job {
                    Job::Remove(sandbox) => gone.push(sandbox),
                    Job::Write(batch) => {
                        if let Err(error) = db.commit_lazy(batch) {
                            tracing::warn!(%error, "a record did not reach the database; it stays in the journal");
                        }
                    }
                }
            }
            let names: Vec<String> = gone.iter().flat_map(|one| one.links.clone()).collect();
            if let Err(error) = links::delete(route, &names) {
                tracing::warn!(%error, "interfaces stay behind; the next start sweeps them");
            }
            let mut inner = self.lock();
            for one in gone {
                if let Some(at) = inner.going.iter().position(|id| *id == one.id) {
                    inner.going.swap_remove(at);
                }
                let id = &one.id;
                let freed = one
                    .addresses
                    .into_iter()
                    .map(|(net, ip)| (net, id.clone(), ip));
                inner.freed.extend(freed);
            }
            inner.working = false;
            self.changed.notify_all();
        }
    }

    fn post(&self, mut inner: MutexGuard<'_, Inner>, job: Job) {
        inner.waiting.push(job);
        self.changed.notify_all();
    }

    /// Takes a sandbox's interfaces away, soon.
    pub(crate) fn remove(&self, gone: Gone) {
        let mut inner = self.lock();
        inner.going.push(gone.id.clone());
        self.post(inner, Job::Remove(gone));
    }

    /// Writes records, soon.
    pub(crate) fn write(&self, batch: Batch) {
        self.post(self.lock(), Job::Write(batch));
    }

    /// Addresses that came free since this was asked last: network, owner, address.
    pub(crate) fn freed(&self) -> Vec<(String, String, IpAddr)> {
        std::mem::take(&mut self.lock().freed)
    }

    /// Waits until a sandbox's interfaces are gone.
    pub(crate) fn wait_for(&self, id: &str) {
        let mut inner = self.lock();
        while inner.going.iter().any(|going| going == id) {
            inner = self.wait(inner);
        }
    }

    /// Waits until everything is done; says whether there was anything.
    pub(crate) fn wait_all(&self) -> bool {
        let mut inner = self.lock();
        let busy = inner.working || !inner.waiting.is_empty();
        while inner.working || !inner.waiting.is_empty() {
            inner = self.wait(inner);
        }
        busy
    }

    /// Does what is left and ends the thread.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
        self.wait_all();
    }
}
