//! ICMP errors: about which packet of ours a router or host complains.
//!
//! An error carries the beginning of the packet that it is about. For a proxied connection that packet came
//! from a foreign address, so the error goes there too: it must be steered like the connection itself, or path
//! MTU discovery breaks (RFC 1191, RFC 8201).

use sheer_common::{
    abi::{Address, Family},
    flow::FlowKey,
};

use super::{IPV4_LEN, IPV6_LEN, PROTO_TCP, Packet, Segment, walk::split_addresses};

/// Type, code, checksum and one word that depends on the type, in both versions of ICMP.
const HEADER_LEN: u32 = 8;

/// Whether an ICMP message is an echo request. `segment` is as [`super::parse`] left it with
/// [`super::NotASegment::Icmp`].
#[inline(always)]
pub fn is_echo_request<P: Packet>(packet: &P, segment: &Segment) -> bool {
    let kind = packet.copy::<2>(segment.tcp_offset);
    match segment.key.family {
        Family::V4 => kind == Some([8, 0]),
        Family::V6 => kind == Some([128, 0]),
    }
}

/// Puts the tuple of the connection that an ICMP error is about into the segment, as its packets come in: from
/// the peer to us. `segment` is as [`super::parse`] left it with [`super::NotASegment::Icmp`].
///
/// Nothing where the message is no error, or not about TCP, or cut too short for the ports.
#[inline(never)]
pub fn embedded<P: Packet>(packet: &P, segment: &mut Segment) -> Option<()> {
    let [kind] = packet.copy::<1>(segment.tcp_offset)?;
    let at = segment.tcp_offset + HEADER_LEN;
    match segment.key.family {
        Family::V4 if is_v4_error(kind) => ipv4(packet, at, segment),
        Family::V6 if is_v6_error(kind) => ipv6(packet, at, segment),
        _ => None,
    }
}

/// Destination unreachable (with "fragmentation needed"), time exceeded, parameter problem (RFC 792).
#[inline(always)]
fn is_v4_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
#[inline(always)]
fn is_v6_error(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, at: u32, segment: &mut Segment) -> Option<()> {
    let h = packet.copy::<{ IPV4_LEN as usize }>(at)?;
    let header_len = u32::from(h[0] & 0x0f) * 4;
    // A later fragment has no ports; ours are never fragmented before they are sent.
    let offset = u16::from_be_bytes([h[6], h[7]]) & 0x1fff;
    if h[0] >> 4 != 4 || header_len < IPV4_LEN || h[9] != PROTO_TCP || offset != 0 {
        return None;
    }
    let sent_from = Address::v4([h[12], h[13], h[14], h[15]]);
    let sent_to = Address::v4([h[16], h[17], h[18], h[19]]);
    reversed(packet, Family::V4, sent_from, sent_to, at + header_len, segment)
}

/// Extension headers are not followed: the proxy's sockets send none.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, at: u32, segment: &mut Segment) -> Option<()> {
    let h = packet.copy::<{ IPV6_LEN as usize }>(at)?;
    if h[0] >> 4 != 6 || h[6] != PROTO_TCP {
        return None;
    }
    let (sent_from, sent_to) = split_addresses(&h);
    reversed(packet, Family::V6, sent_from, sent_to, at + IPV6_LEN, segment)
}

#[inline(always)]
fn reversed<P: Packet>(
    packet: &P,
    family: Family,
    sent_from: Address,
    sent_to: Address,
    ports_at: u32,
    segment: &mut Segment,
) -> Option<()> {
    let ports = packet.copy::<4>(ports_at)?;
    let from_port = u16::from_be_bytes([ports[0], ports[1]]);
    let to_port = u16::from_be_bytes([ports[2], ports[3]]);
    segment.key = FlowKey::tcp(family, sent_to, to_port, sent_from, from_port);
    Some(())
}
