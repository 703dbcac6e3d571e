//! Values of flags: text in, wire value out, with docker's grammar.
//!
//! Invariant: parsers are pure (files and environment come in through [`env`]), and an error says which flag, which value and
//! what to write instead.

pub mod env;
pub mod misc;
pub mod mount;
pub mod port;
pub mod run;
pub mod time;
pub mod units;

/// `flag "value": why`, the form of every parser's error.
pub fn bad(flag: &str, value: &str, why: impl std::fmt::Display) -> String {
    format!("invalid value {value:?} for {flag}: {why}")
}
