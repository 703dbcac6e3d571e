//! Signal names and numbers, and whether a process can be reached by one.
//!
//! Invariant: numbers are those of Linux on every processor that Gantry runs on (signal(7)).

use crate::error::Error;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;
/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGTERM.
pub const TERM: i32 = 15;

/// A signal as users write it: "TERM", "SIGTERM", "15", "RTMIN+3".
///
/// # Errors
/// Names the value and what would be right.
pub fn parse(text: &str) -> Result<i32, Error> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: i32, sign: i32, rest: &str| {
        if rest.is_empty() {
            return Some(base);
        }
        let digits = rest.strip_prefix(if sign > 0 { '+' } else { '-' })?;
        Some(base + sign * digits.parse::<i32>().ok()?)
    };
    let number = if let Ok(number) = bare.parse::<i32>() {
        Some(number)
    } else if let Some(rest) = bare.strip_prefix("RTMIN") {
        real_time(RTMIN, 1, rest)
    } else if let Some(rest) = bare.strip_prefix("RTMAX") {
        real_time(RTMAX, -1, rest)
    } else {
        let alias = match bare {
            "POLL" => "IO",
            "IOT" => "ABRT",
            "CLD" => "CHLD",
            other => other,
        };
        NAMES
            .iter()
            .position(|name| *name == alias)
            .and_then(|at| i32::try_from(at + 1).ok())
    };
    number
        .filter(|number| (1..=31).contains(number) || (RTMIN..=RTMAX).contains(number))
        .ok_or_else(|| {
            Error::field(
                "signal",
                text,
                "is unknown; write a name such as TERM or a number from 1 to 64",
            )
        })
}

/// Whether the first process of a pid namespace would notice a signal: the kernel drops one that it neither catches nor
/// blocks (pid_namespaces(7)). `status` is the text of its /proc/PID/status.
pub fn reaches_init(status: &str, signal: i32) -> bool {
    let has = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
    };
    // What cannot be read is not known to be deaf.
    !status.contains("SigCgt:") || has("SigCgt:") || has("SigBlk:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("usr2", 12),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "NOSUCH", "0", "65", "32", "RTMIN+99", "-1"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_deaf_init_is_known() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigCgt:\t0000000000004002\n";
        assert!(reaches_init(status, 15) && reaches_init(status, 2));
        assert!(!reaches_init(status, 1));
        assert!(reaches_init("", 1));
    }
}
