//! Finding a container again when the service starts.
//!
//! Invariants: a live container is never ended on a guess; what a crash cut off (an end, a removal, a restart) goes on by the same
//! code that would have done it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Container;
use crate::hub::{Hub, now};
use crate::peers::plan::from_shim::Reply;
use crate::peers::plan::to_shim::Request;
use crate::peers::plan::{self, Exited};
use crate::shim;
use crate::state::State;

impl Container {
    /// Takes up the line to a shim that was found alive, or learns that it is not. At the start of the service.
    pub async fn recover(self: &Arc<Self>, hub: &Arc<Hub>) {
        let _life = self.life.lock().await;
        if !self.shim_dir.exists() {
            if self.view().run.wanted && !self.view().run.ended {
                // It ran when the host went down.
                self.attached.store(true, Ordering::Release);
                self.lost(hub).await;
            } else {
                self.after_end_of_old(hub);
            }
            return;
        }
        self.attached.store(true, Ordering::Release);
        let Ok((shim, told)) = shim::dial(&self.id, &self.shim_dir, &hub.drain).await else {
            return self.lost_or_stale(hub).await;
        };
        let state = match shim.ask(Request::State(plan::State {})).await {
            Ok((Reply::State(state), _)) => state,
            _ => return self.lost_or_stale(hub).await,
        };
        if !state.running && state.exited.is_none() {
            // The service ended in the middle of a start: nothing runs yet.
            drop((shim, told));
            return self.clear_away(hub).await;
        }
        *self.line() = Some(shim);
        let mut run = self.view().run.clone();
        if run.started_at == 0 || run.ended {
            run.started_at = now();
        }
        run.wanted = true;
        run.ended = false;
        self.change(|view| {
            view.run = run.clone();
            view.state = State::Running { pid: state.pid };
        });
        match hub.peers.sandbox(&self.id).await {
            Ok(Some(sandbox)) => self.show_network(&sandbox),
            Ok(None) => {}
            Err(error) => tracing::debug!(id = self.id, %error, "the network is not shown"),
        }
        self.follow(hub, told);
    }

    /// A folder without a living shim: of a run whose end was recorded already, or not.
    async fn lost_or_stale(self: &Arc<Self>, hub: &Arc<Hub>) {
        let view = self.view();
        let recorded = view.run.ended && !view.run.wanted
            || view.run.ended && self.shim_dir.join("exit").exists() && self.is_recorded();
        if recorded || view.state == State::Removing {
            self.clear_away(hub).await;
            self.after_end_of_old(hub);
        } else {
            self.lost(hub).await;
        }
    }

    /// Whether the exit on disk is the one that the record knows.
    fn is_recorded(&self) -> bool {
        use prost::Message as _;
        std::fs::read(self.shim_dir.join("exit"))
            .ok()
            .and_then(|bytes| Exited::decode(bytes.as_slice()).ok())
            .is_some_and(|exited| exited.time_ns == self.view().run.finished_at)
    }

    /// What was cut off after an earlier end: a removal, a restart.
    fn after_end_of_old(self: &Arc<Self>, hub: &Arc<Hub>) {
        if self.view().state == State::Removing {
            let (this, hub) = (self.clone(), hub.clone());
            let drain = hub.drain.clone();
            drain.spawn("remove", async move {
                if let Err(error) = this.clone().remove(hub, false, true).await {
                    tracing::warn!(id = this.id, %error, "not removed; it is tried again at the next start of the service");
                }
            });
        } else {
            self.after_end(hub);
        }
    }
}
