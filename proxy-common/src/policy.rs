//! Services: which connections are taken, and what is done with them.

use crate::{
    abi::{Address, Family},
    assert_size,
    classify::Node,
    limit::Limit,
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

/// An entry of the `services` map, in the order of the config.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// How much one client may take.
    pub limit: Limit,
    /// Its name in UTF-8, filled up with zeros.
    pub name: [u8; NAME_LEN],
    /// Its slot in `service_counters`, which a service of this name keeps over reloads.
    pub id: u32,
    /// What happens to its connections.
    pub action: Action,
    /// What happens to them while the proxy is down.
    pub when_down: WhenDown,
    /// Not zero: answers leave by the interface and to the neighbour by which the client's packets come.
    pub same_way: u8,
    /// Not zero: connections that processes of this host open are taken too.
    pub intercept_local: u8,
    /// Not zero: pings to its addresses are answered here.
    pub answer_ping: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_size!(Service, 72);

/// Most services that a policy can have.
pub const MAX_SERVICES: usize = 4096;

/// Slots of the `service_counters` map. Twice as many as services: a number rests before it is used again.
pub const SERVICE_SLOTS: usize = 2 * MAX_SERVICES;

/// An entry of the `policies` map: what of a policy is one of a kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Counts the policies of a process, from one.
    pub generation: u32,
    /// How many services it has.
    pub services: u32,
    /// Roots of the tries that lead to the class of a destination address, IPv4 and IPv6.
    pub destinations: Roots,
    /// The same for destinations that are this host's own: only services that name exactly the address are in them.
    pub own: Roots,
    /// Roots for the client's address.
    pub clients: Roots,
    /// Class of the services that take any interface.
    pub any_interface: u32,
    /// Not zero: some service takes certain interfaces only, so that `interfaces` has to be asked.
    pub by_interface: u32,
    /// Not zero: some service looks at UDP.
    pub takes_udp: u32,
    /// Class of the services that take connections of this host's own processes, whatever their interface.
    pub local: u32,
    /// Not zero: there are such services.
    pub intercepts_local: u32,
    /// Not zero: some service answers its clients by the way by which they came.
    pub same_way: u32,
    /// Class of the services that answer pings, whatever their port.
    pub pinged: u32,
    /// Not zero: there are such services.
    pub answers_ping: u32,
}
assert_size!(Policy, 64);

/// The two roots of a dimension.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Of the trie of IPv4 addresses.
    pub v4: Node,
    /// Of the trie of IPv6 addresses.
    pub v6: Node,
}

impl Roots {
    /// The root for addresses of a family.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, family: Family) -> Node {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// Most interfaces of a config.
pub const MAX_INTERFACES: usize = 1024;

/// Key of the `interfaces` map, whose value is the class of the services that take this interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Which of the two policies.
    pub policy: u32,
    /// The interface, as the kernel numbers it.
    pub index: u32,
}
assert_size!(Interface, 8);

/// An entry of the per-CPU `service_counters` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// New connections, or datagrams, that the service matched.
    pub hits: u64,
    /// How many of them its limit or a block refused.
    pub refused: u64,
}
assert_size!(ServiceCounters, 16);

impl core::ops::AddAssign for ServiceCounters {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.refused += other.refused;
    }
}

/// IPv4 ranges that are never intercepted unless an entry of a service lies within them (RFC 6890): "this
/// network", loopback, link-local, multicast and the reserved top.
pub const SPECIAL_V4: [([u8; 4], u8); 4] =
    [([0, 0, 0, 0], 8), ([127, 0, 0, 0], 8), ([169, 254, 0, 0], 16), ([224, 0, 0, 0], 3)];

/// The same for IPv6 (RFC 4291): unspecified and loopback, link-local, multicast.
pub const SPECIAL_V6: [([u16; 8], u8); 3] = [
    ([0, 0, 0, 0, 0, 0, 0, 0], 127),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

/// Whether an address lies in one of [`SPECIAL_V4`] or [`SPECIAL_V6`].
#[inline(always)]
#[must_use]
pub fn is_special(family: Family, address: &Address) -> bool {
    let b = &address.bytes;
    match family {
        Family::V4 => b[0] == 0 || b[0] == 127 || b[0] >= 224 || (b[0] == 169 && b[1] == 254),
        Family::V6 => b[0] == 0xff || (b[0] == 0xfe && b[1] & 0xc0 == 0x80) || is_v6_low(address),
    }
}

/// `::` and `::1`.
#[inline(always)]
fn is_v6_low(address: &Address) -> bool {
    let bits = address.bits();
    bits.high == 0 && bits.low <= 1
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::abi::Bits;

    fn within(bits: Bits, range: Bits, length: u8) -> bool {
        let mask = Bits::mask(length);
        (bits.high ^ range.high) & mask.high == 0 && (bits.low ^ range.low) & mask.low == 0
    }

    #[test]
    fn special_addresses_are_those_of_the_lists() {
        for text in [
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.7.7",
            "1.0.0.0",
            "126.1.1.1",
            "128.0.0.1",
            "223.255.255.255",
            "169.253.7.7",
            "169.255.0.0",
            "10.0.0.1",
        ] {
            let a = Address::v4(text.parse::<Ipv4Addr>().unwrap().octets());
            let listed = SPECIAL_V4.iter().any(|(net, len)| within(a.bits(), Address::v4(*net).bits(), *len));
            assert_eq!(is_special(Family::V4, &a), listed, "{text}");
        }
        for text in ["::", "::1", "::2", "fe80::1", "febf::1", "fec0::1", "ff02::1", "2001:db8::1", "fd00::1"]
        {
            let a = Address::v6(text.parse::<Ipv6Addr>().unwrap().octets());
            let net = |net: &[u16; 8]| Address::v6(Ipv6Addr::from(*net).octets()).bits();
            let listed = SPECIAL_V6.iter().any(|(range, len)| within(a.bits(), net(range), *len));
            assert_eq!(is_special(Family::V6, &a), listed, "{text}");
        }
    }
}
