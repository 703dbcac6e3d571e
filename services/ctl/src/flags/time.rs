//! Times that users write: "10m" (ago), "2026-01-02", "2026-01-02T03:04:05Z", seconds since 1970.
//!
//! Invariant: what cannot be read is an error; a time without a zone is local.

use prost_types::Timestamp;

use super::bad;

fn stamp(time: jiff::Timestamp) -> Timestamp {
    Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// A moment.
///
/// # Errors
/// A sentence with the forms that are understood.
pub fn moment(flag: &str, text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(stamp(time));
    }
    if let Some(seconds) = duration(text) {
        let now = jiff::Timestamp::now();
        let then = now - jiff::SignedDuration::from_secs_f64(seconds);
        return Ok(stamp(then));
    }
    if let Some((seconds, nanos)) = number(text) {
        return Ok(Timestamp { seconds, nanos });
    }
    if let Ok(civil) = text.parse::<jiff::civil::DateTime>() {
        let zoned = civil.to_zoned(jiff::tz::TimeZone::system());
        return zoned
            .map(|zoned| stamp(zoned.timestamp()))
            .map_err(|error| bad(flag, text, error));
    }
    Err(bad(
        flag,
        text,
        "write how long ago (10m, 1h30m), a time (2026-01-02T15:04:05Z) or seconds since 1970",
    ))
}

fn number(text: &str) -> Option<(i64, i32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && fraction.len() <= 9;
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    digits.then_some((seconds.parse().ok()?, nanos))
}

/// "1h2m3.5s" in seconds, as Go writes durations.
fn duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let value: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let (unit, seconds) = [
            ("ms", 0.001),
            ("us", 0.000_001),
            ("h", 3600.0),
            ("m", 60.0),
            ("s", 1.0),
            ("d", 86_400.0),
        ]
        .into_iter()
        .find(|(unit, _)| rest.starts_with(unit))?;
        total += value * seconds;
        rest = rest.get(unit.len()..)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_time() {
        let at = |text: &str| moment("--since", text).unwrap();
        assert_eq!(at("1700000000.5").nanos, 500_000_000);
        assert_eq!(at("2026-01-02T03:04:05Z").seconds, 1_767_323_045);
        let ago = jiff::Timestamp::now().as_second() - at("1h30m").seconds;
        assert!((5399..=5402).contains(&ago), "{ago}");
        assert!(moment("--since", "2026-01-02").is_ok());
        for text in ["", "yesterday", "5x", "1.2.3"] {
            assert!(
                moment("--since", text).unwrap_err().contains("--since"),
                "{text}"
            );
        }
    }
}
