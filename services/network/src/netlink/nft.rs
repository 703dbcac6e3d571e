//! The nftables messages that we speak: tables, chains, sets and maps, elements, rules made of expressions
//! (linux/netfilter/nf_tables.h).
//!
//! Invariant: makes messages, sends none. Registers hold 16 bytes each from [`REG1`] on; a key of several parts lies in
//! them part by part, each padded to 4 bytes.

use super::{APPEND, CREATE, Message};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
/// NFPROTO_INET.
const HEADER: [u8; 4] = [1, 0, 0, 0];
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
/// An attribute's length has 16 bits; this many elements stay far below.
const ELEMENTS_AT_ONCE: usize = 256;

pub(crate) fn batch_begin() -> Message {
    Message::new(0x10, 0, &[0, 0, 0, 10])
}

pub(crate) fn batch_end() -> Message {
    Message::new(0x11, 0, &[0, 0, 0, 10])
}

pub(crate) fn new_table(table: &str) -> Message {
    let mut message = Message::new(NEW_TABLE, CREATE, &HEADER);
    message.text(1, table).big(2, 0);
    message
}

pub(crate) fn delete_table(table: &str) -> Message {
    let mut message = Message::new(DELETE_TABLE, 0, &HEADER);
    message.text(1, table);
    message
}

/// Where packets come by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain; with a type, hook and priority a base chain whose policy is accept.
pub(crate) fn new_chain(table: &str, name: &str, base: Option<(&str, Hook, i32)>) -> Message {
    let mut message = Message::new(NEW_CHAIN, CREATE, &HEADER);
    message.text(1, table).text(3, name);
    if let Some((kind, hook, priority)) = base {
        message
            .nest(4, |at| {
                at.big(1, hook as u32).attr(2, &priority.to_be_bytes());
            })
            .big(5, ACCEPT.unsigned_abs())
            .text(7, kind);
    }
    message
}

/// Types of the parts of keys and values, as the nft program numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ipv4 = 7,
    Ipv6 = 8,
    Protocol = 12,
    Port = 13,
    Interface = 41,
}

impl Kind {
    fn length(self) -> u32 {
        match self {
            Kind::Ipv4 | Kind::Protocol | Kind::Port => 4,
            Kind::Ipv6 | Kind::Interface => 16,
        }
    }
}

fn kind_of(parts: &[Kind]) -> (u32, u32) {
    parts.iter().fold((0, 0), |(kind, length), part| {
        ((kind << 6) | *part as u32, length + part.length())
    })
}

/// A set, or with `data` a map. With `ranges` its elements are ranges of keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Kind],
    pub(crate) data: &'static [Kind],
    pub(crate) ranges: bool,
}

const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_CONCAT: u32 = 0x80;
/// Tells the nft program that a key alone is in the host's order; without it, it shows names of interfaces as nothing.
const HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];

pub(crate) fn new_set(table: &str, set: &Set, id: u32) -> Message {
    let mut message = Message::new(NEW_SET, CREATE, &HEADER);
    let (kind, length) = kind_of(set.key);
    let map = if set.data.is_empty() { 0 } else { SET_MAP };
    let ranges = if set.ranges {
        SET_INTERVAL | SET_CONCAT
    } else {
        0
    };
    message.text(1, table).text(2, set.name);
    message.big(3, map | ranges).big(4, kind).big(5, length);
    if map != 0 {
        let (kind, length) = kind_of(set.data);
        message.big(6, kind).big(7, length);
    }
    if set.ranges {
        message.nest(9, |description| {
            description.nest(2, |fields| {
                for part in set.key {
                    fields.nest(LIST_ELEMENT, |field| {
                        field.big(1, part.length());
                    });
                }
            });
        });
    }
    message.big(10, id);
    if set.key == [Kind::Interface] {
        message.attr(13, &HOST_ORDER);
    }
    message
}

/// One element: the parts of key and value, each padded already.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    /// The last key of a range; empty where elements are no ranges.
    pub(crate) end: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// Adds or takes away elements, which may be of several sets.
pub(crate) fn elements(table: &str, elements: &[Element], add: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    for same in elements.chunk_by(|a, b| a.set == b.set) {
        for some in same.chunks(ELEMENTS_AT_ONCE) {
            let kind = if add { NEW_ELEMENT } else { DELETE_ELEMENT };
            let mut message = Message::new(kind, if add { CREATE } else { 0 }, &HEADER);
            message.text(1, table).text(2, some[0].set);
            message.nest(3, |list| {
                for element in some {
                    list.nest(LIST_ELEMENT, |one| {
                        one.nest(1, |key| {
                            key.attr(DATA_VALUE, &element.key);
                        });
                        if !element.end.is_empty() {
                            one.nest(10, |end| {
                                end.attr(DATA_VALUE, &element.end);
                            });
                        }
                        if add && !element.data.is_empty() {
                            one.nest(2, |data| {
                                data.attr(DATA_VALUE, &element.data);
                            });
                        }
                    });
                }
            });
            messages.push(message);
        }
    }
    messages
}

