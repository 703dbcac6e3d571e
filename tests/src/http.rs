//! As much HTTP/1.1 as the tests need: a client for a registry on loopback, and a server that misbehaves on purpose.
//!
//! Invariant: one request a connection; every wait has an end.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// One request to `host` ("127.0.0.1:5000"); `headers` are whole lines.
///
/// # Errors
/// When nobody listens or the answer breaks off.
pub fn request(
    method: &str,
    host: &str,
    path: &str,
    headers: &[String],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(crate::patience(PATIENCE)))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let (first, headers) = read_head(&mut reader)?;
    let status = first
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("no status in {first:?}")))?;
    let mut body = Vec::new();
    match headers.get("content-length").and_then(|n| n.parse().ok()) {
        Some(_) if method == "HEAD" => {}
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        None => {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok(Answer {
        status,
        headers,
        body,
    })
}

fn read_head(
    reader: &mut BufReader<TcpStream>,
) -> std::io::Result<(String, BTreeMap<String, String>)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((first.trim().to_owned(), headers));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}

/// How the server answers for one path.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The body, honestly; `Range: bytes=n-` is honoured.
    Bytes { kind: String, body: Vec<u8> },
    /// Says `claimed` bytes and sends `body`, then closes.
    Lie { claimed: u64, body: Vec<u8> },
    /// Sends the first `cut` bytes of the first request and closes; later requests are answered honestly.
    Break { cut: usize, body: Vec<u8> },
    /// Sends the head and then nothing, until the server ends.
    Stall { length: u64 },
    /// 307 to this path.
    Redirect(String),
    /// Only a status.
    Status(u16),
    /// Says `claimed` bytes and sends zeros without end.
    Flood { claimed: u64 },
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// GET or HEAD.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// The Range header, or empty.
    pub range: String,
}

/// A server on a free loopback port that answers from a table; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Serves `replies`; anything else is 404, and `/v2/` is always fine.
    pub fn start(replies: BTreeMap<String, Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            ended: Arc::default(),
            seen: Arc::default(),
        };
        let (ended, seen, replies) = (server.ended.clone(), server.seen.clone(), Arc::new(replies));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (ended, seen, replies) = (ended.clone(), seen.clone(), replies.clone());
                // A client that hangs up early is part of the plan.
                std::thread::spawn(move || answer(stream, &replies, &seen, &ended));
            }
        });
        server
    }

    /// "127.0.0.1:port"
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(
    stream: TcpStream,
    replies: &BTreeMap<String, Reply>,
    seen: &Mutex<Vec<Seen>>,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(crate::patience(PATIENCE)))?;
    stream.set_write_timeout(Some(crate::patience(PATIENCE)))?;
    let mut out = stream.try_clone()?;
    let (first, headers) = read_head(&mut BufReader::new(stream))?;
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let range = headers.get("range").cloned().unwrap_or_default();
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen
            .iter()
            .filter(|old| old.path == path && old.method == "GET")
            .count();
        seen.push(Seen {
            method: method.clone(),
            path: path.clone(),
            range: range.clone(),
        });
        before
    };
    let body_wanted = method != "HEAD";
    let plain = |kind: &str, body: &[u8], out: &mut TcpStream| -> std::io::Result<()> {
        let from = range
            .strip_prefix("bytes=")
            .and_then(|range| range.split('-').next()?.parse::<usize>().ok())
            .filter(|from| *from > 0 && *from < body.len());
        let head = match from {
            Some(from) => format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            ),
            None => "HTTP/1.1 200 OK\r\n".into(),
        };
        let body = &body[from.unwrap_or(0)..];
        write!(
            out,
            "{head}Accept-Ranges: bytes\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        if body_wanted {
            out.write_all(body)?;
        }
        Ok(())
    };
    let binary = "application/octet-stream";
    let head = |length: u64, out: &mut TcpStream| {
        write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Type: {binary}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )
    };
    match replies.get(&path) {
        Some(Reply::Bytes { kind, body }) => plain(kind, body, &mut out),
        Some(Reply::Break { cut, body }) if before == 0 && body_wanted => {
            head(body.len() as u64, &mut out)?;
            out.write_all(&body[..*cut])
        }
        Some(Reply::Break { body, .. }) => plain(binary, body, &mut out),
        Some(Reply::Lie { claimed, body }) => {
            head(*claimed, &mut out)?;
            if body_wanted {
                out.write_all(body)?;
            }
            Ok(())
        }
        Some(Reply::Stall { length }) => {
            head(*length, &mut out)?;
            while body_wanted && !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
        Some(Reply::Flood { claimed }) => {
            head(*claimed, &mut out)?;
            while body_wanted && !ended.load(Ordering::Relaxed) {
                out.write_all(&[0; 65536])?;
            }
            Ok(())
        }
        Some(Reply::Redirect(to)) => write!(
            out,
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        Some(Reply::Status(code)) => write!(
            out,
            "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        None if path == "/v2/" => plain("application/json", b"{}", &mut out),
        None => write!(
            out,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_honest_or_not_as_told() {
        let body = b"0123456789".to_vec();
        let server = Server::start(BTreeMap::from([
            (
                "/a".into(),
                Reply::Bytes {
                    kind: "text/plain".into(),
                    body: body.clone(),
                },
            ),
            (
                "/b".into(),
                Reply::Break {
                    cut: 4,
                    body: body.clone(),
                },
            ),
            ("/c".into(), Reply::Redirect("/a".into())),
        ]));
        let host = server.address();
        let get = |path: &str, headers: &[String]| request("GET", &host, path, headers, b"");
        assert_eq!(get("/a", &[]).unwrap().body, body);
        let rest = get("/a", &["Range: bytes=7-".into()]).unwrap();
        assert_eq!((rest.status, rest.body.as_slice()), (206, &b"789"[..]));
        assert!(get("/b", &[]).is_err());
        assert_eq!(get("/b", &[]).unwrap().body, body);
        assert_eq!(get("/c", &[]).unwrap().headers["location"], "/a");
        assert_eq!(get("/d", &[]).unwrap().status, 404);
        assert_eq!(get("/v2/", &[]).unwrap().status, 200);
        assert_eq!(server.seen()[1].range, "bytes=7-");
    }
}
