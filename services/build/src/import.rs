//! `import`: a file system as a tar stream becomes an image of one layer.
//!
//! Invariants: the stream goes to the store's staging file as it comes, a plain one compressed on the way; the diff_id is that of the
//! uncompressed bytes; whether they are a tar is found out before the image has a name.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use gantry_chassis::pipe::Reader;
use gantry_types::{Digest, Platform};
use sha2::Digest as _;
use tokio::sync::mpsc;

use crate::change;
use crate::commit::{Made, finish, name, now};
use crate::document::{Image, Layer, Step};
use crate::error::Error;
use crate::peers::Peers;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Bytes of a tar's block.
const BLOCK: usize = 512;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Empty = none.
    pub reference: String,
    /// For the history.
    pub message: String,
    /// Instructions.
    pub changes: Vec<String>,
    /// Empty = the host's.
    pub platform: String,
    /// Where it came from.
    pub source: String,
}

/// Passes on what is read, and keeps a copy in a file.
struct Tee<R> {
    from: R,
    to: File,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.to.write_all(&buffer[..length])?;
        Ok(length)
    }
}

/// Hashes uncompressed bytes, and looks whether they begin as a tar does.
#[derive(Default)]
struct Plain {
    hasher: sha2::Sha256,
    start: Vec<u8>,
}

impl Plain {
    fn take(&mut self, bytes: &[u8]) {
        let wanted = BLOCK - self.start.len().min(BLOCK);
        self.start
            .extend_from_slice(&bytes[..bytes.len().min(wanted)]);
        self.hasher.update(bytes);
    }

    fn finish(self) -> Result<Digest, Error> {
        if !is_tar(&self.start) {
            return Err(Error::Archive(
                "what came in is no tar archive, plain, gzip or zstd".into(),
            ));
        }
        let digest = hex::encode(self.hasher.finalize());
        Ok(format!("sha256:{digest}").parse()?)
    }
}

/// Whether a block is a header with a right checksum, or the end (POSIX.1-2001, pax, "ustar Interchange Format").
fn is_tar(block: &[u8]) -> bool {
    if block.len() < BLOCK {
        return false;
    }
    let field = String::from_utf8_lossy(&block[148..156]).into_owned();
    let said = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            u32::from(if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            })
        })
        .sum();
    said == Ok(sum) || block.iter().all(|byte| *byte == 0)
}

fn copy(mut from: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        each(&buffer[..length])?;
    }
}

/// Writes the blob; its media type and diff_id. Blocks.
fn stage(chunks: Reader, path: &Path) -> Result<(String, Digest), Error> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::Gone,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Io {
            action: "write",
            path: path.to_owned(),
            source: error,
        },
        _ => Error::Archive(error.to_string()),
    };
    let file = File::create(path).map_err(broken)?;
    let mut buffered = BufReader::with_capacity(64 << 10, chunks);
    let start = io::BufRead::fill_buf(&mut buffered).map_err(broken)?;
    let mut plain = Plain::default();
    let (magic, mut take) = (
        start.get(..4).unwrap_or(start).to_vec(),
        |bytes: &[u8]| {
            plain.take(bytes);
            Ok(())
        },
    );
    let suffix = match magic.as_slice() {
        [0x1f, 0x8b, ..] => {
            let tee = Tee {
                from: buffered,
                to: file,
            };
            let mut decoder = flate2::read::MultiGzDecoder::new(tee);
            copy(&mut decoder, take).map_err(broken)?;
            "+gzip"
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let tee = Tee {
                from: buffered,
                to: file,
            };
            let decoder = zstd::Decoder::new(tee).map_err(broken)?;
            copy(decoder, take).map_err(broken)?;
            "+zstd"
        }
        _ => {
            let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::new(6));
            copy(buffered, |bytes| {
                take(bytes)?;
                gzip.write_all(bytes)
            })
            .map_err(broken)?;
            gzip.finish().map_err(broken)?;
            "+gzip"
        }
    };
    Ok((format!("{LAYER}{suffix}"), plain.finish()?))
}

/// Makes the image.
///
/// # Errors
/// [`Error`].
pub async fn import(
    peers: &Peers,
    wanted: &Wanted,
    chunks: mpsc::Receiver<Option<Vec<u8>>>,
) -> Result<Made, Error> {
    let name = name(&wanted.reference)?;
    let platform = if wanted.platform.is_empty() {
        Platform::host()
    } else {
        wanted.platform.parse()?
    };
    let mut image = Image::empty(&platform);
    for line in &wanted.changes {
        change::apply(image.settings(), line)?;
    }
    let lease = format!("import-{:016x}", rand::random::<u64>());
    peers.hold(&lease, Vec::new()).await?;
    let key = format!("import/{lease}");
    let result = async {
        let path: PathBuf = peers.stage(&key).await?;
        let staged = tokio::task::spawn_blocking(move || stage(Reader::new(chunks), &path));
        let (media_type, diff_id) = staged.await.map_err(|_| Error::Gone)??;
        let (digest, size) = peers.take(&key, &lease).await?;
        let layer = Layer {
            media_type,
            digest,
            size,
            diff_id,
        };
        let step = Step {
            created_by: String::new(),
            author: String::new(),
            comment: if wanted.message.is_empty() {
                format!("Imported from {}", wanted.source)
            } else {
                wanted.message.clone()
            },
        };
        image.add(&layer, &step, &now());
        finish(peers, &image, name, &lease).await
    }
    .await;
    if result.is_err() {
        peers.abort(&key).await?;
    }
    if let Err(fault) = peers.release(&lease).await {
        tracing::debug!(%fault, "the lease ends by itself");
    }
    result
}
