//! `run`, `create`, `start`, `attach`: everything that joins the user with a process.
//!
//! Invariants: exit codes are docker's (125 the engine, 126 and 127 the program, else its own); a container of `run` starts only
//! once its output has a listener; an engine that restarts in the middle does not end the command.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args};
use gantry_proto::registry::{PullPolicy, PullRequest};
use gantry_proto::runtime::attach_input::Input as AttachWire;
use gantry_proto::runtime::{
    AttachInput, AttachOpen, Container, CreateRequest, CreateResponse, GetRequest, StartRequest,
    Status, WaitRequest, WaitResponse,
};
use gantry_types::{Classify as _, ErrorKind};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{Error, Result};
use crate::flags::misc::detach_keys;
use crate::flags::run::RunFlags;
use crate::output::print;
use crate::peers::Engine;
use crate::progress;
use crate::stream::{self, Ended, Input, Options};
use crate::tty;

/// Docker's.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Make a container and run it
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "EXAMPLES:\n  ctl run --rm -it debian bash\n  ctl run -d --name web -p 8080:80 nginx\n  ctl run --rm -v \"$PWD:/src\" -w /src rust cargo test\n\nEXIT STATUS: the program's own; 125 when the engine could not run it, 126 when it cannot be executed, 127 when it was not found."
)]
pub struct Run {
    /// Run in the background and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Streams to join: stdin, stdout, stderr
    #[arg(short, long, value_name = "STREAM", value_parser = ["stdin", "stdout", "stderr"], ignore_case = true)]
    attach: Vec<String>,
    /// Pass signals on to the program
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container without ending it
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    #[command(flatten)]
    flags: RunFlags,
}

/// Make a container without running it
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "EXAMPLES:\n  ctl create --name web nginx && ctl start web"
)]
pub struct Create {
    #[command(flatten)]
    flags: RunFlags,
}

/// Run containers that are there
#[derive(Debug, Args)]
pub struct Start {
    /// Join their output and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Join their input
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container without ending it
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Ids or names
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Join a running container's streams
#[derive(Debug, Args)]
pub struct Attach {
    /// Do not join its input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the program
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container without ending it
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Id or name
    container: String,
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(255))
}

/// The engine's word on how it ended, its reason on standard error.
pub fn exit_of(exit: &WaitResponse) -> ExitCode {
    if !exit.error.is_empty() {
        eprintln!("ctl: {}", exit.error);
    }
    code(exit.exit_code)
}

async fn make(engine: &Engine, flags: &RunFlags) -> Result<CreateResponse> {
    let config = flags.config().map_err(Error::Usage)?;
    if let Some(file) = &flags.cidfile
        && std::path::Path::new(file).exists()
    {
        return Err(Error::Usage(format!(
            "container id file {file} exists already; remove it or name another one"
        )));
    }
    let wanted = |policy: PullPolicy| PullRequest {
        reference: flags.image().to_owned(),
        platform: config.platform.clone(),
        policy: policy.into(),
        unpack: true,
        ..PullRequest::default()
    };
    let missing = wanted(PullPolicy::Always);
    match flags.pull.as_str() {
        "always" => drop(progress::pull(engine, wanted(PullPolicy::Always), flags.quiet).await?),
        "newer" => drop(progress::pull(engine, wanted(PullPolicy::Newer), flags.quiet).await?),
        _ => {}
    }
    // A repeat after a broken connection finds what the first one made.
    let key = format!("{:032x}", rand::random::<u128>());
    let mut request = CreateRequest {
        config: Some(config),
        idempotency_key: key,
    };
    let create = async |request: &CreateRequest| {
        engine
            .call(|| {
                let (mut client, request) = (engine.runtime(), request.clone());
                async move { client.create(request).await }
            })
            .await
    };
    let made = match create(&request).await {
        Err(error) if error.is_missing_image() && flags.pull == "missing" => {
            if !flags.quiet {
                eprintln!("Image {} is not here yet; pulling it", flags.image());
            }
            let done = progress::pull(engine, missing, flags.quiet).await?;
            // A short name may be an alias of another.
            if let Some(config) = &mut request.config {
                config.image = done.name;
            }
            create(&request).await?
        }
        other => other?,
    };
    for warning in &made.warnings {
        eprintln!("WARNING: {warning}");
    }
    if let Some(file) = &flags.cidfile {
        std::fs::write(file, &made.id).map_err(Error::io(format!("write {file}")))?;
    }
    Ok(made)
}

async fn start(engine: &Engine, id: &str) -> Result<()> {
    engine
        .call(|| {
            let mut client = engine.runtime();
            let request = StartRequest { id: id.to_owned() };
            async move { client.start(request).await }
        })
        .await
        .map(drop)
}

/// One container.
///
/// # Errors
/// What the engine says.
pub async fn get(engine: &Engine, id: &str) -> Result<Container> {
    engine
        .call(|| {
            let mut client = engine.runtime();
            let request = GetRequest { id: id.to_owned() };
            async move { client.get(request).await }
        })
        .await
}

async fn wait(engine: &Engine, id: &str, removed: bool) -> Result<WaitResponse> {
    engine
        .call(|| {
            let mut client = engine.runtime();
            let request = WaitRequest {
                id: id.to_owned(),
                removed,
            };
            async move { client.wait(request).await }
        })
        .await
}

fn attach_message(input: Input) -> AttachInput {
    AttachInput {
        input: Some(match input {
            Input::Stdin(bytes) => AttachWire::Stdin(bytes),
            Input::Close => AttachWire::CloseStdin(true),
            Input::Resize(size) => AttachWire::Resize(size),
            Input::Signal(name) => AttachWire::Signal(name.into()),
        }),
    }
}

