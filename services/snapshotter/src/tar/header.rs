//! The 512 bytes before each entry.
//!
//! Invariant: fields are read only after the checksum was found right.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::TarError;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A hard link to an earlier entry.
    Link,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// Pieces (offset, length), whether more blocks of them follow, and the real size of the file.
pub type GnuSparse = (Vec<(u64, u64)>, bool, u64);

/// A checked header.
pub struct Header([u8; BLOCK]);

fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

/// A number field: octal text, or base 256 when the first bit is set (GNU).
fn number(field: &[u8], what: &str) -> Result<i64, TarError> {
    let wrong = || {
        TarError::Wrong(format!(
            "the {what} {:?} is no number",
            String::from_utf8_lossy(field)
        ))
    };
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 {
                if negative { *byte } else { *byte & 0x7f }
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if !(-(1i128 << 70)..(1i128 << 70)).contains(&value) {
                return Err(wrong());
            }
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return Ok(0);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| i64::from_str_radix(digits, 8).ok())
        .ok_or_else(wrong)
}

impl Header {
    /// Checks the sum (unsigned as POSIX says, or signed as old programs wrote it).
    ///
    /// # Errors
    /// When neither fits.
    pub fn new(block: [u8; BLOCK]) -> Result<Self, TarError> {
        let sum = |value: fn(u8) -> i64| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(at, byte)| {
                    if (148..156).contains(&at) {
                        32
                    } else {
                        value(*byte)
                    }
                })
                .sum()
        };
        let want = number(&block[148..156], "checksum")?;
        if want != sum(i64::from) && want != sum(|byte| i64::from(byte.cast_signed())) {
            return Err(TarError::Wrong(
                "a header has a wrong checksum; this is no tar archive, or it is damaged".into(),
            ));
        }
        Ok(Self(block))
    }

    /// The type flag.
    pub fn kind_byte(&self) -> u8 {
        self.0[156]
    }

    /// The type; a path that ends in a slash was a directory to old programs.
    ///
    /// # Errors
    /// For a type that cannot be unpacked.
    pub fn kind(&self, path: &OsStr) -> Result<Kind, TarError> {
        Ok(match self.kind_byte() {
            b'0' | 0 if path.as_bytes().ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                return Err(TarError::Wrong(format!(
                    "entry {path:?} has the unknown type {:?}",
                    char::from(other)
                )));
            }
        })
    }

    fn is_posix(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    /// The path, with the prefix that POSIX headers have.
    pub fn path(&self) -> OsString {
        let mut path = Vec::new();
        if self.is_posix() {
            let prefix = text(&self.0[345..500]);
            if !prefix.is_empty() {
                path.extend_from_slice(prefix);
                path.push(b'/');
            }
        }
        path.extend_from_slice(text(&self.0[0..100]));
        OsString::from_vec(path)
    }

    /// The target of a link.
    pub fn link(&self) -> OsString {
        OsString::from_vec(text(&self.0[157..257]).to_vec())
    }

    /// Bytes of content in the archive.
    ///
    /// # Errors
    /// When the field is no number, or negative.
    pub fn size(&self) -> Result<u64, TarError> {
        let size = number(&self.0[124..136], "size")?;
        u64::try_from(size).map_err(|_| TarError::Wrong(format!("the size {size} is negative")))
    }

    /// Permission bits.
    ///
    /// # Errors
    /// When the field is no number.
    pub fn mode(&self) -> Result<u32, TarError> {
        Ok(u32::try_from(number(&self.0[100..108], "mode")? & 0o7777).unwrap_or(0))
    }

    /// Owner.
    ///
    /// # Errors
    /// When the field is no user number.
    pub fn uid(&self) -> Result<u32, TarError> {
        id(&self.0[108..116], "owner")
    }

    /// Group.
    ///
    /// # Errors
    /// When the field is no group number.
    pub fn gid(&self) -> Result<u32, TarError> {
        id(&self.0[116..124], "group")
    }

    /// Time of the last change.
    ///
    /// # Errors
    /// When the field is no number.
    pub fn mtime(&self) -> Result<(i64, u32), TarError> {
        Ok((number(&self.0[136..148], "time")?, 0))
    }

    /// Device number.
    ///
    /// # Errors
    /// When the fields are no device numbers.
    pub fn device(&self) -> Result<(u32, u32), TarError> {
        Ok((
            id(&self.0[329..337], "device number")?,
            id(&self.0[337..345], "device number")?,
        ))
    }

    /// Old GNU sparse header: up to four pieces, whether more follow, and the real size.
    ///
    /// # Errors
    /// When a field is no number.
    pub fn gnu_sparse(&self) -> Result<GnuSparse, TarError> {
        let real = u64::try_from(number(&self.0[483..495], "size")?)
            .map_err(|_| TarError::Wrong("a sparse file's size is negative".into()))?;
        Ok((pieces(&self.0[386..482])?, self.0[482] != 0, real))
    }
}

/// The pieces in a GNU sparse header or in one of its extensions.
pub fn pieces(field: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
    let mut found = Vec::new();
    for piece in field.chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        let part = |field| {
            u64::try_from(number(field, "sparse map")?)
                .map_err(|_| TarError::Wrong("a sparse map has a negative number".into()))
        };
        found.push((part(&piece[..12])?, part(&piece[12..])?));
    }
    Ok(found)
}

fn id(field: &[u8], what: &str) -> Result<u32, TarError> {
    let value = number(field, what)?;
    u32::try_from(value).map_err(|_| TarError::Wrong(format!("the {what} {value} is out of range")))
}
