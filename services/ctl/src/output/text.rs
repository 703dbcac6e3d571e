//! Values as people read them: sizes, ages, short ids.
//!
//! Invariant: docker's words, so that scripts that read them go on working.

use prost_types::Timestamp;
use serde_json::Value;

/// 12 digits of an id, without its algorithm.
pub fn short_id(id: &str) -> String {
    let bare = id.split_once(':').map_or(id, |(_, hex)| hex);
    bare.chars().take(12).collect()
}

/// "1.23MB": decimal units, three digits, as docker prints images.
pub fn size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes}B");
    }
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{number}{}", UNITS[unit])
}

/// Seconds since a moment.
pub fn seconds_since(moment: &Timestamp) -> i64 {
    (jiff::Timestamp::now().as_second() - moment.seconds).max(0)
}

/// "5 minutes", "About an hour": docker's words for a time.
pub fn duration(seconds: i64) -> String {
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / 60),
        3600..5400 => "About an hour".into(),
        5400..172_800 => format!("{} hours", (seconds + 1800) / 3600),
        172_800..1_209_600 => format!("{} days", seconds / 86_400),
        1_209_600..5_184_000 => format!("{} weeks", seconds / 604_800),
        5_184_000..63_072_000 => format!("{} months", seconds / 2_592_000),
        _ => format!("{} years", seconds / 31_536_000),
    }
}

/// "5 minutes ago", or nothing.
pub fn ago(moment: Option<&Timestamp>) -> String {
    moment.map_or_else(
        || "N/A".into(),
        |moment| format!("{} ago", duration(seconds_since(moment))),
    )
}

/// RFC 3339 with nanoseconds; docker's zero time when there is none.
pub fn rfc3339(moment: Option<&Timestamp>) -> String {
    let time = moment.and_then(|moment| jiff::Timestamp::new(moment.seconds, moment.nanos).ok());
    match time {
        Some(time) => format!("{time:.9}"),
        None => "0001-01-01T00:00:00Z".into(),
    }
}

/// At most so many characters, the last an ellipsis when something is cut off.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(most.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// "a=1,b=2" in order.
pub fn pairs(map: &std::collections::HashMap<String, String>) -> String {
    let mut all: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    all.sort();
    all.join(",")
}

/// A map as JSON, in order.
pub fn object(map: &std::collections::HashMap<String, String>) -> Value {
    let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
    serde_json::to_value(sorted).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_in_dockers_words() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1234, "1.23kB"),
            (10_000_000, "10MB"),
            (4_210_000, "4.21MB"),
            (123_456_789, "123MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(cut("abcdef", 4), "abc…");
        let stamp = Timestamp {
            seconds: 1_767_323_045,
            nanos: 5,
        };
        assert_eq!(rfc3339(Some(&stamp)), "2026-01-02T03:04:05.000000005Z");
    }
}