/// Joins a container's streams, again after the engine restarted, until it ends or the user leaves.
async fn joined(engine: &Engine, open: AttachOpen, options: Options) -> Result<Ended> {
    let mut open = open;
    let began = Instant::now();
    loop {
        let (to, input) = mpsc::channel(16);
        let first = AttachInput {
            input: Some(AttachWire::Open(open.clone())),
        };
        let messages =
            tokio_stream::once(first).chain(ReceiverStream::new(input).map(attach_message));
        let status = match engine.runtime().attach(messages).await {
            Ok(reply) => match stream::join(reply.into_inner(), to, options.clone()).await? {
                Ended::Broken(status) => status,
                ended => return Ok(ended),
            },
            Err(status) => status,
        };
        let error = engine.explain(status);
        if !error.is_away()
            || matches!(error, Error::Away { .. }) && began.elapsed() < Duration::from_secs(1)
        {
            return Err(error);
        }
        // The engine restarts; the container goes on meanwhile, or has ended.
        let container = match get(engine, &open.id).await {
            Ok(container) => container,
            Err(lost) if lost.kind() == ErrorKind::NotFound => return Err(error),
            Err(lost) => return Err(lost),
        };
        match container.status() {
            Status::Exited if container.finished_at.is_some() => {
                return Ok(Ended::Exit(WaitResponse {
                    exit_code: container.exit_code,
                    error: container.error,
                    oom_killed: container.oom_killed,
                }));
            }
            Status::Created => {}
            _ => open.start = false,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Run {
    /// Runs, and gives docker's exit code.
    ///
    /// # Errors
    /// What the engine says; the caller exits with [`Error::run_code`].
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let detach = detach_keys(&self.detach_keys).map_err(Error::Usage)?;
        if self.detach && !self.attach.is_empty() {
            return Err(Error::Usage(
                "--detach and --attach contradict each other; leave one out".into(),
            ));
        }
        if self.flags.tty && self.flags.interactive && !self.detach && !tty::is_input() {
            return Err(Error::Usage(
                "the input device is not a terminal; leave -t out, or run it from a terminal"
                    .into(),
            ));
        }
        let made = make(engine, &self.flags).await?;
        if self.detach {
            start(engine, &made.id).await?;
            print(&format!("{}\n", made.id))?;
            return Ok(ExitCode::SUCCESS);
        }
        let wants = |stream: &str| {
            self.attach.is_empty()
                || self
                    .attach
                    .iter()
                    .any(|one| one.eq_ignore_ascii_case(stream))
        };
        let stdin = self.flags.interactive && wants("stdin");
        let open = AttachOpen {
            id: made.id.clone(),
            stdin,
            stdout: wants("stdout"),
            stderr: wants("stderr"),
            start: true,
            size: tty::size().filter(|_| self.flags.tty),
        };
        let options = Options {
            stdin,
            tty: self.flags.tty,
            signals: self.sig_proxy && !(self.flags.tty && tty::is_input()),
            detach,
        };
        let exit = match joined(engine, open, options).await? {
            Ended::Exit(exit) => exit,
            Ended::Detached => return Ok(ExitCode::SUCCESS),
            Ended::Broken(status) => return Err(engine.explain(status)),
        };
        if self.flags.rm {
            // When the command ends, nothing of the container is there any more. It may be gone already.
            match wait(engine, &made.id, true).await {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(exit_of(&exit))
    }
}

impl Create {
    /// Makes it and prints its id.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let made = make(engine, &self.flags).await?;
        print(&format!("{}\n", made.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Start {
    /// Starts them; joined to one, exits as it does.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        if !self.attach && !self.interactive {
            return crate::container::each(&self.containers, async |name| {
                start(engine, name).await?;
                print(&format!("{name}\n"))
            })
            .await;
        }
        let [name] = self.containers.as_slice() else {
            return Err(Error::Usage(
                "only one container can be joined at a time; leave -a and -i out".into(),
            ));
        };
        let detach = detach_keys(&self.detach_keys).map_err(Error::Usage)?;
        let container = get(engine, name).await?;
        let config = container.config.unwrap_or_default();
        let stdin = self.interactive && config.open_stdin;
        let open = AttachOpen {
            id: container.id,
            stdin,
            stdout: true,
            stderr: true,
            start: true,
            size: tty::size().filter(|_| config.tty),
        };
        let options = Options {
            stdin,
            tty: config.tty,
            signals: !(config.tty && tty::is_input()),
            detach,
        };
        match joined(engine, open, options).await? {
            Ended::Exit(exit) => Ok(exit_of(&exit)),
            Ended::Detached => Ok(ExitCode::SUCCESS),
            Ended::Broken(status) => Err(engine.explain(status)),
        }
    }
}

impl Attach {
    /// Joins it, and exits as it does.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let detach = detach_keys(&self.detach_keys).map_err(Error::Usage)?;
        let container = get(engine, &self.container).await?;
        let config = container.config.unwrap_or_default();
        let stdin = config.open_stdin && !self.no_stdin;
        let open = AttachOpen {
            id: container.id,
            stdin,
            stdout: true,
            stderr: true,
            start: false,
            size: tty::size().filter(|_| config.tty),
        };
        let options = Options {
            stdin,
            tty: config.tty,
            signals: self.sig_proxy && !(config.tty && tty::is_input()),
            detach,
        };
        match joined(engine, open, options).await? {
            Ended::Exit(exit) => Ok(exit_of(&exit)),
            Ended::Detached => Ok(ExitCode::SUCCESS),
            Ended::Broken(status) => Err(engine.explain(status)),
        }
    }
}
