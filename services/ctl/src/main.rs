//! `ctl`: the command line of Gantry.
//!
//! Invariants: one task scheduler on one thread, started late, since most commands are shorter than a blink; results go to
//! standard output, everything else to standard error; nothing here decides what the engine should.

mod archive;
mod commit;
mod container;
mod error;
mod exec;
mod filter;
mod flags;
mod history;
mod image;
mod inspect;
mod login;
mod logs;
mod network;
mod output;
mod peers;
mod progress;
mod registry;
mod remote;
mod run;
mod space;
mod stream;
mod system;
mod tty;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::error::{Error, Result};
use crate::peers::Engine;

/// Run containers with Gantry.
#[derive(Debug, Parser)]
#[command(
    name = "ctl",
    version,
    max_term_width = 100,
    after_help = "EXAMPLES:\n  ctl run --rm -it debian bash\n  ctl run -d --name web -p 8080:80 nginx\n  ctl logs -f web\n\nENVIRONMENT:\n  GANTRY_RUN   run directory of the engine, instead of /run/gantry"
)]
struct Cli {
    /// Run directory of the engine, where its sockets are
    #[arg(
        short = 'H',
        long,
        env = "GANTRY_RUN",
        value_name = "DIR",
        default_value = "/run/gantry"
    )]
    host: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Create(Box<run::Create>),
    Start(run::Start),
    Stop(container::Stop),
    /// End containers and run them again
    Restart(container::Stop),
    Kill(container::Kill),
    Wait(container::Wait),
    #[command(visible_alias = "remove")]
    Rm(container::Rm),
    #[command(visible_alias = "list")]
    Ps(container::Ps),
    Inspect(inspect::Inspect),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Attach(run::Attach),
    Top(logs::Top),
    Pull(image::Pull),
    Push(remote::Push),
    Login(login::Login),
    Logout(login::Logout),
    Commit(commit::Commit),
    Export(commit::Export),
    Import(commit::Import),
    Save(archive::Save),
    Load(archive::Load),
    History(history::History),
    Gc(space::Gc),
    #[command(subcommand)]
    Store(space::Store),
    #[command(subcommand)]
    System(space::System),
    Images(image::Images),
    Rmi(image::Rmi),
    Tag(image::Tag),
    #[command(subcommand)]
    Registry(registry::Registry),
    #[command(subcommand)]
    Network(network::Network),
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Commands on containers
    #[command(subcommand)]
    Container(Container),
    /// Commands on images
    #[command(subcommand)]
    Image(Image),
    Events(system::Events),
    Info(system::Info),
    Version(system::Version),
    /// Print completions for a shell, to be sourced by it
    Completion {
        /// Which shell
        shell: Shell,
    },
}

/// The same commands under their noun.
#[derive(Debug, Subcommand)]
enum Container {
    Run(Box<run::Run>),
    Create(Box<run::Create>),
    Start(run::Start),
    Stop(container::Stop),
    /// End containers and run them again
    Restart(container::Stop),
    Kill(container::Kill),
    Wait(container::Wait),
    Rm(container::Rm),
    #[command(visible_aliases = ["ps", "list"])]
    Ls(container::Ps),
    Inspect(inspect::Inspect),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Attach(run::Attach),
    Top(logs::Top),
    Commit(commit::Commit),
    Export(commit::Export),
}

/// The same commands under their noun.
#[derive(Debug, Subcommand)]
enum Image {
    Pull(image::Pull),
    Push(remote::Push),
    Tags(remote::Tags),
    Referrers(remote::Referrers),
    #[command(visible_alias = "list")]
    Ls(image::Images),
    #[command(visible_alias = "remove")]
    Rm(image::Rmi),
    Tag(image::Tag),
    Save(archive::Save),
    Load(archive::Load),
    History(history::History),
    Import(commit::Import),
    Prune(image::Prune),
    Inspect(inspect::Inspect),
}

impl From<Container> for Command {
    fn from(command: Container) -> Self {
        match command {
            Container::Run(it) => Command::Run(it),
            Container::Create(it) => Command::Create(it),
            Container::Start(it) => Command::Start(it),
            Container::Stop(it) => Command::Stop(it),
            Container::Restart(it) => Command::Restart(it),
            Container::Kill(it) => Command::Kill(it),
            Container::Wait(it) => Command::Wait(it),
            Container::Rm(it) => Command::Rm(it),
            Container::Ls(it) => Command::Ps(it),
            Container::Inspect(it) => Command::Inspect(it),
            Container::Logs(it) => Command::Logs(it),
            Container::Exec(it) => Command::Exec(it),
            Container::Attach(it) => Command::Attach(it),
            Container::Top(it) => Command::Top(it),
            Container::Commit(it) => Command::Commit(it),
            Container::Export(it) => Command::Export(it),
        }
    }
}

