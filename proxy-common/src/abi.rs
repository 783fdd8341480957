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
    /// UDP, IP protocol number 17.
    Udp = 17,
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

    /// The address as a number whose leading bits are the address's.
    #[inline(always)]
    #[must_use]
    pub const fn bits(&self) -> Bits {
        let b = &self.bytes;
        Bits {
            high: u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            low: u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    /// The address with all but its leading `length` bits cleared.
    #[inline(always)]
    #[must_use]
    pub const fn masked(&self, length: u8) -> Self {
        let (bits, mask) = (self.bits(), Bits::mask(length));
        let (h, l) = ((bits.high & mask.high).to_be_bytes(), (bits.low & mask.low).to_be_bytes());
        Self::v6([
            h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7],
        ])
    }

    /// The four bytes of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        [self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]]
    }
}

/// 128 bits, the first ones in `high`; an IPv4 address takes the first 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits {
    /// The first 64.
    pub high: u64,
    /// The rest.
    pub low: u64,
}

impl Bits {
    /// So many leading ones, at most 128.
    #[inline(always)]
    #[must_use]
    pub const fn mask(length: u8) -> Self {
        match length {
            0 => Self { high: 0, low: 0 },
            1..=64 => Self { high: leading_ones(length), low: 0 },
            65..=128 => Self { high: u64::MAX, low: leading_ones(length - 64) },
            _ => Self { high: u64::MAX, low: u64::MAX },
        }
    }
}

/// `n` from 1 to 64. A shift by all 64 bits would be undefined, hence two.
#[inline(always)]
const fn leading_ones(n: u8) -> u64 {
    !((u64::MAX >> 1) >> (n - 1))
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
pub const LAYOUT: u32 = 4;

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
    /// Which of the two policies is in force: the index in `policies`, `services`, `classes` and `nodes`.
    pub active: u32,
    /// Not zero: somebody has been blocked by hand, so that every new connection is looked up in `blocked`.
    pub blocking: u32,
    /// Not zero: some listed interface is a port of a bridge or the like. On the way through it a packet loses the
    /// socket that tc has assigned, and the stack looks for the listener by itself.
    pub switched: u32,
    /// Not zero: the dataplane's `when_down` is closed. It decides where no service is known.
    pub closed: u32,
}
assert_size!(Settings, 40);

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
