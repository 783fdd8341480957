//! Services: which connections are taken, and what is done with them.

use crate::{
    abi::{Address, Family},
    assert_size,
};

/// What is done with a connection that a service matches.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The slot of the map is not in use.
    None = 0,
    /// It goes to the proxy.
    Proxy = 1,
    /// It goes its way.
    Pass = 2,
    /// It is dropped.
    Drop = 3,
}

/// What is done with new connections while no proxy is behind the rules.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenDown {
    /// The slot of the map is not in use.
    None = 0,
    /// They go to the real server, unproxied.
    Open = 1,
    /// They are dropped.
    Closed = 2,
}

/// Length of a service's name in the `services` map.
pub const NAME_LEN: usize = 28;

/// An entry of the `services` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// What happens to its connections.
    pub action: Action,
    /// What happens to them while the proxy is down.
    pub when_down: WhenDown,
    /// Zero.
    pub _pad: u16,
    /// Its name in UTF-8, cut to the length and filled up with zeros.
    pub name: [u8; NAME_LEN],
}
assert_size!(Service, 32);

/// Capacity of the `services` map.
pub const MAX_SERVICES: usize = 4096;

/// An entry of the `ports` map, indexed by destination port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// Slot in `services`, plus one; zero where no service takes the port.
    pub service: u32,
}
assert_size!(PortRule, 4);

/// Whether an address is one that is never intercepted unless a service names it: "this network", loopback,
/// link-local, multicast and the reserved top of IPv4 (RFC 6890), their like in IPv6 (RFC 4291).
#[inline(always)]
#[must_use]
pub fn is_special(family: Family, address: &Address) -> bool {
    let b = &address.bytes;
    match family {
        Family::V4 => b[0] == 0 || b[0] == 127 || b[0] >= 224 || (b[0] == 169 && b[1] == 254),
        Family::V6 => b[0] == 0xff || (b[0] == 0xfe && b[1] & 0xc0 == 0x80) || is_v6_low(b),
    }
}

/// `::` and `::1`.
#[inline(always)]
fn is_v6_low(b: &[u8; 16]) -> bool {
    let hi = u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let lo = u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]);
    hi == 0 && lo <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_known_and_their_neighbours_are_not() {
        let v4 = |a, b, c, d| is_special(Family::V4, &Address::v4([a, b, c, d]));
        assert!(v4(0, 1, 2, 3) && v4(127, 0, 0, 1) && v4(224, 0, 0, 1) && v4(255, 255, 255, 255));
        assert!(v4(169, 254, 7, 7));
        assert!(!v4(1, 0, 0, 0) && !v4(126, 1, 1, 1) && !v4(128, 0, 0, 1) && !v4(223, 255, 255, 255));
        assert!(!v4(169, 253, 7, 7) && !v4(10, 0, 0, 1));
        let v6 = |s: &str| {
            let a: core::net::Ipv6Addr = s.parse().unwrap();
            is_special(Family::V6, &Address::v6(a.octets()))
        };
        assert!(v6("::") && v6("::1") && v6("fe80::1") && v6("febf::1") && v6("ff02::1"));
        assert!(!v6("::2") && !v6("fec0::1") && !v6("2001:db8::1") && !v6("fd00::1"));
    }
}
