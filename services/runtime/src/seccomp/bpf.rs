//! From rules to a classic BPF program.
//!
//! Invariants: every path ends in a return; jumps over more than 255 instructions go through an unconditional one; the
//! processor architecture is checked before the number is looked at, since numbers mean different calls on each.

use std::collections::BTreeMap;

/// What to do with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Allow,
    /// Fail with this error number.
    Errno(u16),
    /// Let it through and log it.
    Log,
    /// End the thread.
    KillThread,
    /// End the process.
    KillProcess,
    /// Send SIGSYS.
    Trap,
}

impl Action {
    fn code(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Log => 0x7ffc_0000,
            Action::Errno(number) => 0x0005_0000 | u32::from(number),
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0x0000_0000,
            Action::KillProcess => 0x8000_0000,
        }
    }
}

/// How an argument is compared (64 bits, unsigned).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// `argument & mask == value`.
    Masked(u64),
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
}

/// One condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Which argument, from 0.
    pub index: u8,
    /// How.
    pub compare: Compare,
    /// With what.
    pub value: u64,
}

/// What a call meets: the first case whose conditions all hold, else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cases(pub Vec<(Vec<Check>, Option<Action>)>);

/// Rules for one architecture.
#[derive(Debug, Clone)]
pub struct Table {
    /// AUDIT_ARCH_*.
    pub arch: u32,
    /// By system call number.
    pub calls: BTreeMap<u32, Cases>,
    /// The highest number that was known when this was built: later ones do not exist, as far as a program is told, so that
    /// libraries fall back instead of failing (runc does the same).
    pub last: u32,
}

/// A whole profile.
#[derive(Debug, Clone)]
pub struct Rules {
    /// For calls that no rule names, and calls of other architectures.
    pub default: Action,
    /// The host's own architecture and those that it runs too.
    pub tables: Vec<Table>,
}

/// Function not implemented.
const ENOSYS: u16 = 38;
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// A label of a place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Line {
    Load(u32),
    And(u32),
    Return(u32),
    /// Test, value, where to when true, where to when false.
    Test(u16, u32, Label, Label),
    Here(Label),
}

/// A program under construction.
#[derive(Debug, Default)]
pub struct Filter {
    lines: Vec<Line>,
    labels: usize,
}

/// What a stretch of numbers leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict<'a> {
    Simple(Action),
    Cases(&'a Cases),
}

impl Filter {
    /// The program of a profile.
    pub fn new(rules: &Rules) -> Self {
        let mut filter = Filter::default();
        filter.lines.push(Line::Load(ARCH));
        for table in &rules.tables {
            let (mine, other) = (filter.label(), filter.label());
            filter
                .lines
                .push(Line::Test(JUMP_EQUAL, table.arch, mine, other));
            filter.lines.push(Line::Here(mine));
            filter.lines.push(Line::Load(NUMBER));
            let stretches = stretches(table, rules.default);
            filter.search(&stretches, rules.default);
            filter.lines.push(Line::Here(other));
        }
        filter.lines.push(Line::Return(rules.default.code()));
        filter
    }

    fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    /// Binary search over stretches (first number, verdict); the accumulator holds the number.
    fn search(&mut self, stretches: &[(u32, Verdict<'_>)], default: Action) {
        if let [(_, verdict)] = stretches {
            return match verdict {
                Verdict::Simple(action) => self.lines.push(Line::Return(action.code())),
                Verdict::Cases(cases) => self.cases(cases, default),
            };
        }
        let (low, high) = stretches.split_at(stretches.len() / 2);
        let (above, below) = (self.label(), self.label());
        let border = high.first().map_or(0, |(number, _)| *number);
        self.lines
            .push(Line::Test(JUMP_GREATER_EQUAL, border, above, below));
        self.lines.push(Line::Here(below));
        self.search(low, default);
        self.lines.push(Line::Here(above));
        self.search(high, default);
    }

    fn cases(&mut self, cases: &Cases, default: Action) {
        for (checks, action) in &cases.0 {
            let next = self.label();
            for check in checks {
                self.check(*check, next);
            }
            self.lines
                .push(Line::Return(action.unwrap_or(default).code()));
            self.lines.push(Line::Here(next));
        }
        self.lines.push(Line::Return(default.code()));
    }

    /// Goes on when the condition holds, else to `fails`. Arguments are compared as two halves.
    fn check(&mut self, check: Check, fails: Label) {
        let at = 16 + u32::from(check.index) * 8;
        let (low_at, high_at) = if cfg!(target_endian = "little") {
            (at, at + 4)
        } else {
            (at + 4, at)
        };
        let (low, high) = (check.value as u32, (check.value >> 32) as u32);
        let holds = self.label();
        let more = self.label();
        match check.compare {
            Compare::Equal | Compare::Masked(_) => {
                let mask = match check.compare {
                    Compare::Masked(mask) => mask,
                    _ => u64::MAX,
                };
                for (place, want, mask) in [
                    (high_at, high, (mask >> 32) as u32),
                    (low_at, low, mask as u32),
                ] {
                    let equal = self.label();
                    self.lines.push(Line::Load(place));
                    if mask != u32::MAX {
                        self.lines.push(Line::And(mask));
                    }
                    self.lines.push(Line::Test(JUMP_EQUAL, want, equal, fails));
                    self.lines.push(Line::Here(equal));
                }
            }
            Compare::NotEqual => {
                self.lines.push(Line::Load(high_at));
                self.lines.push(Line::Test(JUMP_EQUAL, high, more, holds));
                self.lines.push(Line::Here(more));
                self.lines.push(Line::Load(low_at));
                self.lines.push(Line::Test(JUMP_EQUAL, low, fails, holds));
            }
            Compare::Greater | Compare::GreaterOrEqual => {
                let test = if check.compare == Compare::Greater {
                    JUMP_GREATER
                } else {
                    JUMP_GREATER_EQUAL
                };
                let equal = self.label();
                self.lines.push(Line::Load(high_at));
                self.lines.push(Line::Test(JUMP_GREATER, high, holds, more));
                self.lines.push(Line::Here(more));
                self.lines.push(Line::Test(JUMP_EQUAL, high, equal, fails));
                self.lines.push(Line::Here(equal));
                self.lines.push(Line::Load(low_at));
                self.lines.push(Line::Test(test, low, holds, fails));
            }
            Compare::Less | Compare::LessOrEqual => {
                let test = if check.compare == Compare::Less {
                    JUMP_GREATER_EQUAL
                } else {
                    JUMP_GREATER
                };
                let equal = self.label();
                self.lines.push(Line::Load(high_at));
                self.lines.push(Line::Test(JUMP_GREATER, high, fails, more));
                self.lines.push(Line::Here(more));
                self.lines.push(Line::Test(JUMP_EQUAL, high, equal, holds));
                self.lines.push(Line::Here(equal));
                self.lines.push(Line::Load(low_at));
                self.lines.push(Line::Test(test, low, fails, holds));
            }
        }
        self.lines.push(Line::Here(holds));
    }

    /// The instructions as the kernel wants them: code, two short jumps, a value.
    pub fn assemble(&self) -> Vec<u8> {
        // A test is written as two instructions more than it needs at worst: an unconditional jump for each side whose
        // target is too far for eight bits. Sizes are settled first, from the end, since all jumps go forward.
        let count = self.lines.len();
        let mut sizes = vec![0usize; count];
        let mut places: BTreeMap<Label, usize> = BTreeMap::new();
        // Distance of a line's first instruction from the end of the program.
        let mut distance = 0;
        for at in (0..count).rev() {
            sizes[at] = match self.lines[at] {
                Line::Here(label) => {
                    places.insert(label, distance);
                    0
                }
                Line::Test(_, _, yes, no) => {
                    let far = |label: &Label| distance - places[label] > 253;
                    1 + usize::from(far(&yes)) + usize::from(far(&no))
                }
                _ => 1,
            };
            distance += sizes[at];
        }
        let mut out = Vec::with_capacity(distance * 8);
        let mut left = distance;
        for (line, size) in self.lines.iter().zip(sizes) {
            left -= size;
            let to = |label: &Label| left - places[label];
            let mut put = |code: u16, yes: usize, no: usize, value: u32| {
                out.extend_from_slice(&code.to_ne_bytes());
                out.push(u8::try_from(yes).unwrap_or(u8::MAX));
                out.push(u8::try_from(no).unwrap_or(u8::MAX));
                out.extend_from_slice(&value.to_ne_bytes());
            };
            let far = |distance: usize| u32::try_from(distance).unwrap_or(u32::MAX);
            match line {
                Line::Here(_) => {}
                Line::Load(at) => put(LOAD, 0, 0, *at),
                Line::And(mask) => put(AND, 0, 0, *mask),
                Line::Return(value) => put(RETURN, 0, 0, *value),
                Line::Test(code, value, yes, no) => {
                    let (yes_to, no_to) = (to(yes), to(no));
                    match (yes_to > 253, no_to > 253) {
                        (false, false) => put(*code, yes_to, no_to, *value),
                        (true, false) => {
                            put(*code, 0, no_to + 1, *value);
                            put(JUMP, 0, 0, far(yes_to));
                        }
                        (false, true) => {
                            put(*code, yes_to + 1, 0, *value);
                            put(JUMP, 0, 0, far(no_to));
                        }
                        (true, true) => {
                            put(*code, 0, 1, *value);
                            put(JUMP, 0, 0, far(yes_to + 1));
                            put(JUMP, 0, 0, far(no_to));
                        }
                    }
                }
            }
        }
        out
    }
}

/// Neighbouring numbers with one verdict are one stretch; what is between is the default's.
fn stretches(table: &Table, default: Action) -> Vec<(u32, Verdict<'_>)> {
    let mut found: Vec<(u32, Verdict<'_>)> = vec![(0, Verdict::Simple(default))];
    for (number, cases) in &table.calls {
        let verdict = match cases.0.as_slice() {
            [(checks, Some(action)), ..] if checks.is_empty() => Verdict::Simple(*action),
            _ => Verdict::Cases(cases),
        };
        push(&mut found, *number, verdict);
        push(&mut found, number + 1, Verdict::Simple(default));
    }
    if matches!(default, Action::Errno(_)) {
        let later = found.last().map_or(0, |(at, _)| *at).max(table.last + 1);
        push(&mut found, later, Verdict::Simple(Action::Errno(ENOSYS)));
    }
    found
}

fn push<'a>(found: &mut Vec<(u32, Verdict<'a>)>, first: u32, verdict: Verdict<'a>) {
    // What was said of the same number for the case that nothing follows is taken back.
    found.pop_if(|(at, _)| *at == first);
    if found.last().is_none_or(|(_, last)| *last != verdict) {
        found.push((first, verdict));
    }
}
