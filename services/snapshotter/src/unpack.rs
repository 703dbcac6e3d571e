//! From a blob to an unpacked layer: decompress, hash, apply.
//!
//! Invariants: the whole uncompressed stream is hashed, also what follows the archive's end; the tree counts only if the
//! hash is the diff_id. Runs on a thread that may block.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_types::{Algorithm, Digest};
use sha2::Digest as _;

use crate::apply::{Applied, apply};
use crate::error::Error;

/// Counts what was read of the blob.
struct Counted {
    file: File,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

/// Hashes what passes.
struct Hashed<R> {
    source: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(&buffer[..length]),
            Hasher::Sha512(hasher) => hasher.update(&buffer[..length]),
        }
        Ok(length)
    }
}

/// A reader of the uncompressed bytes. What is compressed is known by its first bytes: media types lie.
fn decompress(file: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut source = BufReader::with_capacity(128 << 10, file);
    let start = std::io::BufRead::fill_buf(&mut source)?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(source))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (start.len() >= 4
            && (0x50..=0x5f).contains(&start[0])
            && start[1..4] == [0x2a, 0x4d, 0x18])
    {
        let mut decoder = zstd::Decoder::with_buffer(source)?;
        // 128 MiB: what zstd's own tool accepts by default, and the bound of our memory.
        decoder.window_log_max(27)?;
        Box::new(decoder)
    } else {
        Box::new(source)
    })
}

/// Unpacks `blob` into the directory `root`, counting the compressed bytes read.
///
/// # Errors
/// [`Error::Layer`] when the archive is damaged or is not what the diff_id promises.
pub fn unpack(
    blob: &Path,
    diff_id: &Digest,
    root: OwnedFd,
    count: Arc<AtomicU64>,
) -> Result<Applied, Error> {
    let file = File::open(blob).map_err(Error::io("open", blob))?;
    let source = decompress(Counted { file, count }).map_err(Error::io("read", blob))?;
    let hasher = match diff_id.algorithm() {
        Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
        Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
    };
    let hashed = BufReader::with_capacity(256 << 10, Hashed { source, hasher });
    let layer = |source| Error::Layer {
        diff_id: diff_id.clone(),
        source: Box::new(source),
    };
    let (applied, rest) = apply(hashed, root).map_err(layer)?;
    // What BufReader holds was hashed already; the rest has to be.
    let mut hashed = rest.into_inner();
    io::copy(&mut hashed, &mut io::sink())
        .map_err(|error| layer(crate::tar::TarError::Read(error).into()))?;
    let got = match hashed.hasher {
        Hasher::Sha256(hasher) => hex::encode(hasher.finalize()),
        Hasher::Sha512(hasher) => hex::encode(hasher.finalize()),
    };
    if got != diff_id.hex() {
        return Err(Error::Mismatch {
            diff_id: diff_id.clone(),
            got: format!("{}:{got}", diff_id.algorithm().as_str()),
        });
    }
    Ok(applied)
}
