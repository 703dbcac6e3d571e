//! Ending a container: politely, by force, with a signal of the user's choice.
//!
//! Invariants: nobody waits for a process that cannot hear the signal; a stop outlives the client that asked for it; once somebody
//! asked for the end, no restart policy starts the container again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Container;
use crate::error::Error;
use crate::hub::Hub;
use crate::peers::plan;
use crate::peers::plan::to_shim::Request;
use crate::signal;
use crate::state::Step;

/// How long a killed container may take to be gone.
const KILLED: Duration = Duration::from_secs(30);

impl Container {
    /// Notes that it is not to run.
    async fn unwanted(&self, hub: &Hub) -> Result<(), Error> {
        self.stopped.store(true, Ordering::Release);
        let mut run = self.view().run.clone();
        if run.wanted {
            run.wanted = false;
            hub.save_run(&self.id, &run).await?;
            self.change(|view| view.run.wanted = false);
        }
        Ok(())
    }

    async fn send(&self, number: i32) -> Result<(), Error> {
        let Some(shim) = self.shim() else {
            return Ok(());
        };
        let request = Request::Signal(plan::Signal {
            signal: number,
            exec_id: String::new(),
            all: false,
        });
        match shim.ask(request).await {
            // The shim is gone, and the container with it.
            Err(Error::Shim { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether its first process would notice the signal.
    fn hears(&self, number: i32) -> bool {
        let view = self.view();
        let config = view.record.config.clone().unwrap_or_default();
        let own_pids = config
            .security
            .as_ref()
            .is_none_or(|security| security.pid_mode.is_empty() || security.pid_mode == "private");
        let Some(pid) = view.state.pid() else {
            return true;
        };
        if config.init || !own_pids {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        signal::reaches_init(&status, number)
    }

    /// False = it has not ended in time.
    async fn ends_within(&self, hub: &Hub, time: Duration) -> Result<bool, Error> {
        let wait = self.until(|view| !view.state.is_active());
        tokio::select! {
            ended = tokio::time::timeout(time, wait) => Ok(ended.is_ok()),
            // Noted is that it is to end; the repeat of the order goes on from there.
            () = hub.drain.cancelled() => Err(Error::Ending),
        }
    }

    /// Asks it to end, waits for the grace (its own unless given), kills it.
    ///
    /// # Errors
    /// [`Error::DoesNotEnd`] when even SIGKILL does not end it.
    pub async fn stop(
        self: Arc<Self>,
        hub: Arc<Hub>,
        grace: Option<i64>,
        with: Option<i32>,
    ) -> Result<(), Error> {
        self.unwanted(&hub).await?;
        // A start that is under way comes first.
        drop(self.life.lock().await);
        if !self.step(&Step::Stop) {
            return Ok(());
        }
        let view = self.view();
        let config = view.record.config.clone().unwrap_or_default();
        let grace = grace
            .or(config.stop_timeout_seconds)
            .unwrap_or(hub.config.stop_timeout_seconds);
        let number = with.unwrap_or(view.record.stop_signal);
        let mut ended = false;
        if number == signal::KILL || self.hears(number) {
            self.send(number).await?;
            // A negative grace means to wait for ever, as docker has it.
            ended = match u64::try_from(grace) {
                Ok(seconds) => self.ends_within(&hub, Duration::from_secs(seconds)).await?,
                Err(_) => {
                    tokio::select! {
                        _ = self.until(|view| !view.state.is_active()) => true,
                        () = hub.drain.cancelled() => return Err(Error::Ending),
                    }
                }
            };
        }
        if !ended {
            self.kill_and_wait(&hub).await?;
        }
        hub.tell(&self, "stop", &[]);
        Ok(())
    }

    async fn kill_and_wait(&self, hub: &Hub) -> Result<(), Error> {
        self.send(signal::KILL).await?;
        if self.ends_within(hub, KILLED).await? {
            return Ok(());
        }
        Err(Error::DoesNotEnd(self.name()))
    }

    /// Ends it without asking, for a removal by force.
    pub(super) async fn end_now(&self, hub: &Hub) -> Result<(), Error> {
        self.unwanted(hub).await?;
        drop(self.life.lock().await);
        if self.view().state.is_active() {
            self.kill_and_wait(hub).await?;
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::State`] when it does not run.
    pub async fn kill(self: Arc<Self>, hub: Arc<Hub>, number: i32) -> Result<(), Error> {
        self.running("kill")?;
        if number == signal::KILL || number == self.view().record.stop_signal {
            self.unwanted(&hub).await?;
        }
        self.send(number).await?;
        hub.tell(&self, "kill", &[("signal", number.to_string())]);
        Ok(())
    }
}
