//! The container's log: docker's json-file lines, rotated by size.
//!
//! Invariants: a line is written before any attached client sees it; a full disk loses lines, counts them and never stops
//! the container; what is lost is said in the log as soon as it can be written again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest text of one entry; longer lines are divided, as docker divides them.
const LONGEST_LINE: usize = 16 << 10;

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_size: u64,
    max_files: u32,
    partial: [Vec<u8>; 2],
    lost: u64,
}

impl Log {
    /// Opens or continues a log. `max_size` in bytes, 0 = no rotation; `max_files` counts the current one.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Log> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Log {
            path: path.to_owned(),
            file: Some(file),
            size,
            max_size,
            max_files,
            partial: Default::default(),
            lost: 0,
        })
    }

    /// Takes output and writes the whole lines of it.
    pub fn write(&mut self, stream: Stream, mut data: &[u8]) {
        let index = usize::from(stream == Stream::Stderr);
        while !data.is_empty() {
            let room = LONGEST_LINE - self.partial[index].len();
            let end = data
                .iter()
                .take(room)
                .position(|byte| *byte == b'\n')
                .map(|at| at + 1);
            let taken = end.unwrap_or(data.len().min(room));
            self.partial[index].extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if end.is_some() || self.partial[index].len() == LONGEST_LINE {
                let line = std::mem::take(&mut self.partial[index]);
                self.entry(stream, &line);
            }
        }
    }

    /// Writes what is left without a newline; called when a stream has ended.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = std::mem::take(&mut self.partial[usize::from(stream == Stream::Stderr)]);
            if !line.is_empty() {
                self.entry(stream, &line);
            }
        }
    }

    fn entry(&mut self, stream: Stream, line: &[u8]) {
        if self.lost > 0 {
            let note = format!(
                "[{} log entries were lost: the log could not be written]\n",
                self.lost
            );
            if self
                .put(&encode(stream, note.as_bytes(), now_ns()))
                .is_err()
            {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if self.put(&encode(stream, line, now_ns())).is_err() {
            self.lost += 1;
        }
    }

    fn put(&mut self, entry: &[u8]) -> io::Result<()> {
        if self.max_size > 0 && self.size > 0 && self.size + entry.len() as u64 > self.max_size {
            self.rotate()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.path)?,
            ),
        };
        if let Err(error) = file.write_all(entry) {
            // Half an entry would make the next one unreadable.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += entry.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.max_files.saturating_sub(1)).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files > 1 {
            std::fs::rename(&self.path, numbered(1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.file = None;
        self.size = 0;
        Ok(())
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-01-02T03:04:05.000000006Z` (RFC 3339).
fn rfc3339(time_ns: i64) -> String {
    let (seconds, nanos) = (
        time_ns.div_euclid(1_000_000_000),
        time_ns.rem_euclid(1_000_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years, so that the leap day is the last of a year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

fn encode(stream: Stream, line: &[u8], time_ns: i64) -> Vec<u8> {
    let mut out = String::with_capacity(line.len() + 80);
    out.push_str("{\"log\":\"");
    for character in String::from_utf8_lossy(line).chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Valid JSON, but line separators in JavaScript; docker escapes them too.
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            control if (control as u32) < 0x20 => {
                out.push_str(&format!("\\u{:04x}", control as u32))
            }
            other => out.push(other),
        }
    }
    let name = if stream == Stream::Stdout {
        "stdout"
    } else {
        "stderr"
    };
    out.push_str(&format!(
        "\",\"stream\":\"{name}\",\"time\":\"{}\"}}\n",
        rfc3339(time_ns)
    ));
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_right() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(1_709_210_096_000_000_007),
            "2024-02-29T12:34:56.000000007Z"
        );
        assert_eq!(
            rfc3339(1_767_225_599_999_999_999),
            "2025-12-31T23:59:59.999999999Z"
        );
    }

    #[test]
    fn entries_are_json() {
        let entry = encode(Stream::Stderr, b"a\"b\\\x01\xff\n", 0);
        let text = String::from_utf8(entry).unwrap();
        assert!(
            text.starts_with("{\"log\":\"a\\\"b\\\\\\u0001\u{fffd}\\n\",\"stream\":\"stderr\""),
            "{text}"
        );
    }

    #[test]
    fn rotation_keeps_every_line_of_the_files_it_keeps() {
        let dir = std::env::temp_dir().join(format!("gantry-shim-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let mut log = Log::open(&path, 1000, 3).unwrap();
        for number in 0..50 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        log.write(Stream::Stdout, b"no newline");
        log.finish();
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let all: String = ["log.2", "log.1", "log"]
            .map(|n| std::fs::read_to_string(dir.join(n)).unwrap())
            .concat();
        let first: usize = all
            .split("line ")
            .nth(1)
            .unwrap()
            .split('\\')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        for number in first..50 {
            assert_eq!(all.matches(&format!("line {number}\\n")).count(), 1);
        }
        assert!(all.contains("no newline\""));
        assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
