//! Settings of the table `[network]`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// How networks are made and named.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Beginning of every interface's name; two engines on one host need two.
    pub prefix: String,
    /// The nft table (family inet) that is ours alone.
    pub table: String,
    /// Where IPv4 subnets come from, a /24 each.
    pub pool4: String,
    /// Where IPv6 subnets come from, a /64 each; empty = networks have IPv6 only where a subnet is given.
    pub pool6: String,
    /// Servers that are asked for names which are no container's, as address or address:port; empty = those of
    /// /etc/resolv.conf.
    pub dns_upstreams: Vec<String>,
    /// Namespaces that are kept ready; 0 = each is made when it is needed.
    pub netns_pool: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefix: "gantry".into(),
            table: "gantry".into(),
            pool4: "10.88.0.0/13".into(),
            pool6: "fd00:6761:6e74::/48".into(),
            dns_upstreams: Vec::new(),
            netns_pool: 8,
        }
    }
}

/// "1.1.1.1" or "1.1.1.1:5353", port 53 unless given.
pub(crate) fn server(text: &str) -> Option<SocketAddr> {
    text.parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, 53))
        .or_else(|_| text.parse())
        .ok()
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && text.starts_with(|c: char| c.is_ascii_lowercase())
        };
        if !plain(&self.prefix) || self.prefix.len() > 8 {
            return Err(format!(
                "prefix {:?}: write 1 to 8 of a-z 0-9, a letter first",
                self.prefix
            ));
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !self.table.bytes().all(word)
            || !self.table.starts_with(|c: char| c.is_ascii_alphabetic())
            || self.table.len() > 64
        {
            return Err(format!(
                "table {:?}: write 1 to 64 of A-Z a-z 0-9 _, a letter first",
                self.table
            ));
        }
        self.pool4()?;
        self.pool6()?;
        self.upstreams()?;
        if self.netns_pool > 256 {
            return Err(format!("netns_pool {}: write at most 256", self.netns_pool));
        }
        Ok(())
    }

    pub(crate) fn pool4(&self) -> Result<Cidr, String> {
        match self.pool4.parse::<Cidr>() {
            Ok(pool) if pool.is_ipv4() && (8..=29).contains(&pool.length()) => Ok(pool.network()),
            _ => Err(format!(
                "pool4 {:?}: write an IPv4 network between /8 and /29, for example 10.88.0.0/13",
                self.pool4
            )),
        }
    }

    pub(crate) fn pool6(&self) -> Result<Option<Cidr>, String> {
        if self.pool6.is_empty() {
            return Ok(None);
        }
        match self.pool6.parse::<Cidr>() {
            Ok(pool) if !pool.is_ipv4() && (32..=64).contains(&pool.length()) => {
                Ok(Some(pool.network()))
            }
            _ => Err(format!(
                "pool6 {:?}: write an IPv6 network between /32 and /64, for example fd00:6761:6e74::/48, or nothing",
                self.pool6
            )),
        }
    }

    pub(crate) fn upstreams(&self) -> Result<Vec<SocketAddr>, String> {
        let wrong = |text: &String| {
            format!(
                "dns_upstreams {text:?}: write an address, or address:port, for example 9.9.9.9"
            )
        };
        self.dns_upstreams
            .iter()
            .map(|text| server(text).ok_or_else(|| wrong(text)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_nonsense_is_named() {
        Config::default().validate().unwrap();
        let check = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert!(check(|c| c.prefix = "Way-too-long".into()).contains("prefix"));
        assert!(check(|c| c.table = "a b".into()).contains("table"));
        assert!(check(|c| c.pool4 = "10.0.0.0/30".into()).contains("pool4"));
        assert!(check(|c| c.pool6 = "10.0.0.0/8".into()).contains("pool6"));
        assert!(check(|c| c.dns_upstreams = vec!["x".into()]).contains("dns_upstreams"));
    }
}
