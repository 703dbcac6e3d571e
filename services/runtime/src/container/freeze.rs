//! A container that stands still for a while, so that its files can be read as they are at one moment.
//!
//! Invariants: it stands still only as long as the guard lives, and no other change of its life happens meanwhile; a guard that was lost
//! with the service is made good when the service looks at its containers again. Sources: cgroup-v2.rst, "cgroup.freeze";
//! freezer-subsystem.rst.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::Container;
use crate::error::Error;
use crate::hub::Hub;
use crate::launch;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The file that freezes, what goes into it, and where the kernel says that it is done.
#[derive(Debug)]
struct Switch {
    file: PathBuf,
    on: &'static str,
    off: &'static str,
    told: PathBuf,
    word: &'static str,
}

fn switch(hub: &Hub, id: &str) -> Option<Switch> {
    launch::directories(&hub.host, id)
        .into_iter()
        .find_map(|(controllers, dir)| {
            if controllers.is_empty() {
                return Some(Switch {
                    file: dir.join("cgroup.freeze"),
                    on: "1",
                    off: "0",
                    told: dir.join("cgroup.events"),
                    word: "frozen 1",
                });
            }
            let is_freezer = controllers.split(',').any(|name| name == "freezer");
            is_freezer.then(|| Switch {
                file: dir.join("freezer.state"),
                on: "FROZEN",
                off: "THAWED",
                told: dir.join("freezer.state"),
                word: "FROZEN",
            })
        })
}

/// It stands still while this lives.
#[derive(Debug)]
pub struct Frozen {
    switch: Switch,
    _life: OwnedMutexGuard<()>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.switch.file, self.switch.off) {
            tracing::debug!(file = %self.switch.file.display(), %error, "thaw");
        }
    }
}

impl Container {
    /// Makes it stand still.
    ///
    /// # Errors
    /// [`Error::State`] when it does not run; when the kernel refuses, or takes too long (a process that waits for a device).
    pub async fn freeze(self: &Arc<Self>, hub: &Hub) -> Result<Frozen, Error> {
        let life = self.life.clone().lock_owned().await;
        self.running("freeze")?;
        let switch = switch(hub, &self.id).ok_or_else(|| Error::Field {
            field: "id",
            value: self.name(),
            reason: "the host has no freezer; mount the cgroup controller, or do without the pause"
                .into(),
        })?;
        let file = switch.file.clone();
        std::fs::write(&file, switch.on).map_err(Error::io("freeze by", &file))?;
        // From here on, whatever happens thaws it.
        let frozen = Frozen {
            switch,
            _life: life,
        };
        let began = Instant::now();
        loop {
            let told = std::fs::read_to_string(&frozen.switch.told)
                .map_err(Error::io("read", &frozen.switch.told))?;
            if told.lines().any(|line| line == frozen.switch.word) {
                return Ok(frozen);
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Field {
                    field: "id",
                    value: self.name(),
                    reason:
                        "a process of it does not stand still; try again, or do without the pause"
                            .into(),
                });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets it go on, if a service that was killed left it standing.
    pub(super) fn thaw(&self, hub: &Hub) {
        if let Some(switch) = switch(hub, &self.id) {
            // Without the folder nothing stands.
            let _ = std::fs::write(&switch.file, switch.off);
        }
    }
}
