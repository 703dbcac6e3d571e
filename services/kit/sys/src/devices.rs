//! Which devices a cgroup v2 may open: an eBPF program attached to it (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE), since v2 has no
//! files for that as v1 has.
//!
//! Invariants: rules are tried in order and the first that fits decides; what no rule fits is refused; the program stays attached as
//! long as the cgroup exists.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::check;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_VALUE: u8 = 0xb7;
const AND_VALUE: u8 = 0x57;
const SHIFT_RIGHT_VALUE: u8 = 0x77;
const JUMP_NOT_EQUAL_VALUE: u8 = 0x55;
const JUMP_NOT_EQUAL: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Which devices a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Block and character devices.
    Any,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// One thing that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Kind of device.
    pub class: Class,
    /// `None` = every one.
    pub major: Option<u32>,
    /// `None` = every one.
    pub minor: Option<u32>,
    /// May be opened for reading.
    pub read: bool,
    /// May be opened for writing.
    pub write: bool,
    /// A node may be made.
    pub mknod: bool,
}

impl Rule {
    /// From the text of the v1 devices controller: "c 1:3 rwm", "a *:* rwm".
    pub fn parse(text: &str) -> Option<Rule> {
        let mut words = text.split_whitespace();
        let class = match words.next()? {
            "a" => Class::Any,
            "b" => Class::Block,
            "c" => Class::Char,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            digits => digits.parse().ok().map(Some),
        };
        let access = words.next()?;
        Some(Rule {
            class,
            major: number(major)?,
            minor: number(minor)?,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        })
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

fn line(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: to | (from << 4),
        offset,
        value,
    }
}

/// Registers: 2 the class, 3 the access, 4 major, 5 minor; 1 is free after the first lines.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut lines = vec![
        line(LOAD_WORD, 2, 1, 0, 0),
        line(MOVE, 3, 2, 0, 0),
        line(AND_VALUE, 2, 0, 0, 0xffff),
        line(SHIFT_RIGHT_VALUE, 3, 0, 0, 16),
        line(LOAD_WORD, 4, 1, 4, 0),
        line(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        match rule.class {
            Class::Any => {}
            Class::Block => tests.push(line(JUMP_NOT_EQUAL_VALUE, 2, 0, 0, 1)),
            Class::Char => tests.push(line(JUMP_NOT_EQUAL_VALUE, 2, 0, 0, 2)),
        }
        let allowed =
            i32::from(rule.mknod) | i32::from(rule.read) << 1 | i32::from(rule.write) << 2;
        if allowed != 7 {
            tests.push(line(MOVE, 1, 3, 0, 0));
            tests.push(line(AND_VALUE, 1, 0, 0, allowed));
            tests.push(line(JUMP_NOT_EQUAL, 1, 3, 0, 0));
        }
        for (register, wanted) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = wanted {
                let value = number.cast_signed();
                tests.push(line(JUMP_NOT_EQUAL_VALUE, register, 0, 0, value));
            }
        }
        // A test that fails goes past the two lines that allow.
        let always = tests.is_empty();
        let count = tests.len();
        for (at, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_VALUE) {
                test.offset = i16::try_from(count - at - 1 + 2).unwrap_or(i16::MAX);
            }
        }
        lines.extend(tests);
        lines.push(line(MOVE_VALUE, 0, 0, 0, 1));
        lines.push(line(EXIT, 0, 0, 0, 0));
        if always {
            // The kernel refuses a program with lines that are never reached.
            return lines;
        }
    }
    lines.push(line(MOVE_VALUE, 0, 0, 0, 0));
    lines.push(line(EXIT, 0, 0, 0, 0));
    lines
}

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD; the rest is zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Lets a cgroup open these devices and no others.
///
/// # Errors
/// EPERM without CAP_BPF or CAP_SYS_ADMIN, EINVAL on a kernel without CONFIG_CGROUP_BPF.
pub fn restrict(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> io::Result<()> {
    let lines = program(rules);
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(lines.len()).map_err(io::Error::other)?,
        instructions: lines.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the attributes, the instructions and the licence live across the call; their size is passed.
    let loaded = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            std::ptr::from_ref(&load),
            size_of::<Load>(),
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(i32::try_from(loaded).map_err(io::Error::other)?) };
    let number = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attach = Attach {
        target: number(cgroup.as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes live across the call; their size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            std::ptr::from_ref(&attach),
            size_of::<Attach>(),
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that knows what the program uses.
    fn decides(rules: &[Rule], class: u32, access: u32, major: u32, minor: u32) -> bool {
        let lines = program(rules);
        let context = [class | access << 16, major, minor];
        let mut registers = [0i64; 11];
        let mut at = 0usize;
        for _ in 0..1000 {
            let line = lines[at];
            let (to, from) = (
                usize::from(line.registers & 15),
                usize::from(line.registers >> 4),
            );
            at += 1;
            let value = i64::from(line.value);
            let jump = match line.code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(line.offset).unwrap() / 4].into();
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                MOVE_VALUE => {
                    registers[to] = value;
                    false
                }
                AND_VALUE => {
                    registers[to] &= value;
                    false
                }
                SHIFT_RIGHT_VALUE => {
                    registers[to] >>= value;
                    false
                }
                JUMP_NOT_EQUAL_VALUE => registers[to] != value,
                JUMP_NOT_EQUAL => registers[to] != registers[from],
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            };
            if jump {
                at += usize::try_from(line.offset).unwrap();
            }
        }
        panic!("no end");
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules: Vec<Rule> = ["c *:* m", "b *:* m", "c 1:3 rwm", "c 136:* rwm", "c 1:11 r"]
            .iter()
            .map(|text| Rule::parse(text).unwrap())
            .collect();
        let (block, char) = (1, 2);
        let (mknod, read, write) = (1, 2, 4);
        assert!(decides(&rules, char, read | write, 1, 3));
        assert!(decides(&rules, char, mknod, 9, 9) && decides(&rules, block, mknod, 8, 0));
        assert!(!decides(&rules, block, read, 8, 0));
        assert!(decides(&rules, char, write, 136, 77));
        assert!(decides(&rules, char, read, 1, 11) && !decides(&rules, char, read | write, 1, 11));
        assert!(!decides(&rules, char, read, 10, 229));
        let all = [Rule::parse("a *:* rwm").unwrap()];
        assert!(decides(&all, block, read | write | mknod, 8, 0));
        for wrong in ["", "x 1:3 rwm", "c 1 rwm", "c a:b r"] {
            assert_eq!(Rule::parse(wrong), None, "{wrong}");
        }
    }
}
