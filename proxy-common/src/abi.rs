//! Addresses and settings, as the maps hold them.

use crate::assert_size;

/// The two families of internet addresses.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4: the first four of an [`Address`]'s bytes count, the rest are zero.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// The transport protocols that Sheer looks at.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP, IP protocol number 6.
    Tcp = 6,
}

/// A port as it stands in a packet: two bytes in network order.
///
/// A type of its own, so that it cannot be taken for a number: [`NetPort::host`] is the only way out.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetPort(pub u16);

impl NetPort {
    /// The port as a number.
    #[inline(always)]
    #[must_use]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The port as it goes on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_host(port: u16) -> Self {
        Self(port.to_be())
    }
}

/// An address of either family, in the order of its bytes on the wire.
///
/// IPv4 takes the first four bytes; it is never written as an IPv4-mapped IPv6 address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Network order, IPv4 first and followed by zeros.
    pub bytes: [u8; 16],
}
assert_size!(Address, 16);

impl Address {
    /// An IPv4 address from its four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self { bytes: [b[0], b[1], b[2], b[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }
    }

    /// An IPv6 address from its sixteen bytes.
    #[inline(always)]
    #[must_use]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// The four bytes of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        [self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]]
    }
}

/// Key of the `local_addresses` map: one of this host's own addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalAddress {
    /// The address.
    pub address: Address,
    /// Its family.
    pub family: Family,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_size!(LocalAddress, 20);

impl LocalAddress {
    /// The key for an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(family: Family, address: Address) -> Self {
        Self { address, family, _pad: [0; 3] }
    }
}

/// Number of the layout of all shared types. Whoever reads maps that another build may have made compares it
/// first; a change of any shared type raises it.
pub const LAYOUT: u32 = 1;

/// The one entry of the `settings` map: what the programs run under.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// [`LAYOUT`] of the build that made the maps.
    pub layout: u32,
    /// Packet mark of steered packets and socket mark (`SO_MARK`) of the proxy's sockets.
    pub mark: u32,
    /// Routing table that delivers marked packets to this host.
    pub table: u32,
    /// Preference of the rules that lead to it.
    pub priority: u32,
    /// Number of workers; each has two slots in `listeners`.
    pub workers: u32,
    /// Not zero: the proxy is leaving, new connections are treated as if it were down.
    pub draining: u32,
}
assert_size!(Settings, 24);

/// Capacity of the `listeners` map: two slots for each worker.
pub const MAX_WORKERS: u32 = 256;

/// The slot in `listeners` of a worker's listener for a family.
#[inline(always)]
#[must_use]
pub const fn listener_slot(worker: u32, family: Family) -> u32 {
    worker * 2
        + match family {
            Family::V4 => 0,
            Family::V6 => 1,
        }
}
