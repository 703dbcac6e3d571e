//! Namespaces made ahead of time, so that making one is not on the path of a start.
//!
//! Invariants: a pooled namespace lives by its descriptor alone, so that it vanishes with the process; its loopback is
//! up, and no address in it waits for duplicate detection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_chassis::Drain;
use gantry_sys::netns::{self, Family};
use tokio::sync::Notify;

use crate::netlink::{Connection, route};
use crate::sysctl;

/// How long after one was taken the next is made, while there are enough.
const AFTER: Duration = Duration::from_millis(20);

/// A namespace of which nobody knows yet.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) namespace: OwnedFd,
    /// Speaks to the kernel inside it.
    pub(crate) route: Connection,
}

/// The namespaces that are ready.
#[derive(Debug)]
pub(crate) struct Pool {
    ready: Mutex<VecDeque<Fresh>>,
    size: usize,
    taken: Notify,
}

/// Makes a namespace.
fn make() -> io::Result<Fresh> {
    let (namespace, route) = netns::create(|| {
        let mut route = Connection::open(Family::Route)?;
        // The loopback is the first interface of every namespace.
        route
            .ask(vec![route::set_up(1)])
            .map_err(|refused| refused.source)?;
        for kind in ["all", "default"] {
            for setting in ["accept_dad", "accept_ra"] {
                sysctl::try_set(&format!("net/ipv6/conf/{kind}/{setting}"), "0");
            }
        }
        Ok(route)
    })?;
    Ok(Fresh { namespace, route })
}

impl Pool {
    pub(crate) fn new(size: u32) -> Arc<Pool> {
        Arc::new(Pool {
            ready: Mutex::default(),
            size: size as usize,
            taken: Notify::new(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Fresh>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ready namespace, or one made on the spot.
    pub(crate) fn take(&self) -> io::Result<Fresh> {
        let ready = self.lock().pop_front();
        self.taken.notify_one();
        ready.map_or_else(make, Ok)
    }

    /// Keeps the pool full until the drain starts.
    pub(crate) fn keep_full(self: &Arc<Self>, drain: &Drain) {
        let (pool, ended) = (self.clone(), drain.clone());
        drain.spawn("netns pool", async move {
            loop {
                while pool.lock().len() < pool.size && !ended.is_started() {
                    match tokio::task::spawn_blocking(make).await {
                        Ok(Ok(fresh)) => pool.lock().push_back(fresh),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "a namespace could not be made ahead of time");
                            break;
                        }
                        Err(_) => break,
                    }
                }
                tokio::select! {
                    () = ended.cancelled() => break,
                    () = pool.taken.notified() => {}
                }
                // The one who took it is busy with the kernel's lock that making one needs too.
                if pool.lock().len() * 2 >= pool.size {
                    tokio::time::sleep(AFTER).await;
                }
            }
            pool.lock().clear();
        });
    }
}
