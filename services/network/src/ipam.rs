//! Addresses of one subnet: who has which, and which comes next.
//!
//! Invariants: an address has one owner; the next one is looked for behind the last one given, so an address that came
//! free is used again as late as possible. Nothing here does IO.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::cidr::Cidr;

/// Why an address is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is not a member of the subnet.
    Outside,
    /// The network's own, the gateway's or the broadcast address.
    Reserved,
    /// Another sandbox has it.
    Taken(String),
    /// There is none left.
    Full,
}

/// One subnet.
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: Cidr,
    gateway: IpAddr,
    last: u128,
    owners: HashMap<IpAddr, String>,
}

impl Pool {
    /// A subnet of which nothing is given.
    pub fn new(subnet: Cidr, gateway: IpAddr) -> Pool {
        Pool {
            subnet: subnet.network(),
            gateway,
            last: 0,
            owners: HashMap::new(),
        }
    }

    /// The last address that was given by order, to be kept across a restart.
    pub fn cursor(&self) -> IpAddr {
        self.subnet.nth(self.last)
    }

    /// Goes on behind `cursor`.
    pub fn resume(&mut self, cursor: IpAddr) {
        if self.subnet.contains(cursor) {
            self.last = self.subnet.position(cursor);
        }
    }

    fn reserved(&self, address: IpAddr) -> bool {
        let at = self.subnet.position(address);
        let last = self.subnet.last();
        address == self.gateway
            || (last > 1 && at == 0)
            || (last > 1 && self.subnet.is_ipv4() && at == last)
    }

    /// Gives the address that is wanted, or the next free one. What the owner has already is given again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn take(&mut self, wanted: Option<IpAddr>, owner: &str) -> Result<IpAddr, Refusal> {
        let Some(wanted) = wanted else {
            return self.next(owner);
        };
        if !self.subnet.contains(wanted) {
            return Err(Refusal::Outside);
        }
        if self.reserved(wanted) {
            return Err(Refusal::Reserved);
        }
        match self.owners.get(&wanted) {
            Some(other) if other != owner => Err(Refusal::Taken(other.clone())),
            _ => {
                self.owners.insert(wanted, owner.to_owned());
                Ok(wanted)
            }
        }
    }

    fn next(&mut self, owner: &str) -> Result<IpAddr, Refusal> {
        let size = self.subnet.last().saturating_add(1);
        // More candidates than owners and reserved ones: if none of them is free, none is.
        let tries = size.min(self.owners.len() as u128 + 4);
        for step in 1..=tries {
            let at = self.last.wrapping_add(step) % size;
            let address = self.subnet.nth(at);
            if !self.reserved(address) && !self.owners.contains_key(&address) {
                self.last = at;
                self.owners.insert(address, owner.to_owned());
                return Ok(address);
            }
        }
        Err(Refusal::Full)
    }

    /// Takes an address back from its owner; from nobody else.
    pub fn give_back(&mut self, address: IpAddr, owner: &str) {
        if self.owners.get(&address).is_some_and(|has| has == owner) {
            self.owners.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str, gateway: &str) -> Pool {
        Pool::new(subnet.parse().unwrap(), gateway.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn goes_round_before_it_uses_an_address_again() {
        let mut pool = pool("10.0.0.0/29", "10.0.0.1");
        let a = pool.take(None, "a").unwrap();
        assert_eq!(a, ip("10.0.0.2"));
        pool.give_back(a, "b");
        pool.give_back(a, "a");
        let given: Vec<IpAddr> = (0..5)
            .map(|n| pool.take(None, &n.to_string()).unwrap())
            .collect();
        let want = ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"];
        assert_eq!(given, want.map(ip));
        assert_eq!(pool.take(None, "x"), Err(Refusal::Full));
    }

    #[test]
    fn a_wish_is_held_or_refused() {
        let mut pool = pool("10.0.0.0/24", "10.0.0.1");
        assert_eq!(pool.take(Some(ip("10.0.0.2")), "a"), Ok(ip("10.0.0.2")));
        assert_eq!(pool.take(Some(ip("10.0.0.2")), "a"), Ok(ip("10.0.0.2")));
        assert_eq!(
            pool.take(Some(ip("10.0.0.2")), "b"),
            Err(Refusal::Taken("a".into()))
        );
        assert_eq!(pool.take(Some(ip("10.0.1.2")), "b"), Err(Refusal::Outside));
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.255"] {
            assert_eq!(pool.take(Some(ip(reserved)), "b"), Err(Refusal::Reserved));
        }
        assert_eq!(pool.take(None, "b"), Ok(ip("10.0.0.3")));
        let mut again = self::pool("10.0.0.0/24", "10.0.0.1");
        again.resume(pool.cursor());
        assert_eq!(again.take(None, "c"), Ok(ip("10.0.0.4")));
    }

    #[test]
    fn the_smallest_subnets_work() {
        let mut tiny = pool("10.0.0.0/30", "10.0.0.1");
        for _ in 0..3 {
            let address = tiny.take(None, "a").unwrap();
            assert_eq!(address, ip("10.0.0.2"));
            tiny.give_back(address, "a");
        }
        assert_eq!(
            pool("10.0.0.0/31", "10.0.0.0").take(None, "a"),
            Ok(ip("10.0.0.1"))
        );
        assert_eq!(
            pool("fd00::/64", "fd00::1").take(None, "a"),
            Ok(ip("fd00::2"))
        );
    }
}
