//! The way of nearly every packet: no tag, no option, no extension header, all of it in the linear part.

use sheer_common::abi::{Address, Family};

use super::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, Layer, PROTO_TCP, PROTO_UDP, Packet,
    Segment,
};

/// The segment, where the frame is as plain as can be; otherwise nothing, and the walk decides.
#[inline(always)]
pub(super) fn parse<P: Packet>(packet: &P, layer: Layer, to: &mut Segment) -> Option<()> {
    match layer {
        Layer::Ethernet => {
            let header: &[u8; ETHERNET_LEN as usize] = packet.head(0)?;
            match u16::from_be_bytes([header[12], header[13]]) {
                ETHERTYPE_IPV4 => ipv4::<P, { ETHERNET_LEN as usize }>(packet, to),
                ETHERTYPE_IPV6 => ipv6::<P, { ETHERNET_LEN as usize }>(packet, to),
                _ => None,
            }
        }
        // As many bytes as the shortest segment has: the verifier does not follow a comparison for one.
        Layer::Ip => match packet.head::<{ (IPV4_LEN + 14) as usize }>(0)?[0] >> 4 {
            4 => ipv4::<P, 0>(packet, to),
            6 => ipv6::<P, 0>(packet, to),
            _ => None,
        },
    }
}

#[inline(always)]
fn ipv4<P: Packet, const AT: usize>(packet: &P, to: &mut Segment) -> Option<()> {
    let h: &[u8; (IPV4_LEN + 14) as usize] = packet.head(AT)?;
    let fragment = u16::from_be_bytes([h[6], h[7]]) & 0x3fff;
    // The length is left to the stack, which checks it anyway: a header that lies about it is no connection.
    if h[0] != 0x45 || fragment != 0 {
        return None;
    }
    let src = Address::v4([h[12], h[13], h[14], h[15]]);
    let dst = Address::v4([h[16], h[17], h[18], h[19]]);
    let (_, tcp) = h.split_last_chunk::<14>()?;
    to.set_ip(Family::V4, src, dst, AT as u32, AT as u32 + IPV4_LEN);
    transport(h[9], tcp, to)
}

#[inline(always)]
fn ipv6<P: Packet, const AT: usize>(packet: &P, to: &mut Segment) -> Option<()> {
    let h: &[u8; (IPV6_LEN + 14) as usize] = packet.head(AT)?;
    if h[0] >> 4 != 6 {
        return None;
    }
    let (_, rest) = h.split_first_chunk::<8>()?;
    let (src, rest) = rest.split_first_chunk::<16>()?;
    let (dst, rest) = rest.split_first_chunk::<16>()?;
    let tcp = rest.first_chunk::<14>()?;
    to.set_ip(Family::V6, Address::v6(*src), Address::v6(*dst), AT as u32, AT as u32 + IPV6_LEN);
    transport(h[6], tcp, to)
}

/// A datagram that is shorter than the 14 bytes of a segment comes here too when its frame is padded; others take
/// the long way.
#[inline(always)]
fn transport(protocol: u8, header: &[u8; 14], to: &mut Segment) -> Option<()> {
    match protocol {
        PROTO_TCP => to.set_tcp(header),
        PROTO_UDP => {
            let [a, b, c, d, ..] = *header;
            to.set_udp([a, b, c, d]);
            Some(())
        }
        _ => None,
    }
}
