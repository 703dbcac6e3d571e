//! Blobs out: whole or a range of them.
//!
//! Invariant: bytes go from the file to the socket in small pieces. Source: distribution specification v1.1, "Pulling blobs"; RFC
//! 9110, section 14.

use futures_util::TryStreamExt as _;
use gantry_types::Digest;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::header::RANGE;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::error::Refusal;
use super::{Answer, Registry, set};

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

/// First byte and the one after the last, of a single range; `None` = the whole is wanted.
fn range(header: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = header.and_then(|text| text.strip_prefix("bytes=")) else {
        return Ok(None);
    };
    // Several ranges at once may be answered with the whole.
    if text.contains(',') {
        return Ok(None);
    }
    let (from, to) = text.split_once('-').ok_or(())?;
    let span = match (from.trim(), to.trim()) {
        ("", last) => {
            let last: u64 = last.parse().map_err(|_| ())?;
            (size.saturating_sub(last), size)
        }
        (from, "") => (from.parse().map_err(|_| ())?, size),
        (from, to) => {
            let to: u64 = to.parse().map_err(|_| ())?;
            (
                from.parse().map_err(|_| ())?,
                to.saturating_add(1).min(size),
            )
        }
    };
    if span.0 < span.1 {
        Ok(Some(span))
    } else {
        Err(())
    }
}

impl Registry {
    /// GET and HEAD of a blob.
    pub(super) async fn blob(&self, digest: &Digest, headers: &HeaderMap) -> Answer {
        let text = digest.to_string();
        let unknown = || Refusal::no_blob(&text);
        let paths = self.peers.paths(vec![text.clone()]).await?;
        let path = paths.get(&text).ok_or_else(unknown)?;
        let mut file = tokio::fs::File::open(path).await.map_err(|_| unknown())?;
        let size = file
            .metadata()
            .await
            .map_err(|error| Refusal::server(error.to_string()))?
            .len();
        let asked = headers.get(RANGE).and_then(|value| value.to_str().ok());
        let span = range(asked, size).map_err(|()| {
            Refusal::range(format!("the blob has {size} bytes"))
                .with("content-range", format!("bytes */{size}"))
        })?;
        let (from, until) = span.unwrap_or((0, size));
        file.seek(std::io::SeekFrom::Start(from))
            .await
            .map_err(|error| Refusal::server(error.to_string()))?;
        let pieces = ReaderStream::with_capacity(file.take(until - from), PIECE);
        let body = StreamBody::new(pieces.map_ok(Frame::data)).boxed();
        let mut response = Response::new(body);
        if span.is_some() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {from}-{}/{size}", until - 1);
            set(&mut response, "content-range", &range);
        }
        set(&mut response, "content-length", &(until - from).to_string());
        set(&mut response, "content-type", "application/octet-stream");
        set(&mut response, "accept-ranges", "bytes");
        set(&mut response, "docker-content-digest", &text);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_are_cut_to_size() {
        assert_eq!(range(None, 10), Ok(None));
        assert_eq!(range(Some("bytes=2-4"), 10), Ok(Some((2, 5))));
        assert_eq!(range(Some("bytes=2-"), 10), Ok(Some((2, 10))));
        assert_eq!(range(Some("bytes=-3"), 10), Ok(Some((7, 10))));
        assert_eq!(range(Some("bytes=2-99"), 10), Ok(Some((2, 10))));
        assert_eq!(range(Some("bytes=0-1,4-5"), 10), Ok(None));
        for bad in ["bytes=10-", "bytes=4-2", "bytes=a-b", "bytes=4"] {
            assert_eq!(range(Some(bad), 10), Err(()), "{bad}");
        }
    }
}
