//! Netlink by hand: messages with nested attributes, requests with their answers, atomic nfnetlink batches.
//!
//! Invariants: a connection is used by one thread at a time; an answer belongs to a request by its sequence number, and
//! answers to anything older are passed over.

pub(crate) mod conntrack;
pub(crate) mod nft;
pub(crate) mod route;

use std::fmt;
use std::io;
use std::time::Duration;

use gantry_sys::netns::{Family, Netlink};

/// The kernel answers within this, or something is badly wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A list that changes while it is told is asked for again.
const DUMP_TRIES: usize = 10;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const FLAG_INTERRUPTED: u16 = 0x10;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_TLVS: u16 = 0x200;

/// The kernel's no, with its words where it has any.
#[derive(Debug)]
pub struct Refused {
    /// The error number.
    pub source: io::Error,
    /// What the kernel explains beside it.
    pub words: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if self.words.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.words)
    }
}

impl std::error::Error for Refused {}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            words: String::new(),
        }
    }
}

impl Refused {
    /// Whether it is one of these error numbers.
    pub(crate) fn is(&self, numbers: &[i32]) -> bool {
        self.source
            .raw_os_error()
            .is_some_and(|number| numbers.contains(&number))
    }
}

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENODEV: i32 = 19;

/// One message in the making.
#[derive(Debug, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message of a kind, with the fixed header of its protocol.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Attributes without a message around them, for [`Message::all`].
    pub(crate) fn parts() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.open(kind, |message| message.0.extend_from_slice(value))
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.open(kind, |message| {
            message.0.extend_from_slice(value.as_bytes());
            message.0.push(0);
        })
    }

    /// A number in the host's order, as rtnetlink has them.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A number in network order, as nfnetlink has them.
    pub(crate) fn big(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.open(kind | NESTED, fill)
    }

    /// An attribute that begins with a fixed header and goes on with attributes.
    pub(crate) fn headed(
        &mut self,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.open(kind, |message| {
            message.0.extend_from_slice(header);
            fill(message);
        })
    }

    /// Adds attributes made before.
    pub(crate) fn all(&mut self, parts: &Message) -> &mut Self {
        self.0.extend_from_slice(&parts.0);
        self
    }

    fn open(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        // An attribute's length field has 16 bits; lists are divided by their makers long before.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn flag(&mut self, flag: u16) {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | flag;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    fn write(&self, sequence: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.0);
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        out[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// The attributes in a piece of a message: kind (without flags) and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2) & 0x3fff;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// One message that came in.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0) as usize;
        let answer = Answer {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            sequence: u32_at(bytes, 8),
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(answer)
    })
}

impl Answer<'_> {
    /// What an acknowledgement or the end of a dump says.
    fn verdict(&self) -> Result<(), Refused> {
        let number = i32::from_ne_bytes(u32_at(self.body, 0).to_ne_bytes());
        if number == 0 {
            return Ok(());
        }
        let mut words = String::new();
        if self.flags & FLAG_TLVS != 0 {
            let echoed = if self.flags & FLAG_CAPPED != 0 {
                HEADER
            } else {
                (u32_at(self.body, 4) as usize).next_multiple_of(4)
            };
            let rest = self.body.get(4 + echoed..).unwrap_or_default();
            if let Some((_, text)) = attributes(rest).find(|(kind, _)| *kind == 1) {
                words = String::from_utf8_lossy(text)
                    .trim_end_matches('\0')
                    .to_owned();
            }
        }
        Err(Refused {
            source: io::Error::from_raw_os_error(-number),
            words,
        })
    }
}

