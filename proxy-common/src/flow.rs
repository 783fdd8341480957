//! The `flows` map: one entry for each direction of each proxied connection.
//!
//! A connection stands here twice: once as its packets come from the client, once as they come from the
//! server. Each entry is keyed by the packet that it counts, so that the program finds it with one lookup
//! whatever address and port the proxy used towards the server, and two directions on two CPUs never write
//! to the same cache line. The two share [`Flow::connection`].

use crate::{
    abi::{Address, Family, Protocol},
    assert_size,
};

/// The tuple of a packet at ingress.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Family of both addresses.
    pub family: Family,
    /// Zero.
    pub _pad: u16,
}
assert_size!(FlowKey, 40);

impl FlowKey {
    /// A TCP tuple.
    #[inline(always)]
    #[must_use]
    pub const fn tcp(family: Family, src: Address, src_port: u16, dst: Address, dst_port: u16) -> Self {
        Self { src, dst, src_port, dst_port, protocol: Protocol::Tcp, family, _pad: 0 }
    }

    /// The same tuple of another protocol.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// The tuple of the packets that go the other way.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, ..*self }
    }

    /// A hash that every program computes alike, whichever CPU or hook it runs on.
    ///
    /// It chooses the listener. A SYN, the ACK of its SYN cookie and the socket lookup after TIME_WAIT must
    /// agree on it, which the packet hash of the network card does not promise.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u32 {
        let mut h = u64::from(self.src_port) << 16 | u64::from(self.dst_port);
        let mut i = 0;
        while i < 16 {
            h = (h ^ read_u64(&self.src.bytes, i)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            h = (h ^ (h >> 29) ^ read_u64(&self.dst.bytes, i)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            i += 8;
        }
        (h >> 32) as u32
    }
}

#[inline(always)]
fn read_u64(b: &[u8; 16], at: usize) -> u64 {
    u64::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
}

/// From which end the packets of an entry come.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Client to server.
    FromClient = 0,
    /// Server to client.
    FromServer = 1,
}

/// Who forwards the connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// The proxy copies or splices bytes between its two sockets.
    Relayed = 1,
}

/// The value of the `flows` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Packets seen since the entry was made; segments that the NIC or GRO merged count once.
    pub packets: u64,
    /// Bytes seen, from the IP header on; what came before the entry was made counts as payload.
    pub bytes: u64,
    /// When the last packet came: nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub last_seen_ns: u64,
    /// When the entry was made: nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub opened_ns: u64,
    /// Number of the connection, the same in both entries, never used twice by one process: whoever acts on
    /// an entry compares it, because the tuple alone may already belong to a successor.
    pub connection: u64,
    /// Which direction this is.
    pub side: Side,
    /// Who forwards.
    pub state: FlowState,
    /// The service that took it: its [`crate::policy::Service::id`].
    pub service: u32,
    /// Zero.
    pub _pad: u32,
}
assert_size!(Flow, 56);

/// What tc found out about a new connection: value of the `openings` map. Written where the accepted socket does not
/// tell it (a policy that distinguishes interfaces), and where the stack has to look for the listener by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The service that took it: its [`crate::policy::Service::id`].
    pub service: u32,
    /// The interface by which it came in, as the kernel numbers it.
    pub interface: u32,
    /// When: nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub at_ns: u64,
}
assert_size!(Opening, 16);

/// For how long an opening answers the stack's search for a listener, which follows at once: older ones may be of a
/// connection before.
pub const OPENING_FRESH_NS: u64 = 1_000_000_000;

/// Capacity of the `openings` map: handshakes under way. The oldest go when it is full.
pub const MAX_OPENINGS: usize = 1 << 14;

/// Capacity of the `flows` map: two entries for each of 262,144 connections.
///
/// When it is full, a connection works all the same: its packets are found by their socket, at the price of
/// a socket lookup each, and are not counted.
pub const MAX_FLOWS: usize = 1 << 19;