pub(crate) const REG1: u32 = 1;
pub(crate) const REG2: u32 = 2;
/// The 4-byte register at a place in the 16-byte ones: `word(0)` is the beginning of [`REG1`].
pub(crate) const fn word(number: u32) -> u32 {
    8 + number
}

/// Verdicts.
pub(crate) const DROP: i32 = 0;
pub(crate) const ACCEPT: i32 = 1;
pub(crate) const RETURN: i32 = -5;
const JUMP: i32 = -3;

/// Things that packets carry beside their bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Family = 15,
    Protocol = 16,
}

/// Headers of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    Network = 1,
    Transport = 2,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tracked {
    State = 0,
    Status = 2,
}

/// Which address of a packet is translated.
pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;

/// The expressions of one rule, in order.
#[derive(Debug, Clone)]
pub(crate) struct Rule(Message);

impl Rule {
    pub(crate) fn new() -> Rule {
        Rule(Message::parts())
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Message)) -> Rule {
        self.0.nest(LIST_ELEMENT, |one| {
            one.text(1, name).nest(2, fill);
        });
        self
    }

    pub(crate) fn meta(self, key: Meta, register: u32) -> Rule {
        self.expression("meta", |e| {
            e.big(1, register).big(2, key as u32);
        })
    }

    pub(crate) fn payload(self, base: Base, offset: u32, length: u32, register: u32) -> Rule {
        self.expression("payload", |e| {
            e.big(1, register)
                .big(2, base as u32)
                .big(3, offset)
                .big(4, length);
        })
    }

    pub(crate) fn equals(self, value: &[u8]) -> Rule {
        self.compare(0, value)
    }

    fn compare(self, operation: u32, value: &[u8]) -> Rule {
        self.expression("cmp", |e| {
            e.big(1, REG1).big(2, operation).nest(3, |data| {
                data.attr(DATA_VALUE, value);
            });
        })
    }

    /// Goes on when the key in the registers from `source` is in the set, or with `not` when it is not.
    pub(crate) fn within(self, set: &str, not: bool) -> Rule {
        self.expression("lookup", |e| {
            e.text(1, set).big(2, REG1);
            if not {
                e.big(5, 1);
            }
        })
    }

    /// Replaces the key by what the map has for it, or ends the rule.
    pub(crate) fn map(self, map: &str) -> Rule {
        self.expression("lookup", |e| {
            e.text(1, map).big(2, REG1).big(3, REG1);
        })
    }

    /// Goes on when one of the bits is set.
    pub(crate) fn tracked(self, key: Tracked, bits: u32) -> Rule {
        self.expression("ct", |e| {
            e.big(1, REG1).big(2, key as u32);
        })
        .expression("bitwise", |e| {
            e.big(1, REG1).big(2, REG1).big(3, 4);
            e.nest(4, |mask| {
                mask.attr(DATA_VALUE, &bits.to_ne_bytes());
            });
            e.nest(5, |xor| {
                xor.attr(DATA_VALUE, &[0; 4]);
            });
        })
        .compare(1, &[0; 4])
    }

    /// Goes on when the destination is an address of this host.
    pub(crate) fn destined_here(self) -> Rule {
        const ADDRESS_TYPE: u32 = 3;
        const DESTINATION: u32 = 2;
        const LOCAL: u32 = 2;
        self.expression("fib", |e| {
            e.big(1, REG1).big(2, ADDRESS_TYPE).big(3, DESTINATION);
        })
        .equals(&LOCAL.to_ne_bytes())
    }

    /// Sends the packet to the address in [`REG1`] and the port in `port`.
    pub(crate) fn dnat(self, family: u8, port: u32) -> Rule {
        self.expression("nat", |e| {
            e.big(1, 1).big(2, family.into()).big(3, REG1).big(5, port);
        })
    }

    pub(crate) fn masquerade(self) -> Rule {
        self.expression("masq", |_| {})
    }

    pub(crate) fn verdict(self, code: i32) -> Rule {
        self.immediate(code, None)
    }

    pub(crate) fn jump(self, chain: &str) -> Rule {
        self.immediate(JUMP, Some(chain))
    }

    fn immediate(self, code: i32, chain: Option<&str>) -> Rule {
        self.expression("immediate", |e| {
            e.big(1, 0).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.attr(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        })
    }

    /// The message that adds the rule at the end of a chain.
    pub(crate) fn add(&self, table: &str, chain: &str) -> Message {
        let mut message = Message::new(NEW_RULE, CREATE | APPEND, &HEADER);
        message.text(1, table).text(2, chain);
        message.nest(4, |list| {
            list.all(&self.0);
        });
        message
    }
}
