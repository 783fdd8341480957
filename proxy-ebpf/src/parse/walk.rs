//! The long way: header after header, each copied out of the packet, wherever it stands.

use sheer_common::abi::{Address, Family, Protocol};

use super::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Fragment, IPV4_LEN,
    IPV6_LEN, Layer, NotASegment, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Part, Segment,
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

const FRAGMENT_HEADER_LEN: u32 = 8;
/// Without options.
const TCP_HEADER_LEN: u32 = 20;
const UDP_HEADER_LEN: u32 = 8;

/// Reads any frame. Not inlined: the BPF stack is too small for both ways at once.
#[inline(never)]
pub(super) fn parse<P: Packet>(packet: &P, layer: Layer, to: &mut Segment) -> Result<(), NotASegment> {
    to.part = Part::Whole;
    let found = read(packet, layer, to);
    if found == Err(NotASegment::Malformed) {
        // Nothing can be said of those behind it.
        to.part = Part::Whole;
    }
    found
}

#[inline(always)]
fn read<P: Packet>(packet: &P, layer: Layer, to: &mut Segment) -> Result<(), NotASegment> {
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
    let src = Address::v4([h[12], h[13], h[14], h[15]]);
    let dst = Address::v4([h[16], h[17], h[18], h[19]]);
    to.set_ip(Family::V4, src, dst, at, at + header_len);
    let position = u32::from(u16::from_be_bytes([h[6], h[7]]));
    let end = at + total_len;
    // More fragments, or an offset in units of eight bytes: either way not a whole datagram.
    if position & 0x3fff != 0 {
        let id = u32::from(u16::from_be_bytes([h[4], h[5]]));
        let more = (position & 0x2000 != 0).into();
        to.set_fragment(
            Fragment { id, offset: (position & 0x1fff) * 8, len: 0, protocol, more, _pad: 0 },
            end,
        )?;
    }
    transport(packet, protocol, end, to)
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, at: u32, to: &mut Segment) -> Result<(), NotASegment> {
    let h = packet.copy::<{ IPV6_LEN as usize }>(at).ok_or(NotASegment::Malformed)?;
    if h[0] >> 4 != 6 {
        return Err(NotASegment::Malformed);
    }
    let (src, dst) = split_addresses(&h);
    to.set_ip(Family::V6, src, dst, at, at + IPV6_LEN);
    let end = at + IPV6_LEN + u32::from(u16::from_be_bytes([h[4], h[5]]));
    let protocol = skip_extensions(packet, h[6], end, to)?;
    transport(packet, protocol, end, to)
}

/// What stands behind the IP headers, at `to.tcp_offset`; the packet ends at `end`, though the frame may be padded.
#[inline(always)]
fn transport<P: Packet>(packet: &P, protocol: u8, end: u32, to: &mut Segment) -> Result<(), NotASegment> {
    if to.part == Part::Later {
        return later(protocol, to);
    }
    let icmp = match to.key.family {
        Family::V4 => PROTO_ICMP,
        Family::V6 => PROTO_ICMPV6,
    };
    let needed = match protocol {
        PROTO_TCP => TCP_HEADER_LEN,
        PROTO_UDP => UDP_HEADER_LEN,
        _ if to.part == Part::First => {
            if !to.hides_protocol() {
                // The others tell it as well: nobody waits for what becomes of this one.
                to.part = Part::Whole;
            }
            return Err(NotASegment::Fragment);
        }
        _ if protocol == icmp => return Err(NotASegment::Icmp),
        _ => return Err(NotASegment::OtherProtocol),
    };
    // What a first fragment does not show, a later one could make up (RFC 1858).
    if to.part == Part::First && end < to.tcp_offset + needed {
        return Err(NotASegment::Malformed);
    }
    if protocol == PROTO_TCP { tcp(packet, to) } else { udp(packet, to) }
}

/// A fragment behind the first: its payload begins with nothing in particular.
#[inline(always)]
fn later(protocol: u8, to: &mut Segment) -> Result<(), NotASegment> {
    match protocol {
        PROTO_UDP => to.key.protocol = Protocol::Udp,
        PROTO_TCP => {}
        _ if to.hides_protocol() => {}
        _ => return Err(NotASegment::Fragment),
    }
    Err(NotASegment::LaterFragment)
}

#[inline(always)]
pub(super) fn split_addresses(h: &[u8; IPV6_LEN as usize]) -> (Address, Address) {
    let mut src = [0; 16];
    let mut dst = [0; 16];
    src.copy_from_slice(&h[8..24]);
    dst.copy_from_slice(&h[24..40]);
    (Address::v6(src), Address::v6(dst))
}

/// The protocol behind any extension headers (RFC 8200, section 4). Its header stands at `to.tcp_offset`, as far as
/// there is one: behind the header of a later fragment nothing is followed. The packet ends at `end`.
#[inline(always)]
fn skip_extensions<P: Packet>(packet: &P, first: u8, end: u32, to: &mut Segment) -> Result<u8, NotASegment> {
    let mut next = first;
    for _ in 0..MAX_EXTENSIONS {
        let at = to.tcp_offset;
        let unit = match next {
            EXT_FRAGMENT | EXT_HOP_BY_HOP | EXT_ROUTING | EXT_DESTINATION => 8,
            EXT_AUTHENTICATION => 4,
            protocol => return Ok(protocol),
        };
        let [following, len, a, b] = packet.copy::<4>(at).ok_or(NotASegment::Malformed)?;
        if next == EXT_FRAGMENT {
            let position = u32::from(u16::from_be_bytes([a, b]));
            let id = u32::from_be_bytes(packet.copy::<4>(at + 4).ok_or(NotASegment::Malformed)?);
            let (offset, more) = (position & 0xfff8, (position & 1) as u8);
            to.tcp_offset = at + FRAGMENT_HEADER_LEN;
            to.set_fragment(Fragment { id, offset, len: 0, protocol: following, more, _pad: 0 }, end)?;
            if to.part == Part::Later {
                return Ok(following);
            }
        } else {
            // In units of eight bytes beyond the first eight; the authentication header counts four-byte units,
            // beyond the first two (RFC 4302, 2.2).
            to.tcp_offset += if unit == 8 { (u32::from(len) + 1) * 8 } else { (u32::from(len) + 2) * 4 };
        }
        next = following;
    }
    Ok(next)
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

impl Segment {
    /// A fragment whose payload begins at `tcp_offset` and ends at `end`.
    #[inline(always)]
    fn set_fragment(&mut self, fragment: Fragment, end: u32) -> Result<(), NotASegment> {
        if end < self.tcp_offset {
            return Err(NotASegment::Malformed);
        }
        self.part = fragment.part();
        self.fragment = Fragment { len: end - self.tcp_offset, ..fragment };
        Ok(())
    }

    /// Whether the fragments do not tell the protocol: the first has extension headers of IPv6 behind that of fragments.
    #[inline(always)]
    #[must_use]
    pub const fn hides_protocol(&self) -> bool {
        let hiding = matches!(
            self.fragment.protocol,
            EXT_HOP_BY_HOP | EXT_ROUTING | EXT_AUTHENTICATION | EXT_DESTINATION
        );
        hiding && matches!(self.key.family, Family::V6)
    }
}
