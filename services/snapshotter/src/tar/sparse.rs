//! Files with holes: where their pieces are, in the four forms that GNU tar has had.
//!
//! Invariant: pieces are in order, do not overlap, lie within the file, and their lengths sum up to what the archive holds.

use std::io::Read;

use super::header::{Header, pieces};
use super::pax::{MOST_PIECES, Pax};
use super::{Archive, Entry, TarError};

/// Fills in the real name and size, and the pieces, of a sparse file.
pub fn complete<R: Read>(
    archive: &mut Archive<R>,
    header: &Header,
    pax: &Pax,
    entry: &mut Entry,
) -> Result<(), TarError> {
    let map = if header.kind_byte() == b'S' {
        old_gnu(archive, header, entry)?
    } else if pax.sparse_version == (1, 0) {
        in_content(archive)?
    } else if let Some(map) = &pax.sparse_map {
        map.clone()
    } else {
        return Ok(());
    };
    if let Some(name) = &pax.sparse_name {
        entry.path.clone_from(name);
    }
    if let Some(size) = pax.sparse_size {
        entry.size = size;
    }
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in &map {
        let stop = offset
            .checked_add(*length)
            .filter(|stop| *offset >= end && *stop <= entry.size);
        end = stop.ok_or_else(|| {
            TarError::Wrong(format!(
                "the sparse map of {:?} has pieces out of order or past the end",
                entry.path
            ))
        })?;
        sum += length;
    }
    if sum != archive.left {
        return Err(TarError::Wrong(format!(
            "the sparse map of {:?} says {sum} bytes, the archive has {}",
            entry.path, archive.left
        )));
    }
    entry.sparse = Some(map);
    Ok(())
}

fn too_many() -> TarError {
    TarError::Wrong(format!("a sparse file of more than {MOST_PIECES} pieces"))
}

/// Type `S`: the first pieces in the header, more in blocks that follow it.
fn old_gnu<R: Read>(
    archive: &mut Archive<R>,
    header: &Header,
    entry: &mut Entry,
) -> Result<Vec<(u64, u64)>, TarError> {
    let (mut map, mut more, real) = header.gnu_sparse()?;
    while more {
        let block = archive
            .header_block()?
            .ok_or(TarError::Truncated("a sparse map"))?;
        map.extend(pieces(&block[..504])?);
        more = block[504] != 0;
        if map.len() > MOST_PIECES {
            return Err(too_many());
        }
    }
    entry.size = real;
    Ok(map)
}

/// Version 1.0: decimal numbers, a line each, before the data, filled up to whole blocks.
fn in_content<R: Read>(archive: &mut Archive<R>) -> Result<Vec<(u64, u64)>, TarError> {
    let mut numbers = Vec::new();
    let mut digits = String::new();
    let mut want = 1;
    while numbers.len() < want {
        for byte in archive.content_block()? {
            match byte {
                b'\n' => {
                    let number: u64 = digits.parse().map_err(|_| {
                        TarError::Wrong(format!("{digits:?} in a sparse map is no number"))
                    })?;
                    digits.clear();
                    numbers.push(number);
                    if numbers.len() == 1 {
                        let count = usize::try_from(number)
                            .ok()
                            .filter(|count| *count <= MOST_PIECES)
                            .ok_or_else(too_many)?;
                        want = 1 + 2 * count;
                    }
                    if numbers.len() == want {
                        break;
                    }
                }
                digit => {
                    digits.push(char::from(digit));
                    if digits.len() > 20 {
                        return Err(TarError::Wrong("a sparse map has an endless number".into()));
                    }
                }
            }
        }
    }
    Ok(numbers[1..]
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}
