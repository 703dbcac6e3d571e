//! The processes of a container, as `ps -ef` would show them.
//!
//! Invariant: read from /proc alone; a process that ends meanwhile is left out.

use std::path::Path;

/// Column titles.
pub const TITLES: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// Clock ticks a second that /proc counts in; fixed on Linux (USER_HZ).
const TICKS: u64 = 100;

/// One row a process of the control group.
pub fn rows(cgroup: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(row).collect()
}

fn boot_time() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn row(pid: u32) -> Option<Vec<String>> {
    let dir = format!("/proc/{pid}");
    let stat = std::fs::read_to_string(format!("{dir}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("{dir}/status")).ok()?;
    // The name is in parentheses and may hold anything.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .next()?;
    let seconds = (number(11)? + number(12)?) / TICKS;
    let started = boot_time()? + i64::try_from(number(19)? / TICKS).ok()?;
    let age = (crate::hub::now() / 1_000_000_000 - started).max(1);
    let raw = std::fs::read(format!("{dir}/cmdline")).ok()?;
    let mut command = String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned();
    if command.is_empty() {
        command = format!("[{}]", head.split_once('(')?.1);
    }
    let clock = jiff::Timestamp::from_second(started)
        .ok()?
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%H:%M")
        .to_string();
    let tty = match number(4)? {
        0 => "?".to_owned(),
        device if (device >> 8) & 0xff >= 136 => format!("pts/{}", device & 0xff),
        device => format!("{}:{}", (device >> 8) & 0xff, device & 0xff),
    };
    let share = (seconds * 100 / u64::try_from(age).ok()?).min(99);
    Some(vec![
        uid.to_owned(),
        pid.to_string(),
        number(1)?.to_string(),
        share.to_string(),
        clock,
        tty,
        format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        command,
    ])
}
