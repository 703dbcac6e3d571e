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

/// What is left to do when a container's state is known; it may take its time.
enum Rest {
    /// It runs: its addresses are shown.
    Show,
    /// Its start was cut off: what it made goes.
    Tidy,
    /// It has just been found to have ended.
    Ended,
    /// It had ended before, and what was made for that run goes.
    Stale,
    /// It had ended before, in order.
    Old,
}

impl Container {
    /// Finds out what it is, taking up the line to its shim, before anybody may ask; the rest goes on in a task of its own.
    pub async fn recover(self: &Arc<Self>, hub: &Arc<Hub>) {
        let life = self.life.clone().lock_owned().await;
        let rest = self.look(hub).await;
        let (this, hub) = (self.clone(), hub.clone());
        let drain = hub.drain.clone();
        drain.spawn("recover", async move {
            // Held until all is done: a start or a removal comes after.
            let life = life;
            this.finish(&hub, rest).await;
            drop(life);
        });
    }

    async fn look(self: &Arc<Self>, hub: &Arc<Hub>) -> Rest {
        let view = self.view();
        if !self.shim_dir.exists() {
            if !view.run.wanted || view.run.ended {
                return Rest::Old;
            }
            // It ran when the host went down.
            self.attached.store(true, Ordering::Release);
            return self.loss(hub).await;
        }
        self.attached.store(true, Ordering::Release);
        self.thaw(hub);
        let Ok((shim, told)) = shim::dial(&self.id, &self.shim_dir, &hub.drain).await else {
            return self.lost_or_stale(hub).await;
        };
        let state = match shim.ask(Request::State(plan::State {})).await {
            Ok((Reply::State(state), _)) => state,
            _ => return self.lost_or_stale(hub).await,
        };
        if !state.running && state.exited.is_none() {
            // The service ended in the middle of a start: nothing runs yet.
            return Rest::Tidy;
        }
        *self.line() = Some(shim);
        let mut run = view.run.clone();
        if run.started_at == 0 || run.ended {
            run.started_at = now();
        }
        run.wanted = true;
        run.ended = false;
        self.change(|view| {
            view.run = run.clone();
            view.state = State::Running { pid: state.pid };
        });
        self.follow(hub, told);
        Rest::Show
    }

    async fn loss(&self, hub: &Hub) -> Rest {
        if self.record_loss(hub).await {
            Rest::Ended
        } else {
            Rest::Tidy
        }
    }

    /// A folder without a living shim: of a run whose end was recorded already, or not.
    async fn lost_or_stale(&self, hub: &Hub) -> Rest {
        let view = self.view();
        let recorded = view.run.ended && (!view.run.wanted || self.is_recorded());
        if recorded || view.state == State::Removing {
            Rest::Stale
        } else {
            self.loss(hub).await
        }
    }

    async fn finish(self: &Arc<Self>, hub: &Arc<Hub>, rest: Rest) {
        match rest {
            Rest::Show => match hub.peers.sandbox(&self.id).await {
                Ok(Some(sandbox)) => self.show_network(&sandbox),
                Ok(None) => {}
                Err(error) => tracing::debug!(id = self.id, %error, "the network is not shown"),
            },
            Rest::Tidy => self.clear_away(hub).await,
            Rest::Ended => {
                self.clear_away(hub).await;
                self.after_end(hub);
            }
            Rest::Stale => {
                self.clear_away(hub).await;
                self.after_end_of_old(hub);
            }
            Rest::Old => self.after_end_of_old(hub),
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
