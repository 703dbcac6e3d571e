//! Starting a container, what follows its end, and removing it.
//!
//! Invariants: a start that fails leaves nothing running and says why in the state; what follows an end is safe to repeat, and is
//! repeated at the next start of the service when it was cut off; a removal rolls forward only.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Container;
use crate::error::Error;
use crate::hub::{Hub, now};
use crate::launch::{self, Now};
use crate::network;
use crate::peers::Sandbox;
use crate::peers::plan::from_shim::Reply;
use crate::peers::plan::to_shim::Request;
use crate::peers::plan::{self, Exited};
use crate::shim::{self, Shim, Told};
use crate::state::{Exit, State, Step, restart_after};

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attach {
    /// To send input.
    pub stdin: bool,
    /// To get output.
    pub stdout: bool,
    /// To get errors.
    pub stderr: bool,
    /// Rows and columns of its terminal.
    pub size: (u32, u32),
}

/// A container that runs.
#[derive(Debug)]
pub struct Started {
    /// On the host.
    pub pid: i32,
    /// The client's end of the streams, when it asked for them.
    pub socket: Option<OwnedFd>,
}

impl Container {
    /// Starts it unless it runs, attaching first so that no output is missed.
    ///
    /// # Errors
    /// [`Error::Launch`] with docker's exit code when the program cannot be started.
    pub async fn start(
        self: Arc<Self>,
        hub: Arc<Hub>,
        attach: Option<Attach>,
    ) -> Result<Started, Error> {
        self.stopped.store(false, Ordering::Release);
        let _life = self.life.lock().await;
        if let Some(pid) = self.view().state.pid() {
            let socket = match attach {
                Some(attach) => Some(self.attach(attach).await?),
                None => None,
            };
            return Ok(Started { pid, socket });
        }
        self.launch(&hub, attach).await
    }

