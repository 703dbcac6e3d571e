//! Running programs: what they printed, how they ended, and an end to waiting for them.
//!
//! Invariant: no wait is without a limit.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A `ctl` that has not ended by now hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Out {
    /// Its exit code; 128+n when a signal ended `ctl` itself.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Out {
    /// Fails the test unless the code is this one.
    #[track_caller]
    pub fn code(self, code: i32) -> Out {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Out {
        self.code(0)
    }

    /// Fails the test unless standard output is exactly this.
    #[track_caller]
    pub fn prints(self, text: &str) -> Out {
        assert_eq!(self.stdout, text, "{self:#?}");
        self
    }

    /// Fails the test unless standard error contains every word.
    #[track_caller]
    pub fn complains(self, words: &[&str]) -> Out {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:#?}");
        }
        self
    }

    /// Standard output without the newline at its end.
    pub fn text(&self) -> &str {
        self.stdout.trim_end_matches('\n')
    }
}

/// Waits for a command and takes what it printed.
///
/// # Panics
/// When it does not end within two minutes.
#[track_caller]
pub fn finish(mut child: Child) -> Out {
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let give_up = Instant::now() + crate::patience(PATIENCE);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > give_up {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "ctl hangs; so far: {:?} {:?}",
                String::from_utf8_lossy(&out.join().unwrap()),
                String::from_utf8_lossy(&err.join().unwrap())
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    Out {
        code: status.code().or(signal.map(|signal| 128 + signal)).unwrap(),
        stdout: String::from_utf8_lossy(&out.join().unwrap()).into_owned(),
        stderr: String::from_utf8_lossy(&err.join().unwrap()).into_owned(),
    }
}

/// Runs any other program to its end and gives what it printed.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn shell(script: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// One request over TCP, for servers in containers: what came back until the other side closed.
pub fn tcp(address: &str, say: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(crate::patience(Duration::from_secs(10))))?;
    stream.write_all(say.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The lines of a stream while it is still open.
#[derive(Debug)]
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    /// Reads in the background.
    pub fn of(stream: impl Read + Send + 'static) -> Lines {
        let (tell, hear) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(hear)
    }
}

impl Iterator for Lines {
    type Item = String;

    /// The next line; nothing when the stream has ended.
    fn next(&mut self) -> Option<String> {
        match self
            .0
            .recv_timeout(crate::patience(Duration::from_secs(20)))
        {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no line for 20 seconds"),
        }
    }
}
