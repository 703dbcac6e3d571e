//! `-p` and `--expose`: `[host-ip:][host-port[-end]:]container-port[-end][/tcp|udp]` (docker's nat.ParsePortSpec).
//!
//! Invariant: ranges on both sides have the same length. Docker's "one container port takes any free port of a host
//! range" is refused: a `PortMapping` cannot say it.

use super::bad;
use gantry_proto::network::{PortMapping, Protocol};

fn range(text: &str) -> Result<(u16, u16), String> {
    let number = |s: &str| {
        s.parse::<u16>()
            .ok()
            .filter(|&p| p > 0)
            .ok_or_else(|| format!("{s:?} is not a port (1 to 65535)"))
    };
    match text.split_once('-') {
        Some((a, b)) => {
            let (a, b) = (number(a)?, number(b)?);
            if a > b {
                return Err(format!("range {text} runs backwards"));
            }
            Ok((a, b))
        }
        None => number(text).map(|p| (p, p)),
    }
}

fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((rest, p)) if p.eq_ignore_ascii_case("tcp") => Ok((rest, Protocol::Tcp)),
        Some((rest, p)) if p.eq_ignore_ascii_case("udp") => Ok((rest, Protocol::Udp)),
        Some((_, p)) => Err(format!("protocol {p:?} is not supported; write tcp or udp")),
    }
}

/// The mappings of one `-p` value.
///
/// # Errors
/// A sentence naming the flag, the value and the grammar.
pub fn publish(text: &str) -> Result<Vec<PortMapping>, String> {
    parse(text).map_err(|why| {
        bad("--publish", text, format!("{why}; write [IP:][HOST-PORT:]CONTAINER-PORT[/tcp|udp], for example 127.0.0.1:8080:80"))
    })
}

fn parse(text: &str) -> Result<Vec<PortMapping>, String> {
    let (rest, protocol) = protocol(text)?;
    let (host, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (ip, host) = if let Some(v6) = host.strip_prefix('[') {
        let (ip, port) = v6
            .split_once(']')
            .ok_or_else(|| "the address lacks its ]".to_owned())?;
        (ip, port.strip_prefix(':').unwrap_or(port))
    } else {
        match host.rsplit_once(':') {
            Some((ip, port)) => (ip, port),
            None if host.contains('.') => (host, ""),
            None => ("", host),
        }
    };
    let host_ip = if ip.is_empty() {
        String::new()
    } else {
        ip.parse::<std::net::IpAddr>()
            .map_err(|_| format!("{ip:?} is not an IP address"))?
            .to_string()
    };
    if container.is_empty() {
        return Err("no container port".into());
    }
    let (first, last) = range(container)?;
    let map = |host_port: u32, container_port: u16| PortMapping {
        host_ip: host_ip.clone(),
        host_port,
        container_port: u32::from(container_port),
        protocol: protocol.into(),
    };
    if host.is_empty() {
        return Ok((first..=last).map(|port| map(0, port)).collect());
    }
    let (low, high) = range(host)?;
    if high - low != last - first {
        return Err(format!(
            "{host} has {} ports and {container} has {}; both need as many",
            u32::from(high - low) + 1,
            u32::from(last - first) + 1
        ));
    }
    Ok((first..=last)
        .zip(low..=high)
        .map(|(port, host)| map(u32::from(host), port))
        .collect())
}

/// Ports of one `--expose` value, as container port and protocol.
///
/// # Errors
/// A sentence naming the flag, the value and the grammar.
pub fn expose(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    let (rest, protocol) = protocol(text).map_err(|why| bad("--expose", text, why))?;
    let (first, last) = range(rest).map_err(|why| bad("--expose", text, why))?;
    Ok((first..=last).map(|port| (port, protocol)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (String, u32, u32, i32) {
        let all = publish(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        let m = &all[0];
        (m.host_ip.clone(), m.host_port, m.container_port, m.protocol)
    }

    #[test]
    fn single_ports() {
        assert_eq!(one("80"), (String::new(), 0, 80, 0));
        assert_eq!(one("8080:80"), (String::new(), 8080, 80, 0));
        assert_eq!(one("8053:53/udp"), (String::new(), 8053, 53, 1));
        assert_eq!(one("127.0.0.1:8080:80"), ("127.0.0.1".into(), 8080, 80, 0));
        assert_eq!(one("127.0.0.1::80"), ("127.0.0.1".into(), 0, 80, 0));
        assert_eq!(one("[::1]:80:80"), ("::1".into(), 80, 80, 0));
        assert_eq!(one("[::1]::80"), ("::1".into(), 0, 80, 0));
    }

    #[test]
    fn ranges() {
        let all = publish("127.0.0.1:8080-8090:80-90/udp").unwrap();
        assert_eq!(all.len(), 11);
        assert_eq!((all[10].host_port, all[10].container_port), (8090, 90));
        assert_eq!(publish("3000-3002").unwrap().len(), 3);
        assert_eq!(expose("80-81/udp").unwrap().len(), 2);
    }

    #[test]
    fn nonsense() {
        for bad in [
            "",
            ":",
            "80:",
            "0:80",
            "65536:80",
            "1-2:80-83",
            "90-80:90-80",
            "x:80",
            "80/sctp",
            "1.2.3:1:1",
            "[::1:80:80",
        ] {
            let error = publish(bad).unwrap_err();
            assert!(error.contains("--publish"), "{error}");
        }
    }
}
