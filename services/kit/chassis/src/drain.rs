//! Graceful end: stop accepting, finish within a grace period, exit.
//!
//! Invariants: every task of a daemon is spawned here, so `finish` knows them all; a drain never goes back.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A handle on the end of a daemon; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    token: CancellationToken,
    tasks: TaskTracker,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Counts a task as long as it is there.
struct Running {
    all: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    name: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(self.name) {
            *count -= 1;
        }
        all.retain(|_, count| *count > 0);
    }
}

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task that [`Drain::finish`] waits for. Long-lived loops select on [`Drain::cancelled`].
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        *self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name)
            .or_default() += 1;
        let counted = Running {
            all: self.running.clone(),
            name,
        };
        let future = async move {
            let _counted = counted;
            future.await
        };
        self.tasks
            .spawn(future.instrument(tracing::debug_span!("task", name)))
    }

    /// Names of the tasks that run, for a message about those that do not end.
    pub fn running(&self) -> String {
        let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<String> = all
            .iter()
            .map(|(name, count)| format!("{name} ({count})"))
            .collect();
        names.join(", ")
    }

    /// Asks everything to end.
    pub fn start(&self) {
        self.token.cancel();
    }

    /// Whether the end has been asked for.
    pub fn is_started(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns once the end has been asked for.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Starts the end and waits for the tasks, at most `grace`. Returns false when some did not end in time.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.start();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finish_waits_for_tasks_and_gives_up_after_the_grace() {
        let drain = Drain::new();
        let inner = drain.clone();
        drain.spawn("good", async move { inner.cancelled().await });
        assert!(drain.finish(Duration::from_secs(5)).await);

        let drain = Drain::new();
        drain.spawn("stuck", std::future::pending::<()>());
        assert!(!drain.finish(Duration::from_millis(10)).await);
    }
}
