//! The one front door to building and checking Gantry: `cargo xtask LANE`.
//!
//! Invariant: what continuous integration runs is what a developer runs, with the same command.

mod build;
mod deps;
mod lanes;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build and check Gantry.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build gantryd, ctl and the static shim into target/gantry/debug (or release)
    Build {
        /// Optimised, as it ships
        #[arg(long)]
        release: bool,
    },
    /// Start a private engine, make a base image, run a container, clean up
    Dev {
        /// --image NAME, --keep
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Time the engine beside other engines, where there are some
    Bench {
        /// --rounds N, --containers N
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Time cold pulls of images beside other engines
    BenchPull {
        /// --rounds N, and OCI layouts with one image each
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the lanes given, or all of them; what they need is installed
    Test {
        /// Lanes to run
        #[arg(value_enum)]
        lanes: Vec<lanes::Lane>,
    },
    /// Check the rules of the source tree: headers, sizes, borders
    Tidy,
    /// Check who depends on whom
    Deps,
}

/// What went wrong, as one line.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Build { release } => build::run(release).map(|dir| println!("{}", dir.display())),
        Command::Dev { arguments } => lanes::dev(&arguments),
        Command::Bench { arguments } => lanes::bench(&arguments),
        Command::BenchPull { arguments } => lanes::bench_pull(&arguments),
        Command::Test { lanes } => lanes::run(&lanes),
        Command::Tidy => tidy::check(),
        Command::Deps => deps::check(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
fn root() -> std::path::PathBuf {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
