//! Further processes in a running container.
//!
//! Invariant: an exec has the container's limits, namespaces, filter and capabilities, unless it is asked to be privileged.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use crate::container::Container;
use crate::error::Error;
use crate::hub::Hub;
use crate::launch;
use crate::names;
use crate::peers::plan;
use crate::peers::plan::from_shim::Reply;
use crate::peers::plan::to_shim::Request;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Over the container's.
    pub env: Vec<String>,
    /// Empty = the container's.
    pub workdir: String,
    /// Empty = the container's.
    pub user: String,
    /// On a terminal.
    pub tty: bool,
    /// Somebody will type.
    pub stdin: bool,
    /// With every capability and no filter.
    pub privileged: bool,
    /// Nobody listens.
    pub detach: bool,
    /// Rows and columns.
    pub size: (u32, u32),
}

/// An exec that runs.
#[derive(Debug)]
pub struct Running {
    /// Its id.
    pub exec_id: String,
    /// On the host.
    pub pid: i32,
    /// Its streams, unless detached.
    pub socket: Option<OwnedFd>,
    /// Its exit code, when it has ended.
    pub ended: watch::Receiver<Option<i32>>,
}

/// Starts it.
///
/// # Errors
/// [`Error::State`] when the container does not run, [`Error::Launch`] when the program cannot be started.
pub async fn start(
    hub: Arc<Hub>,
    container: Arc<Container>,
    wanted: Wanted,
) -> Result<Running, Error> {
    let shim = container.running("exec in")?;
    if wanted.args.is_empty() {
        return Err(Error::field("command", "", "write what to run"));
    }
    if !wanted.workdir.is_empty() && !wanted.workdir.starts_with('/') {
        return Err(Error::field(
            "workdir",
            &wanted.workdir,
            "write an absolute path",
        ));
    }
    let view = container.view();
    let mut process = launch::process(&hub.host, &view.record, wanted.privileged)?;
    process.args = wanted.args;
    if !wanted.workdir.is_empty() {
        process.cwd = wanted.workdir;
    }
    if !wanted.user.is_empty() {
        process.user = wanted.user;
        process.additional_groups.clear();
    }
    process.terminal = wanted.tty;
    if wanted.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
        process.env.push("TERM=xterm".into());
    }
    for entry in &wanted.env {
        let name = entry.split('=').next();
        process.env.retain(|known| known.split('=').next() != name);
        process.env.push(entry.clone());
    }
    (process.rows, process.columns) = wanted.size;
    let exec_id = names::id();
    let ended = hub.exec_began(&exec_id);
    let request = Request::Exec(plan::Exec {
        exec_id: exec_id.clone(),
        process: Some(process),
        stdin: wanted.stdin,
        detach: wanted.detach,
    });
    let launched = match shim.ask(request).await {
        Ok((Reply::Launched(launched), fds)) => Ok((launched.pid, fds.into_iter().next())),
        Ok(_) => Err(Error::Shim {
            id: container.id.clone(),
            reason: "it answered an exec with something else".into(),
        }),
        Err(error) => Err(error),
    };
    match launched {
        Ok((pid, socket)) => {
            hub.tell(&container, "exec_start", &[("execID", exec_id.clone())]);
            Ok(Running {
                exec_id,
                pid,
                socket,
                ended,
            })
        }
        Err(error) => {
            hub.exec_ended(&exec_id, error.exit_code());
            Err(error)
        }
    }
}

/// Sends a signal to an exec, or to the container itself when the id is empty.
///
/// # Errors
/// When the container does not run.
pub async fn signal(container: &Container, exec_id: &str, number: i32) -> Result<(), Error> {
    let request = Request::Signal(plan::Signal {
        signal: number,
        exec_id: exec_id.to_owned(),
        all: false,
    });
    container.running("signal")?.ask(request).await.map(drop)
}

/// Sizes the terminal of an exec, or of the container itself when the id is empty.
///
/// # Errors
/// When there is no terminal.
pub async fn resize(
    container: &Container,
    exec_id: &str,
    rows: u32,
    columns: u32,
) -> Result<(), Error> {
    let request = Request::Resize(plan::Resize {
        exec_id: exec_id.to_owned(),
        rows,
        columns,
    });
    container.running("resize")?.ask(request).await.map(drop)
}