impl Image {
    async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let command = match self {
            Image::Tags(it) => return it.go(engine).await,
            Image::Referrers(it) => return it.go(engine).await,
            Image::Prune(it) => return it.go(engine).await,
            Image::Import(it) => Command::Import(it),
            Image::Save(it) => Command::Save(it),
            Image::Load(it) => Command::Load(it),
            Image::History(it) => Command::History(it),
            Image::Pull(it) => Command::Pull(it),
            Image::Push(it) => Command::Push(it),
            Image::Ls(it) => Command::Images(it),
            Image::Rm(it) => Command::Rmi(it),
            Image::Tag(it) => Command::Tag(it),
            Image::Inspect(it) => Command::Inspect(it),
        };
        Box::pin(command.go(engine)).await
    }
}

impl Command {
    /// Whether a mistake of the engine is 125, since 1 may be the program's own.
    fn runs_a_program(&self) -> bool {
        matches!(self, Command::Run(_))
    }

    async fn go(self, engine: &Engine) -> Result<ExitCode> {
        match self {
            Command::Run(it) => it.go(engine).await,
            Command::Create(it) => it.go(engine).await,
            Command::Start(it) => it.go(engine).await,
            Command::Stop(it) => it.go(engine).await,
            Command::Restart(it) => it.restart(engine).await,
            Command::Kill(it) => it.go(engine).await,
            Command::Wait(it) => it.go(engine).await,
            Command::Rm(it) => it.go(engine).await,
            Command::Ps(it) => it.go(engine).await,
            Command::Inspect(it) => it.go(engine).await,
            Command::Logs(it) => it.go(engine).await,
            Command::Exec(it) => it.go(engine).await,
            Command::Attach(it) => it.go(engine).await,
            Command::Top(it) => it.go(engine).await,
            Command::Pull(it) => it.go(engine).await,
            Command::Commit(it) => it.go(engine).await,
            Command::Export(it) => it.go(engine).await,
            Command::Import(it) => it.go(engine).await,
            Command::Save(it) => it.go(engine).await,
            Command::Load(it) => it.go(engine).await,
            Command::History(it) => it.go(engine).await,
            Command::Gc(it) => it.go(engine).await,
            Command::Store(it) => it.go(engine).await,
            Command::System(it) => it.go(engine).await,
            Command::Push(it) => it.go(engine).await,
            Command::Login(it) => it.go(engine).await,
            Command::Logout(it) => it.go(),
            Command::Images(it) => it.go(engine).await,
            Command::Rmi(it) => it.go(engine).await,
            Command::Tag(it) => it.go(engine).await,
            Command::Registry(it) => it.go(engine).await,
            Command::Network(it) => it.go(engine).await,
            Command::Volume(it) => it.go(engine).await,
            Command::Container(it) => Box::pin(Command::from(it).go(engine)).await,
            Command::Image(it) => it.go(engine).await,
            Command::Events(it) => it.go(engine).await,
            Command::Info(it) => it.go(engine).await,
            Command::Version(it) => it.go(engine).await,
            Command::Completion { shell } => {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "ctl", &mut text);
                output::print(&String::from_utf8_lossy(&text))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Reads the arguments; a mistake in those of `run` exits with 125, as docker's does.
fn arguments() -> std::result::Result<Cli, ExitCode> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    // Help and version are no mistakes; a reader that is gone is none either.
    let _ = error.print();
    if !error.use_stderr() {
        return Err(ExitCode::SUCCESS);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runs = words.iter().any(|word| word == "run");
    Err(ExitCode::from(if runs { 125 } else { 1 }))
}

fn main() -> ExitCode {
    let cli = match arguments() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runs = cli.command.runs_a_program();
    let result = start(cli);
    match result {
        Ok(code) => code,
        Err(Error::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ctl: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("{hint}");
            }
            ExitCode::from(if runs { error.run_code() } else { 1 })
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    let engine = Engine::new(&cli.host)?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start the task scheduler"))?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&tokio, cli.command.go(&engine))
}
