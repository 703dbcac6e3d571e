//! `exec`: a further program in a running container.
//!
//! Invariant: it is started once; a broken connection is told and never repeated, since it may have run.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::runtime::exec_input::Input as ExecWire;
use gantry_proto::runtime::{ExecInput, ExecOpen};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{Error, Result};
use crate::flags::misc::detach_keys;
use crate::peers::Engine;
use crate::run::{DETACH_KEYS, exit_of, get};
use crate::stream::{self, Ended, Input, Options};
use crate::tty;

/// Run a further program in a running container
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  ctl exec -it web sh\n  ctl exec -u root web apt-get update")]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run it in the background
    #[arg(short, long)]
    detach: bool,
    /// Environment variable; without a value, ours
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Every capability, no filter
    #[arg(long)]
    privileged: bool,
    /// Keys that leave without ending it
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// The container, then what to run in it with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"], num_args = 1..)]
    container_and_command: Vec<String>,
}

fn exec_message(input: Input) -> ExecInput {
    ExecInput {
        input: Some(match input {
            Input::Stdin(bytes) => ExecWire::Stdin(bytes),
            Input::Close => ExecWire::CloseStdin(true),
            Input::Resize(size) => ExecWire::Resize(size),
            Input::Signal(name) => ExecWire::Signal(name.into()),
        }),
    }
}

impl Exec {
    /// Runs it, and exits as it does.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let own = |name: &str| std::env::var(name).ok();
        let env =
            crate::flags::env::variables(&self.env_file, &self.env, own).map_err(Error::Usage)?;
        let detach = detach_keys(&self.detach_keys).map_err(Error::Usage)?;
        let (container, command) = self
            .container_and_command
            .split_first()
            .ok_or_else(|| Error::Usage("name a container".into()))?;
        if command.is_empty() {
            return Err(Error::Usage(format!(
                "nothing to run in {container}; write a command after its name"
            )));
        }
        if self.tty && self.interactive && !self.detach && !tty::is_input() {
            return Err(Error::Usage(
                "the input device is not a terminal; leave -t out, or run it from a terminal"
                    .into(),
            ));
        }
        let open = ExecOpen {
            id: container.clone(),
            args: command.to_vec(),
            env,
            workdir: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            tty: self.tty,
            stdin: self.interactive,
            privileged: self.privileged,
            detach: self.detach,
            size: tty::size().filter(|_| self.tty),
        };
        // Found first: an exec is not repeated, but a restarting engine is waited for.
        get(engine, container).await?;
        let (to, input) = mpsc::channel(16);
        let first = ExecInput {
            input: Some(ExecWire::Exec(open)),
        };
        let messages =
            tokio_stream::once(first).chain(ReceiverStream::new(input).map(exec_message));
        let reply = engine
            .runtime()
            .exec(messages)
            .await
            .map_err(|status| engine.explain(status))?;
        let mut output = reply.into_inner();
        if self.detach {
            use gantry_proto::runtime::attach_output::Output;
            let first = output
                .message()
                .await
                .map_err(|status| engine.explain(status))?;
            return Ok(match first.and_then(|message| message.output) {
                Some(Output::Exit(exit)) => exit_of(&exit),
                _ => ExitCode::SUCCESS,
            });
        }
        let options = Options {
            stdin: self.interactive,
            tty: self.tty,
            // docker's exec passes no signals on; Ctrl-C at a terminal goes through it anyway.
            signals: false,
            detach,
        };
        match stream::join(output, to, options).await? {
            Ended::Exit(exit) => Ok(exit_of(&exit)),
            Ended::Detached => Ok(ExitCode::SUCCESS),
            Ended::Broken(status) => Err(engine.explain(status)),
        }
    }
}
