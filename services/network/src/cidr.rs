//! An address with the length of its network: parsing, membership, overlap, counting through.
//!
//! Invariant: the length never exceeds the family's bits. Nothing here does IO.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `address/length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Cidr {
    /// None when the length is too large for the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Cidr> {
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some(Cidr { address, length })
    }

    /// The address as given.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the network's part.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether it is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    fn width(&self) -> u8 {
        if self.is_ipv4() { 32 } else { 128 }
    }

    fn mask(&self) -> u128 {
        let host = u32::from(self.width() - self.length);
        u128::MAX.checked_shl(host).unwrap_or(0)
    }

    fn with_bits(&self, bits: u128) -> IpAddr {
        match self.address {
            // The network's own bits are above; what is cut off here is zero.
            IpAddr::V4(_) => {
                Ipv4Addr::from_bits(u32::try_from(bits & 0xffff_ffff).unwrap_or(0)).into()
            }
            IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// The same network with the host's part zero.
    pub fn network(&self) -> Cidr {
        Cidr {
            address: self.with_bits(bits(self.address) & self.mask()),
            ..*self
        }
    }

    /// The `n`th address of the network.
    pub fn nth(&self, n: u128) -> IpAddr {
        self.with_bits((bits(self.address) & self.mask()) | (n & !self.mask()))
    }

    /// Where in the network an address is; meaningful for members only.
    pub fn position(&self, address: IpAddr) -> u128 {
        bits(address) & !self.mask()
    }

    /// The position of the last address.
    pub fn last(&self) -> u128 {
        let all = if self.is_ipv4() {
            u32::MAX.into()
        } else {
            u128::MAX
        };
        !self.mask() & all
    }

    /// Whether the address is a member.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4()
            && (bits(address) ^ bits(self.address)) & self.mask() == 0
    }

    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.network().address) || other.contains(self.network().address)
    }

    /// The first part of this network with `length` that overlaps none of `avoid`.
    pub fn carve(&self, length: u8, avoid: &[Cidr]) -> Option<Cidr> {
        let length = length.max(self.length);
        let step = u32::from(self.width() - length);
        let parts = 1u128 << (length - self.length).min(20);
        (0..parts)
            .map(|part| Cidr {
                address: self.nth(part.checked_shl(step).unwrap_or(0)),
                length,
            })
            .find(|part| !avoid.iter().any(|taken| taken.overlaps(part)))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Cidr, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        let length = length.parse().map_err(|_| ())?;
        Cidr::new(address.parse().map_err(|_| ())?, length).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn counts_and_compares() {
        let a = net("10.1.2.3/22");
        assert_eq!(a.network().to_string(), "10.1.0.0/22");
        assert_eq!(
            (a.last(), a.nth(257).to_string()),
            (1023, "10.1.1.1".into())
        );
        assert!(a.contains("10.1.3.255".parse().unwrap()));
        assert!(!a.contains("10.1.4.0".parse().unwrap()));
        assert!(a.overlaps(&net("10.0.0.0/8")) && net("10.1.1.1/32").overlaps(&a));
        assert!(!a.overlaps(&net("fd00::/8")));
        assert!(net("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert_eq!(net("fd00::/64").nth(2).to_string(), "fd00::2");
        assert!("10.0.0.0/33".parse::<Cidr>().is_err() && "x/3".parse::<Cidr>().is_err());
    }

    #[test]
    fn carves_what_is_free() {
        let pool = net("10.200.0.0/22");
        let taken = [net("10.200.0.0/24"), net("10.200.1.128/25")];
        assert_eq!(pool.carve(24, &taken).unwrap(), net("10.200.2.0/24"));
        assert_eq!(pool.carve(24, &[net("10.0.0.0/8")]), None);
        assert_eq!(
            net("10.0.0.0/28").carve(24, &[]).unwrap(),
            net("10.0.0.0/28")
        );
        assert_eq!(
            net("fd00::/48").carve(64, &[net("fd00::/64")]).unwrap(),
            net("fd00:0:0:1::/64")
        );
    }
}
