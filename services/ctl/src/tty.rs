//! The user's terminal: raw mode, its size, and giving it back.
//!
//! Invariant: a terminal that was made raw is restored when the guard is dropped, whatever happened.

use std::io::IsTerminal as _;

use gantry_proto::runtime::TerminalSize;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A raw terminal.
pub struct Raw(Termios);

impl Raw {
    /// Passes every key on as it is; `None` when standard input is no terminal.
    pub fn enter() -> Option<Raw> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A terminal that does not show what is typed.
pub struct Silent(Termios);

impl Silent {
    /// Hides what is typed; `None` when standard input is no terminal.
    pub fn enter() -> Option<Silent> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin, OptionalActions::Flush, &silent).ok()?;
        Some(Silent(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Rows and columns, when standard output is a terminal.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_row > 0).then(|| TerminalSize {
        rows: size.ws_row.into(),
        columns: size.ws_col.into(),
    })
}

/// Whether standard input is a terminal.
pub fn is_input() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks a person; without a terminal there is nobody to ask.
///
/// # Errors
/// When standard input is no terminal or cannot be read.
pub fn confirmed(question: &str) -> crate::error::Result<bool> {
    use crate::error::Error;
    if !is_input() {
        return Err(Error::Usage(format!(
            "{question}; standard input is no terminal to ask at: give --force"
        )));
    }
    eprint!("{question}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(Error::io("read standard input"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
