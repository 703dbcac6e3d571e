//! The small process above each container: makes it, owns its stdio and its log, keeps its exit record, and reports to
//! the runtime service over `shim.sock`.
//!
//! Invariants: one thread; it decides nothing, the launch plan says everything; it outlives whatever is above it; the exit
//! record is on disk before anybody hears of the exit, and the shim ends only after that was acknowledged.

mod cgroup;
mod conn;
mod container;
mod init;
mod io;
mod log;
mod server;
mod users;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: gantry-shim --dir DIR\n\nStarted by the Gantry runtime service, with its first connection as standard input.\n\
DIR gets shim.sock, pid and, when the container has ended, exit.";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let dir = match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--dir" => PathBuf::from(dir),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match server::run(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            trouble(&format!("{}: {error}", dir.display()));
            ExitCode::FAILURE
        }
    }
}

/// Says what went wrong, with the trace that this shim belongs to when its maker named one (W3C Trace Context).
fn trouble(what: &str) {
    match std::env::var("TRACEPARENT") {
        Ok(trace) => eprintln!("gantry-shim: {what} (traceparent {trace})"),
        Err(_) => eprintln!("gantry-shim: {what}"),
    }
}