/// A connection to the kernel of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Netlink,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        Ok(Self {
            socket: Netlink::open(family, PATIENCE)?,
            sequence: 0,
            buffer: vec![0; 32 << 10],
        })
    }

    fn take(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self
            .sequence
            .wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    /// Sends the messages at once and gives the verdict on each.
    pub(crate) fn each(
        &mut self,
        mut messages: Vec<Message>,
    ) -> io::Result<Vec<Result<(), Refused>>> {
        let first = self.take(messages.len());
        let mut datagram = Vec::with_capacity(512);
        for (at, message) in (0u32..).zip(&mut messages) {
            message.flag(ACK);
            message.write(first.wrapping_add(at), &mut datagram);
        }
        self.socket.send(&datagram)?;
        let mut verdicts: Vec<Option<Result<(), Refused>>> = Vec::new();
        verdicts.resize_with(messages.len(), || None);
        let mut open = messages.len();
        while open > 0 {
            let length = self.socket.receive(&mut self.buffer)?;
            for answer in answers(&self.buffer[..length]).filter(|a| a.kind == KIND_ERROR) {
                let at = answer.sequence.wrapping_sub(first) as usize;
                if let Some(slot @ None) = verdicts.get_mut(at) {
                    *slot = Some(answer.verdict());
                    open -= 1;
                }
            }
        }
        Ok(verdicts.into_iter().flatten().collect())
    }

    /// Sends the messages at once; the first refusal counts, the others are carried out all the same.
    pub(crate) fn ask(&mut self, messages: Vec<Message>) -> Result<(), Refused> {
        self.each(messages)?.into_iter().collect()
    }

    /// Asks for one thing, or for a list; gives the bodies of the answers.
    pub(crate) fn query(&mut self, mut message: Message) -> Result<Vec<Vec<u8>>, Refused> {
        if u16_at(&message.0, 6) & DUMP != DUMP {
            message.flag(ACK);
        }
        let mut found = Vec::new();
        for _ in 0..DUMP_TRIES {
            let whole;
            (found, whole) = self.query_once(&message)?;
            if whole {
                break;
            }
        }
        Ok(found)
    }

    /// The answers, and whether the list did not change while it was told.
    fn query_once(&mut self, message: &Message) -> Result<(Vec<Vec<u8>>, bool), Refused> {
        let sequence = self.take(1);
        let mut datagram = Vec::new();
        message.write(sequence, &mut datagram);
        self.socket.send(&datagram)?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            let length = self.socket.receive(&mut self.buffer)?;
            for answer in answers(&self.buffer[..length]).filter(|a| a.sequence == sequence) {
                whole &= answer.flags & FLAG_INTERRUPTED == 0 || answer.kind == KIND_ERROR;
                match answer.kind {
                    KIND_ERROR => return answer.verdict().map(|()| (found, whole)),
                    KIND_DONE => return Ok((found, whole)),
                    _ => found.push(answer.body.to_vec()),
                }
            }
        }
    }

    /// Carries out an nfnetlink batch: all of it or nothing.
    pub(crate) fn batch(&mut self, mut messages: Vec<Message>) -> Result<(), Refused> {
        let Some(last) = messages.last_mut() else {
            return Ok(());
        };
        last.flag(ACK);
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let first = self.take(messages.len() + 2);
        let mut datagram = Vec::with_capacity(1024);
        nft::batch_begin().write(first, &mut datagram);
        for (at, message) in (1u32..).zip(&messages) {
            message.write(first.wrapping_add(at), &mut datagram);
        }
        nft::batch_end().write(first.wrapping_add(count + 1), &mut datagram);
        self.socket.send(&datagram)?;
        let mut verdict = Ok(());
        loop {
            let length = self.socket.receive(&mut self.buffer)?;
            for answer in answers(&self.buffer[..length]).filter(|a| a.kind == KIND_ERROR) {
                let at = answer.sequence.wrapping_sub(first);
                if at > count {
                    continue;
                }
                if verdict.is_ok() {
                    verdict = answer.verdict();
                }
                // The refusal of the whole batch names its first message, and nothing need follow.
                if at == count || (at == 0 && verdict.is_err()) {
                    return verdict;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_went_in() {
        let mut message = Message::new(20, CREATE, &[0; 8]);
        message.text(3, "abc").nest(5, |inner| {
            inner.attr(1, &[7]).number(2, 9);
        });
        let mut bytes = Vec::new();
        message.write(4, &mut bytes);
        assert_eq!(u32_at(&bytes, 0) as usize, bytes.len());
        let parsed: Vec<Answer<'_>> = answers(&bytes).collect();
        assert_eq!(
            (parsed.len(), parsed[0].kind, parsed[0].sequence),
            (1, 20, 4)
        );
        let found: Vec<(u16, &[u8])> = attributes(&parsed[0].body[8..]).collect();
        assert_eq!(found[0], (3, b"abc\0".as_slice()));
        let inner: Vec<(u16, &[u8])> = attributes(found[1].1).collect();
        assert_eq!(
            inner,
            [(1, [7].as_slice()), (2, 9u32.to_ne_bytes().as_slice())]
        );
        assert_eq!(attributes(&[9, 0, 1]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
    }
}