    /// Streams of a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn attach(&self, attach: Attach) -> Result<OwnedFd, Error> {
        let shim = self.running("attach to")?;
        self.ask_attach(&shim, attach).await
    }

    async fn ask_attach(&self, shim: &Shim, attach: Attach) -> Result<OwnedFd, Error> {
        let request = Request::Attach(plan::Attach {
            stdin: attach.stdin,
            stdout: attach.stdout,
            stderr: attach.stderr,
        });
        let (_, fds) = shim.ask(request).await?;
        fds.into_iter().next().ok_or_else(|| Error::Shim {
            id: self.id.clone(),
            reason: "it sent no stream".into(),
        })
    }

    /// The whole way from rest to running; `life` is held.
    async fn launch(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        attach: Option<Attach>,
    ) -> Result<Started, Error> {
        if self.is_gone() {
            return Err(Error::NoContainer(self.id.clone()));
        }
        if !self.step(&Step::Start) {
            return Err(self.refuse("start", ""));
        }
        let launched = self.try_launch(hub, attach).await;
        match launched {
            Ok((started, told)) => {
                self.step(&Step::Launched(started.pid));
                let mut run = self.view().run.clone();
                run.wanted = true;
                run.ended = false;
                run.started_at = now();
                run.error.clear();
                // Not waited for: the shim's folder tells of a start whose record was lost.
                hub.save_run_lazily(&self.id, &run)?;
                self.change(|view| view.run = run.clone());
                self.follow(hub, told);
                hub.tell(self, "start", &[]);
                Ok(started)
            }
            Err(error) => {
                *self.line() = None;
                self.clear_away(hub).await;
                let exit = Exit {
                    code: error.exit_code(),
                    error: error.to_string(),
                    oom: false,
                    at: now(),
                };
                self.ended(hub, exit, true).await?;
                let code = error.exit_code().to_string();
                hub.tell(self, "die", &[("exitCode", code)]);
                self.after_end(hub);
                Err(error)
            }
        }
    }

    async fn try_launch(
        &self,
        hub: &Arc<Hub>,
        attach: Option<Attach>,
    ) -> Result<(Started, mpsc::UnboundedReceiver<Told>), Error> {
        let view = self.view();
        let record = &view.record;
        let config = record.config.clone().unwrap_or_default();
        std::fs::create_dir_all(&self.shim_dir).map_err(Error::io("make", &self.shim_dir))?;
        let (shim, told) = shim::spawn(&hub.shim, &self.id, &self.shim_dir, &hub.drain)?;
        *self.line() = Some(shim.clone());
        let join = hub.joined(&config)?;
        let sandbox = match network::wish(record, &config, hub)? {
            network::Mode::Own(wish) => {
                self.attached.store(true, Ordering::Release);
                hub.peers.attach(&self.id, wish).await?
            }
            network::Mode::Host => Sandbox::default(),
            network::Mode::Join(sandbox) => sandbox,
        };
        network::write_files(&self.home, record, &config, &sandbox)?;
        self.show_network(&sandbox);
        let now = Now {
            netns: sandbox.netns,
            home: self.home.clone(),
            join,
            size: attach.map(|attach| attach.size).unwrap_or_default(),
        };
        let plan = launch::launch(&hub.host, &self.id, record, &now)?;
        let socket = async {
            match attach {
                Some(attach) => self.ask_attach(&shim, attach).await.map(Some),
                None => Ok(None),
            }
        };
        // Both on their way at once: the shim takes them in order.
        let (socket, launched) = tokio::join!(biased; socket, shim.ask(Request::Launch(plan)));
        let (reply, _) = launched?;
        let Reply::Launched(launched) = reply else {
            return Err(Error::Shim {
                id: self.id.clone(),
                reason: "it answered a launch with something else".into(),
            });
        };
        for warning in launched.warnings {
            tracing::debug!(id = self.id, warning, "started with a warning");
        }
        let started = Started {
            pid: launched.pid,
            socket: socket?,
        };
        Ok((started, told))
    }

    /// Listens to the shim from now on.
    pub fn follow(self: &Arc<Self>, hub: &Arc<Hub>, mut told: mpsc::UnboundedReceiver<Told>) {
        let (this, hub) = (self.clone(), hub.clone());
        let drain = hub.drain.clone();
        drain.spawn("container", async move {
            loop {
                let event = tokio::select! {
                    () = hub.drain.cancelled() => return,
                    event = told.recv() => event,
                };
                match event {
                    Some(Told::Exited(exited)) if exited.exec_id.is_empty() => {
                        return this.on_exit(&hub, &exited).await;
                    }
                    Some(Told::Exited(exited)) => {
                        this.tell_exec(&hub, &exited);
                    }
                    Some(Told::Oom) => hub.tell(&this, "oom", &[]),
                    Some(Told::Closed) | None => return this.on_loss(&hub).await,
                }
            }
        });
    }

    fn tell_exec(&self, hub: &Hub, exited: &Exited) {
        let code = exited.exit_code.to_string();
        hub.exec_ended(&exited.exec_id, exited.exit_code);
        hub.tell(
            self,
            "exec_die",
            &[("execID", exited.exec_id.clone()), ("exitCode", code)],
        );
    }

    async fn on_exit(self: &Arc<Self>, hub: &Arc<Hub>, exited: &Exited) {
        let _life = self.life.lock().await;
        let exit = Exit {
            code: exited.exit_code,
            oom: exited.oom_killed,
            error: String::new(),
            at: exited.time_ns,
        };
        // One that is removed at once has no need of a record on disk: the shim's tells the same until then.
        let removes = self.removes_itself();
        if let Err(error) = self.ended(hub, exit, !removes).await {
            // Not acknowledged: the shim keeps the record, and the next start of the service reads it.
            tracing::error!(id = self.id, %error, "an exit could not be recorded");
            return;
        }
        if exited.oom_killed {
            hub.tell(self, "oom", &[]);
        }
        let code = exited.exit_code.to_string();
        hub.tell(self, "die", &[("exitCode", code)]);
        self.read_out().await;
        self.dismiss().await;
        self.clear_away(hub).await;
        self.after_end(hub);
    }

    /// Lets the shim go, which removes the control groups first.
    async fn dismiss(&self) {
        let line = self.line().take();
        if let Some(shim) = line {
            // An error means that it is gone already.
            let _ = shim.ask(Request::Ack(plan::Ack {})).await;
        }
    }

    /// The line closed without an exit: the shim was killed. What it leaves is ended, since nobody can look after it.
    async fn on_loss(self: &Arc<Self>, hub: &Arc<Hub>) {
        if hub.drain.is_started() {
            return;
        }
        let _life = self.life.lock().await;
        if self.view().state.pid().is_none() {
            return;
        }
        if self.record_loss(hub).await {
            self.clear_away(hub).await;
            self.after_end(hub);
        }
    }

    /// Records the end of a container whose shim is gone, by the shim's last word if there is one.
    /// False = it could not be recorded.
    pub(super) async fn record_loss(&self, hub: &Hub) -> bool {
        use prost::Message as _;
        *self.line() = None;
        let last = std::fs::read(self.shim_dir.join("exit"))
            .ok()
            .and_then(|bytes| Exited::decode(bytes.as_slice()).ok());
        let exit = match last {
            Some(exited) => Exit {
                code: exited.exit_code,
                oom: exited.oom_killed,
                error: String::new(),
                at: exited.time_ns,
            },
            None => Exit {
                code: 255,
                oom: false,
                error: "its shim was killed, or the host went down".into(),
                at: now(),
            },
        };
        let code = exit.code.to_string();
        if let Err(error) = self.ended(hub, exit, true).await {
            tracing::error!(id = self.id, %error, "an exit could not be recorded");
            return false;
        }
        hub.tell(self, "die", &[("exitCode", code)]);
        true
    }

    /// Records the end and shows it.
    async fn ended(&self, hub: &Hub, exit: Exit, wait: bool) -> Result<(), Error> {
        let mut run = self.view().run.clone();
        run.ended = true;
        run.exit_code = exit.code;
        run.oom_killed = exit.oom;
        run.error.clone_from(&exit.error);
        run.finished_at = exit.at;
        if wait {
            hub.save_run(&self.id, &run).await?;
        }
        self.change(|view| {
            view.run = run.clone();
            view.state = view
                .state
                .after(&Step::Ended(exit.clone()))
                .unwrap_or_else(|| State::Exited(exit.clone()));
        });
        Ok(())
    }

    /// Takes away what a run leaves: processes and control groups of a lost shim, its folder, the network. Safe to repeat.
    pub async fn clear_away(&self, hub: &Hub) {
        hub.end_processes(&self.id, &self.shim_dir).await;
        self.remove_shim_dir().await;
        if self.attached.load(Ordering::Acquire) {
            match hub.peers.detach(&self.id).await {
                Ok(()) => self.attached.store(false, Ordering::Release),
                // Asked again at removal and at the next start of the service.
                Err(error) => {
                    tracing::debug!(id = self.id, %error, "the network is left for later")
                }
            }
        }
        self.show_network(&Sandbox::default());
    }

    /// A shim that was never told to launch may still be making its files.
    async fn remove_shim_dir(&self) {
        let mut left = 100;
        loop {
            match std::fs::remove_dir_all(&self.shim_dir) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(error) if left == 0 => {
                    tracing::warn!(id = self.id, %error, "the shim's folder is left");
                    return;
                }
                Err(_) => left -= 1,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn removes_itself(&self) -> bool {
        let view = self.view();
        view.record
            .config
            .as_ref()
            .is_some_and(|config| config.auto_remove)
    }

    /// Removal or a restart, as the container was made for. `life` is held; both happen in tasks of their own.
    pub(super) fn after_end(self: &Arc<Self>, hub: &Arc<Hub>) {
        let view = self.view();
        let State::Exited(exit) = &view.state else {
            return;
        };
        let (this, hub) = (self.clone(), hub.clone());
        let drain = hub.drain.clone();
        if self.removes_itself() {
            drain.spawn("auto-remove", async move {
                if let Err(error) = this.clone().remove(hub, false, true).await {
                    tracing::warn!(id = this.id, %error, "not removed; it is tried again at the next start of the service");
                }
            });
            return;
        }
        let config = view.record.config.clone().unwrap_or_default();
        let policy = config.restart.unwrap_or_default();
        let ran = u64::try_from(view.run.finished_at - view.run.started_at).unwrap_or(0);
        // A program that could not be started at all is not tried again, as docker does.
        let never_ran = !exit.error.is_empty() && exit.code != 255;
        let pause = restart_after(
            &policy.name,
            policy.maximum_retries,
            exit,
            view.run.restart_count,
            Duration::from_nanos(ran),
            self.stopped.load(Ordering::Acquire) || never_ran || !view.run.wanted,
        );
        if let Some(pause) = pause {
            drain.spawn("restart", async move { this.again(&hub, pause).await });
        }
    }

    async fn again(self: Arc<Self>, hub: &Arc<Hub>, pause: Duration) {
        let ended_at = self.view().run.finished_at;
        tokio::select! {
            () = hub.drain.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let _life = self.life.lock().await;
        let view = self.view();
        // Somebody stopped, started or removed it meanwhile.
        if self.stopped.load(Ordering::Acquire)
            || view.run.finished_at != ended_at
            || !matches!(view.state, State::Exited(_))
        {
            return;
        }
        self.change(|view| view.run.restart_count += 1);
        if let Err(error) = self.launch(hub, None).await {
            tracing::debug!(id = self.id, %error, "the restart failed");
        }
    }

    /// Removes it with everything that is its own; `force` ends it first.
    ///
    /// # Errors
    /// [`Error::State`] when it runs and is not to be ended.
    pub async fn remove(
        self: Arc<Self>,
        hub: Arc<Hub>,
        force: bool,
        volumes: bool,
    ) -> Result<(), Error> {
        if self.view().state.is_active() {
            if !force {
                return Err(self.refuse("remove", "; stop it first, or remove it with force (-f)"));
            }
            self.end_now(&hub).await?;
        }
        let _life = self.life.lock().await;
        if self.is_gone() {
            return Ok(());
        }
        self.stopped.store(true, Ordering::Release);
        if !self.step(&Step::Remove) {
            return Err(self.refuse("remove", "; it was started again meanwhile"));
        }
        let mut run = self.view().run.clone();
        run.removing = true;
        hub.save_run_lazily(&self.id, &run)?;
        self.change(|view| view.run = run.clone());
        self.clear_away(&hub).await;
        hub.forget(&self, volumes).await?;
        self.gone.store(true, Ordering::Release);
        hub.tell(&self, "destroy", &[]);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }
}
