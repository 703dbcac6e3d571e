//! Sizes and processor counts.
//!
//! Invariant: sizes are binary (docker's `RAMInBytes`): 1k = 1024, with or without `i` and `b`.

/// "64m", "1.5GiB", "512" in bytes.
///
/// # Errors
/// A sentence that says what a size looks like.
pub fn size(text: &str) -> Result<i64, String> {
    let help = || {
        format!(
            "invalid size {text:?}: write a number with an optional unit b, k, m, g, t or p, for example 64m"
        )
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| help())?;
    let factor: f64 = match unit.trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024f64.powi(2),
        "g" | "gb" | "gib" => 1024f64.powi(3),
        "t" | "tb" | "tib" => 1024f64.powi(4),
        "p" | "pb" | "pib" => 1024f64.powi(5),
        _ => return Err(help()),
    };
    let bytes = number * factor;
    if bytes >= i64::MAX as f64 {
        return Err(format!("invalid size {text:?}: larger than 8 EiB"));
    }
    Ok(bytes as i64)
}

/// A size, or -1 for "unlimited" (`--memory-swap`).
///
/// # Errors
/// As [`size`].
pub fn size_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { size(text) }
}

/// "1.5" processors in billionths.
///
/// # Errors
/// A sentence when it is not a positive decimal with at most nine places.
pub fn nano_cpus(text: &str) -> Result<i64, String> {
    let help = || {
        format!(
            "invalid number of CPUs {text:?}: write a decimal such as 0.5 or 2 (at most 9 places)"
        )
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty())
        || !digits(whole)
        || !digits(fraction)
        || fraction.len() > 9
    {
        return Err(help());
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| help())?
    };
    let nano: i64 = format!("{fraction:0<9}").parse().map_err(|_| help())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|w| w.checked_add(nano))
        .ok_or_else(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", 0),
            ("512", 512),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 k", 2048),
            ("7b", 7),
        ] {
            assert_eq!(size(text), Ok(want), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1..2m", "64mm", "99999p"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(size_or_unlimited("-1"), Ok(-1));
    }

    #[test]
    fn cpus() {
        assert_eq!(nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        assert_eq!(nano_cpus(".25"), Ok(250_000_000));
        for bad in ["", ".", "-1", "1e3", "0.0000000001", "a"] {
            assert!(nano_cpus(bad).is_err(), "{bad}");
        }
    }
}
