//! Extended headers: `length key=value\n` records (POSIX pax), and the long names of GNU.
//!
//! Invariant: the length of a record covers exactly the record; values may hold any byte, newlines too.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::TarError;

const XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
/// Pieces of a sparse file that one header may list.
pub const MOST_PIECES: usize = 65536;

/// What extended headers say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<OsString>,
    pub link: Option<OsString>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// GNU.sparse.major, minor.
    pub sparse_version: (u32, u32),
    pub sparse_name: Option<OsString>,
    pub sparse_size: Option<u64>,
    /// Versions 0.0 and 0.1.
    pub sparse_map: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

/// GNU's long names end with a NUL.
pub fn until_nul(body: &[u8]) -> OsString {
    let end = body
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(body.len());
    OsString::from_vec(body[..end].to_vec())
}

fn number<T: std::str::FromStr>(value: &[u8], key: &[u8]) -> Result<T, TarError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            TarError::Wrong(format!(
                "the extended header {} has the value {:?}, which is no number in range",
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(value)
            ))
        })
}

/// Seconds with a fraction of any length.
fn time(value: &[u8]) -> Result<(i64, u32), TarError> {
    let dot = value
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(value.len());
    let seconds: i64 = number(&value[..dot], b"mtime")?;
    let mut nanos = 0u32;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    for at in 0..9 {
        let digit = match fraction.get(at) {
            None => 0,
            Some(byte) if byte.is_ascii_digit() => u32::from(byte - b'0'),
            Some(_) => {
                return Err(TarError::Wrong(format!(
                    "the time {:?} is no number",
                    String::from_utf8_lossy(value)
                )));
            }
        };
        nanos = nanos * 10 + digit;
    }
    if value.first() == Some(&b'-') && nanos > 0 {
        // -1.25 is a quarter before -1: the nanoseconds of the kernel count forward.
        return Ok((seconds - 1, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

impl Pax {
    /// Adds the records of one header.
    ///
    /// # Errors
    /// For a record that does not parse.
    pub fn read(&mut self, mut body: &[u8]) -> Result<(), TarError> {
        while !body.is_empty() && body[0] != 0 {
            let wrong = || {
                TarError::Wrong(
                    "an extended header has a record whose length does not fit it".into(),
                )
            };
            let space = body
                .iter()
                .take(20)
                .position(|byte| *byte == b' ')
                .ok_or_else(wrong)?;
            let length: usize = std::str::from_utf8(&body[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .filter(|length| *length > space + 2 && *length <= body.len())
                .ok_or_else(wrong)?;
            let record = body[space + 1..length]
                .strip_suffix(b"\n")
                .ok_or_else(wrong)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(wrong)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            body = &body[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let name = || Some(OsString::from_vec(value.to_vec())).filter(|name| !name.is_empty());
        match key {
            b"path" => self.path = name(),
            b"linkpath" => self.link = name(),
            b"size" => self.size = Some(number(value, key)?),
            b"uid" => self.uid = Some(number(value, key)?),
            b"gid" => self.gid = Some(number(value, key)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse_version.0 = number(value, key)?,
            b"GNU.sparse.minor" => self.sparse_version.1 = number(value, key)?,
            b"GNU.sparse.name" => self.sparse_name = name(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse_size = Some(number(value, key)?);
            }
            b"GNU.sparse.offset" => self.offset = Some(number(value, key)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.offset.take().ok_or_else(|| {
                    TarError::Wrong("a sparse map has a length without an offset".into())
                })?;
                let length = number(value, key)?;
                self.piece(offset, length)?;
            }
            b"GNU.sparse.map" => {
                let numbers = value
                    .split(|byte| *byte == b',')
                    .map(|part| number::<u64>(part, key));
                let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
                for pair in numbers.chunks(2) {
                    let [offset, length] = pair else {
                        return Err(TarError::Wrong("a sparse map is cut off".into()));
                    };
                    self.piece(*offset, *length)?;
                }
            }
            key => {
                let attribute = key
                    .strip_prefix(XATTR)
                    .or_else(|| key.strip_prefix(LIBARCHIVE));
                // libarchive's form carries base64; the SCHILY form, which it writes too, is enough.
                if let (Some(attribute), true) = (attribute, key.starts_with(XATTR)) {
                    let attribute = OsString::from_vec(attribute.to_vec());
                    self.xattrs.retain(|(known, _)| *known != attribute);
                    self.xattrs.push((attribute, value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn piece(&mut self, offset: u64, length: u64) -> Result<(), TarError> {
        let map = self.sparse_map.get_or_insert_with(Vec::new);
        if map.len() >= MOST_PIECES {
            return Err(TarError::Wrong(format!(
                "a sparse file of more than {MOST_PIECES} pieces"
            )));
        }
        map.push((offset, length));
        Ok(())
    }

    /// These values, and the global ones where these say nothing.
    pub fn over(mut self, global: &Pax) -> Pax {
        self.path = self.path.or_else(|| global.path.clone());
        self.link = self.link.or_else(|| global.link.clone());
        self.uid = self.uid.or(global.uid);
        self.gid = self.gid.or(global.gid);
        self.mtime = self.mtime.or(global.mtime);
        for (key, value) in &global.xattrs {
            if !self.xattrs.iter().any(|(known, _)| known == key) {
                self.xattrs.push((key.clone(), value.clone()));
            }
        }
        self
    }
}
