//! What a snapshot changed becomes a layer's archive: tar with pax headers, gzip.
//!
//! Invariants: the same tree gives the same bytes (names in order, no time of packing); overlayfs's marks become whiteouts of
//! the image format, and its own attributes never leave. Source: OCI image specification, layer.md.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use gantry_sys::tree::{self, Kind, Stat};
use gantry_types::{Algorithm, Digest};
use sha2::Digest as _;

use crate::apply::OPAQUE_XATTR;
use crate::error::Error;

/// Passes bytes on and hashes them.
struct Hashing<W> {
    sink: W,
    hasher: sha2::Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.sink.write(data)?;
        self.hasher.update(&data[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Writes the changes in `upper` to the file `blob`, and returns the diff_id.
///
/// # Errors
/// When something cannot be read or written.
pub fn pack(upper: &Path, blob: &Path) -> Result<Digest, Error> {
    let fail = || Error::io("pack", upper);
    let file = File::create(blob).map_err(Error::io("write", blob))?;
    let gzip = flate2::write::GzEncoder::new(BufWriter::new(file), flate2::Compression::new(6));
    let mut writer = Writer {
        sink: Hashing {
            sink: gzip,
            hasher: sha2::Sha256::new(),
        },
        first_names: HashMap::new(),
    };
    let root = tree::open_dir(upper).map_err(fail())?;
    writer.directory(root.as_fd(), b"").map_err(fail())?;
    writer.sink.write_all(&[0; 1024]).map_err(fail())?;
    let Hashing { sink, hasher } = writer.sink;
    sink.finish()
        .and_then(|mut buffer| buffer.flush())
        .map_err(Error::io("write", blob))?;
    Ok(Digest::new(
        Algorithm::Sha256,
        hex::encode(hasher.finalize()),
    )?)
}

/// Writes a whole tree as a tar stream.
///
/// # Errors
/// When something cannot be read, or nobody takes the stream any more (`BrokenPipe`).
pub fn stream(root: BorrowedFd<'_>, sink: impl Write) -> io::Result<()> {
    let mut writer = Writer {
        sink,
        first_names: HashMap::new(),
    };
    writer.directory(root, b"")?;
    writer.sink.write_all(&[0; 1024])?;
    writer.sink.flush()
}

struct Writer<W> {
    sink: W,
    /// Device and inode of files with several names -> the first of them.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

/// An entry's fields beyond its [`Stat`].
struct Item<'a> {
    path: &'a [u8],
    kind: u8,
    link: &'a [u8],
    size: u64,
    stat: &'a Stat,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl<W: Write> Writer<W> {
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        let mut names = tree::names(dir)?;
        names.sort();
        for name in names {
            let stat = match tree::stat_at(dir, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let mut whole = path.to_vec();
            whole.extend_from_slice(name.as_bytes());
            if stat.is_whiteout() {
                let mut mark = path.to_vec();
                mark.extend_from_slice(b".wh.");
                mark.extend_from_slice(name.as_bytes());
                self.mark(&mark)?;
                continue;
            }
            match self.name(dir, &name, &whole, &stat) {
                // The container may run: what has gone since it was listed is not there, and is no other name's first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.first_names.retain(|_, first| *first != whole);
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn name(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        // Everything is looked up before the header is written, so that what is gone leaves no trace.
        let xattrs: Vec<_> = tree::xattrs_at(dir, name)?
            .into_iter()
            .filter(|(key, _)| !key.as_bytes().starts_with(b"trusted.overlay."))
            .collect();
        let mut item = Item {
            path,
            kind: b'0',
            link: b"",
            size: 0,
            stat,
            xattrs,
        };
        if stat.kind != Kind::Dir && stat.links > 1 {
            let first = self
                .first_names
                .entry((stat.device, stat.inode))
                .or_insert_with(|| path.to_vec())
                .clone();
            if first != path {
                item.kind = b'1';
                item.link = &first;
                item.xattrs.clear();
                return self.header(&item);
            }
        }
        match stat.kind {
            Kind::Dir => {
                let below = tree::open_dir_at(dir, name)?;
                let mut inside = path.to_vec();
                inside.push(b'/');
                item.kind = b'5';
                item.path = &inside;
                self.header(&item)?;
                let opaque = tree::xattr_at(&below, OsStr::new(""), OsStr::new(OPAQUE_XATTR))?;
                if opaque.is_some_and(|value| value == b"y") {
                    let mut mark = inside.clone();
                    mark.extend_from_slice(b".wh..wh..opq");
                    self.mark(&mark)?;
                }
                self.directory(below.as_fd(), &inside)
            }
            Kind::File => {
                item.size = stat.size;
                let mut content = tree::open_file_at(dir, name)?.take(stat.size);
                self.header(&item)?;
                let copied = io::copy(&mut content, &mut self.sink)?;
                // A file that shrinks while it is read (the container may run) keeps the size that the header says.
                io::copy(&mut io::repeat(0).take(stat.size - copied), &mut self.sink)?;
                self.pad(stat.size)
            }
            Kind::Symlink => {
                let link = tree::read_link_at(dir, name)?;
                item.kind = b'2';
                item.link = link.as_bytes();
                self.header(&item)
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                item.kind = match stat.kind {
                    Kind::Char => b'3',
                    Kind::Block => b'4',
                    _ => b'6',
                };
                self.header(&item)
            }
            Kind::Socket => Ok(()),
        }
    }

    /// A whiteout: an empty file whose name is the message.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let stat = Stat {
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            allocated: 0,
            major: 0,
            minor: 0,
            mtime: 0,
            mtime_nanos: 0,
            links: 1,
            inode: 0,
            device: 0,
        };
        self.header(&Item {
            path,
            kind: b'0',
            link: b"",
            size: 0,
            stat: &stat,
            xattrs: Vec::new(),
        })
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from((512 - size % 512) % 512).unwrap_or(0);
        self.sink.write_all(&[0u8; 512][..rest])
    }

    fn header(&mut self, item: &Item<'_>) -> io::Result<()> {
        let mut extended = Vec::new();
        if item.path.len() > 100 {
            record(&mut extended, b"path", item.path);
        }
        if item.link.len() > 100 {
            record(&mut extended, b"linkpath", item.link);
        }
        if item.size >= 1 << 33 {
            record(&mut extended, b"size", item.size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", item.stat.uid), (b"gid", item.stat.gid)] {
            if id >= 1 << 21 {
                record(&mut extended, key, id.to_string().as_bytes());
            }
        }
        if item.stat.mtime_nanos != 0 || !(0..1 << 33).contains(&item.stat.mtime) {
            record(&mut extended, b"mtime", time(item.stat).as_bytes());
        }
        for (key, value) in &item.xattrs {
            record(
                &mut extended,
                &[b"SCHILY.xattr.", key.as_bytes()].concat(),
                value,
            );
        }
        if !extended.is_empty() {
            let size = extended.len() as u64;
            self.sink.write_all(&block(b"pax", b'x', b"", size, None))?;
            self.sink.write_all(&extended)?;
            self.pad(size)?;
        }
        self.sink.write_all(&block(
            item.path,
            item.kind,
            item.link,
            item.size,
            Some(item.stat),
        ))
    }
}

/// Seconds with nanoseconds, also before 1970.
fn time(stat: &Stat) -> String {
    if stat.mtime < 0 && stat.mtime_nanos > 0 {
        let (seconds, nanos) = (-(stat.mtime + 1), 1_000_000_000 - stat.mtime_nanos);
        return format!("-{seconds}.{nanos:09}");
    }
    format!("{}.{:09}", stat.mtime, stat.mtime_nanos)
}

/// `length key=value\n`, where the length counts its own digits.
fn record(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    into.extend_from_slice(length.to_string().as_bytes());
    into.push(b' ');
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn block(path: &[u8], kind: u8, link: &[u8], size: u64, stat: Option<&Stat>) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, text: &[u8], most: usize| {
        let length = text.len().min(most);
        block[at..at + length].copy_from_slice(&text[..length]);
    };
    // What does not fit is in the extended header.
    let octal = |value: u64, digits: usize| {
        let most = (1u64 << (3 * digits)) - 1;
        format!("{:0digits$o}", value.min(most))
    };
    let (mode, uid, gid, mtime) = stat.map_or((0o644, 0, 0, 0), |stat| {
        (
            stat.mode,
            stat.uid,
            stat.gid,
            u64::try_from(stat.mtime).unwrap_or(0),
        )
    });
    put(0, path, 100);
    put(100, octal(mode.into(), 7).as_bytes(), 7);
    put(108, octal(uid.into(), 7).as_bytes(), 7);
    put(116, octal(gid.into(), 7).as_bytes(), 7);
    put(124, octal(size, 11).as_bytes(), 11);
    put(136, octal(mtime, 11).as_bytes(), 11);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link, 100);
    put(257, b"ustar\x0000", 8);
    if let (Some(stat), b'3' | b'4') = (stat, kind) {
        put(329, octal(stat.major.into(), 7).as_bytes(), 7);
        put(337, octal(stat.minor.into(), 7).as_bytes(), 7);
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
