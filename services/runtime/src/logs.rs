//! Reading a container's log (docker's json-file format) with its rotated files.
//!
//! Invariants: entries come in the order in which they were written; following loses nothing over a rotation, since the old
//! file stays open until it is read to its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Unix time, nanoseconds.
    pub time: i64,
    /// It was written to standard error.
    pub stderr: bool,
    /// With its newline where there was one.
    pub data: Vec<u8>,
}

#[derive(Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
}

fn parse(line: &[u8]) -> Option<Entry> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let time: jiff::Timestamp = line.time.parse().ok()?;
    Some(Entry {
        time: i64::try_from(time.as_nanosecond()).ok()?,
        stderr: line.stream == "stderr",
        data: line.log.into_bytes(),
    })
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Which entries are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Only the last ones.
    pub tail: Option<usize>,
    /// From this time on, nanoseconds.
    pub since: Option<i64>,
    /// Up to this time.
    pub until: Option<i64>,
}

impl Wanted {
    fn fits(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }
}

/// A place in a log.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    wanted: Wanted,
    file: Option<BufReader<File>>,
    /// A line whose end was not written yet.
    partial: Vec<u8>,
    /// Rotated files to be read first, oldest last.
    older: Vec<PathBuf>,
}

impl Reader {
    /// A reader from the oldest file on.
    pub fn open(path: &Path, wanted: Wanted) -> Self {
        let mut older = Vec::new();
        for number in 1.. {
            let file = rotated(path, number);
            if !file.exists() {
                break;
            }
            older.push(file);
        }
        Self {
            path: path.to_owned(),
            wanted,
            file: None,
            partial: Vec::new(),
            older,
        }
    }

    /// Everything that is there and wanted, applying the tail. To be called first, once.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn past(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = VecDeque::new();
        loop {
            let batch = self.more()?;
            if batch.is_empty() {
                return Ok(entries.into());
            }
            entries.extend(batch);
            if let Some(tail) = self.wanted.tail {
                while entries.len() > tail {
                    entries.pop_front();
                }
            }
        }
    }

    /// Some entries that have come since, none when there are none yet.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        const BATCH: usize = 1000;
        let mut entries = Vec::new();
        while entries.len() < BATCH {
            if self.file.is_none() && !self.next_file()? {
                break;
            }
            let Some(file) = &mut self.file else { break };
            let length = file.read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                entries.extend(parse(&line).filter(|entry| self.wanted.fits(entry)));
                continue;
            }
            if length > 0 {
                continue;
            }
            // At the end: of an old file, then on to the next; of the current one, then it may have been rotated.
            if !self.is_over()? {
                break;
            }
            self.file = None;
            self.partial.clear();
        }
        Ok(entries)
    }

    fn next_file(&mut self) -> io::Result<bool> {
        let path = self.older.pop().unwrap_or_else(|| self.path.clone());
        match File::open(&path) {
            Ok(file) => {
                self.file = Some(BufReader::new(file));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the open file will not grow any more: it is not the current one.
    fn is_over(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let here = file.get_ref().metadata()?.ino();
        match std::fs::metadata(&self.path) {
            Ok(current) if current.ino() == here => Ok(false),
            Ok(_) => {
                // What was written between the last read and the rotation.
                let at = file.stream_position()?;
                let mut rest = Vec::new();
                file.read_to_end(&mut rest)?;
                let over = rest.is_empty();
                if !over {
                    file.seek(SeekFrom::Start(at))?;
                }
                Ok(over)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn write(path: &Path, texts: &[&str]) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        for text in texts {
            let line = format!(
                "{{\"log\":\"{text}\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05.000000001Z\"}}\n"
            );
            file.write_all(line.as_bytes()).unwrap();
        }
    }

    fn texts(entries: Vec<Entry>) -> Vec<String> {
        let text = |entry: Entry| String::from_utf8(entry.data).unwrap().trim().to_owned();
        entries.into_iter().map(text).collect()
    }

    #[test]
    fn rotation_loses_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        write(&rotated(&path, 2), &["a"]);
        write(&rotated(&path, 1), &["b"]);
        write(&path, &["c"]);
        let mut reader = Reader::open(&path, Wanted::default());
        assert_eq!(texts(reader.past().unwrap()), ["a", "b", "c"]);
        write(&path, &["d"]);
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        write(&path, &["e"]);
        assert_eq!(texts(reader.more().unwrap()), ["d", "e"]);
        assert!(reader.more().unwrap().is_empty());
        let wanted = Wanted {
            tail: Some(2),
            ..Wanted::default()
        };
        let mut last = Reader::open(&path, wanted);
        assert_eq!(texts(last.past().unwrap()), ["d", "e"]);
        let wanted = Wanted {
            since: Some(i64::MAX),
            ..Wanted::default()
        };
        assert!(Reader::open(&path, wanted).past().unwrap().is_empty());
    }
}
