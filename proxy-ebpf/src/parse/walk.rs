//! The long way: header after header, each copied out of the packet, wherever it stands.

use sheer_common::abi::{Address, Family};

use super::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV4_LEN, IPV6_LEN, Layer,
    NotASegment, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Segment,
};

/// Tags that are followed; a frame with more is not for us.
const MAX_VLAN_TAGS: usize = 2;
const VLAN_TAG_LEN: u32 = 4;
/// Extension headers that are followed. RFC 8200 recommends at most one of each kind, six in all; the kernel
/// itself takes eight of the options kind.
const MAX_EXTENSIONS: usize = 8;

const EXT_HOP_BY_HOP: u8 = 0;
const EXT_ROUTING: u8 = 43;
const EXT_FRAGMENT: u8 = 44;
const EXT_AUTHENTICATION: u8 = 51;
const EXT_DESTINATION: u8 = 60;

/// Reads any frame. Not inlined: the BPF stack is too small for both ways at once.
#[inline(never)]
pub(super) fn parse<P: Packet>(packet: &P, layer: Layer, to: &mut Segment) -> Result<(), NotASegment> {
    match layer {
        Layer::Ethernet => {
            let (ethertype, at) = ethernet(packet)?;
            match ethertype {
                ETHERTYPE_IPV4 => ipv4(packet, at, to),
                ETHERTYPE_IPV6 => ipv6(packet, at, to),
                _ => Err(NotASegment::NotIp),
            }
        }
        Layer::Ip => match packet.copy::<1>(0).ok_or(NotASegment::Malformed)?[0] >> 4 {
            4 => ipv4(packet, 0, to),
            6 => ipv6(packet, 0, to),
            _ => Err(NotASegment::NotIp),
        },
    }
}

/// The innermost ethertype and the offset behind it. A tag that the network card took off stands in the
/// packet's metadata and not here.
#[inline(always)]
fn ethernet<P: Packet>(packet: &P) -> Result<(u16, u32), NotASegment> {
    let mut at = ETHERNET_LEN;
    let mut ethertype = read_u16(packet, at - 2)?;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = read_u16(packet, at + 2)?;
        at += VLAN_TAG_LEN;
    }
    Ok((ethertype, at))
}

#[inline(always)]
fn read_u16<P: Packet>(packet: &P, at: u32) -> Result<u16, NotASegment> {
    packet.copy::<2>(at).map(u16::from_be_bytes).ok_or(NotASegment::Malformed)
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, at: u32, to: &mut Segment) -> Result<(), NotASegment> {
    let h = packet.copy::<{ IPV4_LEN as usize }>(at).ok_or(NotASegment::Malformed)?;
    let header_len = u32::from(h[0] & 0x0f) * 4;
    let total_len = u32::from(u16::from_be_bytes([h[2], h[3]]));
    // A total length of zero stands for a packet above 64 KiB that offloads have not cut yet (BIG TCP).
    if h[0] >> 4 != 4 || header_len < IPV4_LEN || (total_len != 0 && total_len < header_len) {
        return Err(NotASegment::Malformed);
    }
    let protocol = h[9];
    if protocol != PROTO_TCP && protocol != PROTO_UDP && protocol != PROTO_ICMP {
        return Err(NotASegment::OtherProtocol);
    }
    // More fragments, or an offset: either way not a whole datagram.
    if u16::from_be_bytes([h[6], h[7]]) & 0x3fff != 0 {
        return Err(NotASegment::Fragment);
    }
    let src = Address::v4([h[12], h[13], h[14], h[15]]);
    let dst = Address::v4([h[16], h[17], h[18], h[19]]);
    to.set_ip(Family::V4, src, dst, at, at + header_len);
    match protocol {
        PROTO_TCP => tcp(packet, to),
        PROTO_UDP => udp(packet, to),
        _ => Err(NotASegment::Icmp),
    }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, at: u32, to: &mut Segment) -> Result<(), NotASegment> {
    let h = packet.copy::<{ IPV6_LEN as usize }>(at).ok_or(NotASegment::Malformed)?;
    if h[0] >> 4 != 6 {
        return Err(NotASegment::Malformed);
    }
    let (protocol, transport_at) = skip_extensions(packet, h[6], at + IPV6_LEN)?;
    let (src, dst) = split_addresses(&h);
    to.set_ip(Family::V6, src, dst, at, transport_at);
    match protocol {
        PROTO_TCP => tcp(packet, to),
        PROTO_UDP => udp(packet, to),
        PROTO_ICMPV6 => Err(NotASegment::Icmp),
        _ => Err(NotASegment::OtherProtocol),
    }
}

#[inline(always)]
pub(super) fn split_addresses(h: &[u8; IPV6_LEN as usize]) -> (Address, Address) {
    let mut src = [0; 16];
    let mut dst = [0; 16];
    src.copy_from_slice(&h[8..24]);
    dst.copy_from_slice(&h[24..40]);
    (Address::v6(src), Address::v6(dst))
}

/// The protocol behind any extension headers, and the offset of its header (RFC 8200, section 4).
#[inline(always)]
fn skip_extensions<P: Packet>(packet: &P, first: u8, at: u32) -> Result<(u8, u32), NotASegment> {
    let mut next = first;
    let mut at = at;
    for _ in 0..MAX_EXTENSIONS {
        let unit = match next {
            EXT_FRAGMENT => return Err(NotASegment::Fragment),
            EXT_HOP_BY_HOP | EXT_ROUTING | EXT_DESTINATION => 8,
            EXT_AUTHENTICATION => 4,
            protocol => return Ok((protocol, at)),
        };
        let [following, len] = packet.copy::<2>(at).ok_or(NotASegment::Malformed)?;
        // In units of eight bytes beyond the first eight; the authentication header counts four-byte units,
        // beyond the first two (RFC 4302, 2.2).
        at += if unit == 8 { (u32::from(len) + 1) * 8 } else { (u32::from(len) + 2) * 4 };
        next = following;
    }
    Ok((next, at))
}

#[inline(always)]
fn tcp<P: Packet>(packet: &P, to: &mut Segment) -> Result<(), NotASegment> {
    let header = packet.copy::<14>(to.tcp_offset).ok_or(NotASegment::Malformed)?;
    to.set_tcp(&header).ok_or(NotASegment::Malformed)
}

#[inline(always)]
fn udp<P: Packet>(packet: &P, to: &mut Segment) -> Result<(), NotASegment> {
    to.set_udp(packet.copy::<4>(to.tcp_offset).ok_or(NotASegment::Malformed)?);
    Ok(())
}
