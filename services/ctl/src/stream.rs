//! Joining our standard streams with those of a container or an exec.
//!
//! Invariants: every byte goes through in order; signals and window sizes follow the user; the detach keys leave the container alone;
//! our terminal is given back.

use std::io::{Read as _, Write as _};

use gantry_proto::runtime::attach_output::Output;
use gantry_proto::runtime::{AttachOutput, TerminalSize, WaitResponse};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::tty::{self, Raw};

/// What goes to the process.
#[derive(Debug)]
pub enum Input {
    /// Bytes.
    Stdin(Vec<u8>),
    /// No more bytes.
    Close,
    /// The window changed.
    Resize(TerminalSize),
    /// A signal.
    Signal(&'static str),
}

/// How the user is joined.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Send our input.
    pub stdin: bool,
    /// The process has a terminal.
    pub tty: bool,
    /// Pass signals on.
    pub signals: bool,
    /// Keys that leave.
    pub detach: Vec<u8>,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// The process ended.
    Exit(WaitResponse),
    /// The user left.
    Detached,
    /// The engine went away in the middle.
    Broken(tonic::Status),
}

/// Looks for the detach keys; what they hold back until it is clear is returned with later bytes.
#[derive(Debug, Default)]
struct Keys {
    wanted: Vec<u8>,
    seen: usize,
}

impl Keys {
    /// The bytes to pass on, and whether the user left.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.wanted.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.wanted.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.wanted[..self.seen]);
            self.seen = usize::from(self.wanted.first() == Some(byte));
            if self.seen == 0 {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// Reads standard input on a thread of its own, which ends with the process.
fn read_stdin(to: mpsc::Sender<Option<Vec<u8>>>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            let piece = match stdin.read(&mut buffer) {
                Ok(0) => None,
                Ok(length) => Some(buffer[..length].to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => None,
            };
            let last = piece.is_none();
            if to.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
}

/// Signals that are passed on, as docker does (all but those that cannot be, and those of the window).
const PASSED: [(&str, i32); 9] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("IO", 29),
];

/// Sends every signal that comes.
fn watch_signals(to: &mpsc::Sender<Input>) -> Result<()> {
    for (name, number) in PASSED {
        let mut stream =
            signal(SignalKind::from_raw(number)).map_err(Error::io("watch signals"))?;
        let to = to.clone();
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() {
                if to.send(Input::Signal(name)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Tells the size of the window now and whenever it changes.
fn watch_window(to: &mpsc::Sender<Input>) -> Result<()> {
    let mut changes = signal(SignalKind::window_change()).map_err(Error::io("watch the window"))?;
    let to = to.clone();
    tokio::task::spawn_local(async move {
        loop {
            if let Some(size) = tty::size()
                && to.send(Input::Resize(size)).await.is_err()
            {
                return;
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

fn write(bytes: &[u8], error: bool) -> bool {
    if error {
        std::io::stderr().write_all(bytes).is_ok()
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).is_ok()
    }
}

/// Passes typed bytes on until the input ends or the detach keys come; then says so.
async fn forward(to: mpsc::Sender<Input>, mut keys: Option<Keys>, left: oneshot::Sender<()>) {
    let (typing, mut typed) = mpsc::channel(4);
    read_stdin(typing);
    while let Some(piece) = typed.recv().await {
        let Some(bytes) = piece else {
            let _ = to.send(Input::Close).await;
            return;
        };
        let (bytes, leaves) = match &mut keys {
            Some(keys) => keys.filter(&bytes),
            None => (bytes, false),
        };
        if !bytes.is_empty() && to.send(Input::Stdin(bytes)).await.is_err() {
            return;
        }
        if leaves {
            let _ = left.send(());
            return;
        }
    }
}

/// Joins the streams until one side ends. `to` takes what the user types.
///
/// # Errors
/// When signals or the terminal cannot be watched.
pub async fn join(
    mut from: Streaming<AttachOutput>,
    to: mpsc::Sender<Input>,
    options: Options,
) -> Result<Ended> {
    let _raw = (options.tty && options.stdin).then(Raw::enter).flatten();
    if options.tty {
        watch_window(&to)?;
    }
    if options.signals {
        watch_signals(&to)?;
    }
    let (leave, mut left) = oneshot::channel();
    // Kept when nothing is typed, so that nobody seems to have left.
    let mut idle = Some(leave);
    if options.stdin
        && let Some(leave) = idle.take()
    {
        let keys = options.tty.then_some(Keys {
            wanted: options.detach,
            seen: 0,
        });
        tokio::task::spawn_local(forward(to.clone(), keys, leave));
    }
    let mut listening = true;
    loop {
        let message = tokio::select! {
            biased;
            message = from.message() => message,
            gone = &mut left, if listening => {
                if gone.is_ok() {
                    return Ok(Ended::Detached);
                }
                listening = false;
                continue;
            }
        };
        let output = match message {
            Ok(Some(message)) => message.output,
            Ok(None) => {
                let gone = tonic::Status::unavailable("the engine ended the stream");
                return Ok(Ended::Broken(gone));
            }
            Err(status) => return Ok(Ended::Broken(status)),
        };
        match output {
            // Whoever does not read any more does not end the container.
            Some(Output::Stdout(bytes)) => drop(write(&bytes, false)),
            Some(Output::Stderr(bytes)) => drop(write(&bytes, true)),
            Some(Output::Exit(exit)) => return Ok(Ended::Exit(exit)),
            Some(Output::Started(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_held_back_until_they_are_clear() {
        let mut keys = Keys {
            wanted: vec![16, 17],
            seen: 0,
        };
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"x\x10\x10\x11y"), (b"x\x10".to_vec(), true));
    }
}
