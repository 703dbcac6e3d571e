//! Reading tar archives of any origin (POSIX ustar and pax, GNU, old V7; sparse files of all four forms).
//!
//! Invariants: memory is bounded whatever the archive says (an extended header has a limit); a header with a wrong
//! checksum, a size that runs past the end or a record that does not parse is an error, never a guess.
//! Sources: POSIX.1-2024 pax "ustar interchange format", GNU tar manual "Basic Tar Format" and "Storing Sparse Files".

mod header;
mod pax;
mod sparse;

use std::ffi::OsString;
use std::io::{self, Read};

pub use header::Kind;
use header::{BLOCK, Header};
use pax::Pax;

/// Bytes that all extended headers of one entry may have.
const MOST_EXTENDED: u64 = 1 << 20;
/// Bytes of a path; the kernel's own limit is 4096.
pub const MOST_PATH: usize = 4095;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It cannot be read, or ends too early.
    #[error("read: {0}")]
    Read(#[from] io::Error),
    /// It ends in the middle of something.
    #[error("it ends in the middle of {0}")]
    Truncated(&'static str),
    /// A header does not parse.
    #[error("{0}")]
    Wrong(String),
}

/// One file, directory, link, ... of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As written in the archive.
    pub path: OsString,
    /// What it is.
    pub kind: Kind,
    /// Target of a link.
    pub link: OsString,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of the file once unpacked.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Pieces of data (offset, length) of a sparse file; `None` = all of it.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// An archive being read.
pub struct Archive<R> {
    source: R,
    /// Bytes of the current entry in the archive that were not read yet, without padding.
    left: u64,
    padding: u64,
    global: Pax,
    ended: bool,
}

impl<R: Read> Archive<R> {
    /// An archive from its first byte.
    pub fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
            global: Pax::default(),
            ended: false,
        }
    }

    /// Goes on to the next entry; what was not read of the current one is skipped.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        let mut own = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut extended = 0u64;
        loop {
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            match header.kind_byte() {
                b'x' | b'g' | b'L' | b'K' => {
                    let size = header.size()?;
                    extended = extended.saturating_add(size);
                    if extended > MOST_EXTENDED {
                        return Err(TarError::Wrong(format!(
                            "an extended header of {extended} bytes; at most {MOST_EXTENDED} are accepted"
                        )));
                    }
                    let body = self.extended_body(size)?;
                    match header.kind_byte() {
                        b'x' => own.read(&body)?,
                        b'g' => self.global.read(&body)?,
                        b'L' => long_path = Some(pax::until_nul(&body)),
                        _ => long_link = Some(pax::until_nul(&body)),
                    }
                }
                // The volume's name and multi-volume continuations name no file.
                b'V' | b'M' | b'N' => {
                    self.left = header.size()?;
                    self.padding = padding(self.left);
                    self.skip_rest()?;
                }
                _ => {
                    let pax = own.over(&self.global);
                    return self.entry(&header, &pax, long_path, long_link).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: &Pax,
        long_path: Option<OsString>,
        long_link: Option<OsString>,
    ) -> Result<Entry, TarError> {
        let stored = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        let path = pax
            .path
            .clone()
            .or(long_path)
            .unwrap_or_else(|| header.path());
        let kind = header.kind(&path)?;
        // Only files have content; some writers give directories and links a size that means nothing.
        self.left = if kind == Kind::File { stored } else { 0 };
        self.padding = padding(self.left);
        let mut entry = Entry {
            link: pax
                .link
                .clone()
                .or(long_link)
                .unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            size: self.left,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
            device: if matches!(kind, Kind::Char | Kind::Block) {
                header.device()?
            } else {
                (0, 0)
            },
            xattrs: pax.xattrs.clone(),
            sparse: None,
            path,
        };
        sparse::complete(self, header, pax, &mut entry)?;
        for (what, text) in [("path", &entry.path), ("link target", &entry.link)] {
            if text.len() > MOST_PATH {
                return Err(TarError::Wrong(format!(
                    "a {what} of {} bytes; at most {MOST_PATH} are possible",
                    text.len()
                )));
            }
        }
        Ok(entry)
    }

    /// Content of the current entry as the archive has it (only the pieces of a sparse file).
    ///
    /// # Errors
    /// [`TarError::Truncated`] at the end of the archive.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left.min(buffer.len() as u64)).unwrap_or(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = loop {
            match self.source.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if length == 0 {
            return Err(TarError::Truncated("a file"));
        }
        self.left -= length as u64;
        Ok(length)
    }

    /// What comes after the archive.
    pub fn into_source(self) -> R {
        self.source
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())?;
        // Some writers leave the padding of the last file out.
        if skipped < self.left {
            return Err(TarError::Truncated("a file"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn extended_body(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut body = Vec::new();
        let whole = size + padding(size);
        if (&mut self.source).take(whole).read_to_end(&mut body)? as u64 != whole {
            return Err(TarError::Truncated("an extended header"));
        }
        body.truncate(usize::try_from(size).unwrap_or(0));
        Ok(body)
    }

    /// One block of the current entry's content, for the maps of sparse files.
    fn content_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0u8; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            match self.read(&mut block[at..])? {
                0 => return Err(TarError::Truncated("a sparse map")),
                length => at += length,
            }
        }
        Ok(block)
    }

    /// A block that belongs to the header, before the content.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0u8; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            match self.source.read(&mut block[at..]) {
                Ok(0) if at == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated("a header")),
                Ok(length) => at += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    /// The next header; none at the end, which is a zero block or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        match self.header_block()? {
            None => Ok(None),
            Some(block) if block.iter().all(|byte| *byte == 0) => Ok(None),
            Some(block) => Header::new(block).map(Some),
        }
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

#[cfg(test)]
mod tests;
