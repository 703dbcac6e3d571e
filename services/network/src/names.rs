//! Names: of interfaces, of networks and sandboxes, random ids, hardware addresses.
//!
//! Invariants: an interface's name is at most 15 bytes and says by its form that it is ours; an id that passed
//! [`check_id`] is safe as a file name. Nothing here does IO.

use std::net::IpAddr;

use rand::Rng as _;

/// Longest name of an interface (IFNAMSIZ without the NUL).
const LONGEST: usize = 15;
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn hash_length(prefix: &str) -> usize {
    (LONGEST - prefix.len() - 1).min(8)
}

fn hashed(prefix: &str, kind: char, text: &str) -> String {
    let mut rest = hash(text);
    let mut name = format!("{prefix}{kind}");
    for _ in 0..hash_length(prefix) {
        name.push(char::from(LETTERS[(rest & 31) as usize]));
        rest >>= 5;
    }
    name
}

/// The host's end of a sandbox's interface, not among the `taken`.
pub(crate) fn veth(
    prefix: &str,
    sandbox: &str,
    number: usize,
    taken: impl Fn(&str) -> bool,
) -> String {
    let mut text = format!("{sandbox}/{number}");
    loop {
        let name = hashed(prefix, 'v', &text);
        if !taken(&name) {
            return name;
        }
        text.push('+');
    }
}

/// The bridge of a network; the default one has a name of its own.
pub(crate) fn bridge(prefix: &str, network_id: &str, default: bool) -> String {
    if default {
        format!("{prefix}0")
    } else {
        hashed(prefix, 'b', network_id)
    }
}

/// Whether an interface's name is one that only we give.
pub(crate) fn is_ours(prefix: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else {
        return false;
    };
    let form = |rest: &str| {
        rest.len() == hash_length(prefix) && rest.bytes().all(|b| LETTERS.contains(&b))
    };
    rest == "0" || rest.strip_prefix(['v', 'b']).is_some_and(form)
}

/// 64 hexadecimal digits.
pub(crate) fn random_id() -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A locally administered hardware address made of an IPv4 address, so that it is unique where that is.
pub(crate) fn mac_of(address: IpAddr) -> [u8; 6] {
    let tail = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (v6.to_bits() as u32).to_be_bytes(),
    };
    [0x02, 0x42, tail[0], tail[1], tail[2], tail[3]]
}

pub(crate) fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A unicast hardware address.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn clean(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 128
}

/// Says what is wrong with a sandbox's id or a network's name.
pub(crate) fn check_id(text: &str) -> Result<(), String> {
    if clean(text) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a name; write 1 to 128 of A-Z a-z 0-9 _ . -, a letter or digit first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_short_distinct_and_known() {
        for prefix in ["gantry", "g", "gt12x", "eightlng"] {
            let free = |_: &str| false;
            let name = veth(prefix, "abc", 0, free);
            assert!(name.len() <= LONGEST && is_ours(prefix, &name), "{name}");
            assert_ne!(name, veth(prefix, "abc", 1, free));
            assert_ne!(name, veth(prefix, "abc", 0, |taken| taken == name));
            let bridge = bridge(prefix, "net", false);
            assert!(bridge.len() <= LONGEST && is_ours(prefix, &bridge));
        }
        assert!(is_ours("gantry", &bridge("gantry", "", true)));
        for foreign in [
            "gantry1",
            "gantryvabc",
            "eth0",
            "gantry0x",
            "gantryvABCDEFGH",
        ] {
            assert!(!is_ours("gantry", foreign), "{foreign}");
        }
    }

    #[test]
    fn macs_and_ids() {
        let mac = mac_of("10.88.0.2".parse().unwrap());
        assert_eq!(show_mac(mac), "02:42:0a:58:00:02");
        assert_eq!(parse_mac(&show_mac(mac)), Some(mac));
        for bad in [
            "",
            "01:00:00:00:00:00",
            "02:42",
            "02:42:0a:58:00:02:03",
            "zz:42:0a:58:00:02",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        assert!(check_id("web-1.a_b").is_ok());
        for bad in ["", ".", "../x", "a/b", "-a"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert_eq!(random_id().len(), 64);
    }
}
