//! Frames, cut down to what steering needs: the tuple, the TCP flags, where the headers stand.
//!
//! Two ways lead to the same [`Segment`]. Nearly every packet is plain Ethernet with an IP header of fixed
//! size, whose bytes stand at offsets that the compiler knows: that is [`plain`], with direct packet access.
//! Anything else (VLAN tags, IP options, extension headers, headers outside the linear part) goes through
//! [`walk`], which copies header by header.

pub mod icmp;
mod plain;
mod walk;

use sheer_common::{
    abi::{Address, Family, Protocol},
    flow::FlowKey,
    fragment::Fate,
    verdict::Verdict,
};

/// Bytes of a packet, as a program may read them.
pub trait Packet {
    /// `N` bytes at an offset known at compile time, in place; nothing where the linear part is shorter.
    fn head<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// `N` bytes copied from any offset; nothing where the packet is shorter.
    fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// An Ethernet header, perhaps with VLAN tags.
    Ethernet,
    /// The IP header itself: tun, WireGuard, IPIP, PPP.
    Ip,
}

/// A TCP segment, or a UDP datagram; whole, or the first fragment of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its tuple.
    pub key: FlowKey,
    /// Offset of the IP header in the frame.
    pub ip_offset: u32,
    /// Offset of the TCP header in the frame; of the UDP or ICMP header, where there is one instead.
    pub tcp_offset: u32,
    /// The flag byte of the TCP header (RFC 9293, 3.1); zero for a datagram.
    pub flags: u8,
    /// Which part of it this is.
    pub part: Part,
    /// Where it belongs, if it is not the whole.
    pub fragment: Fragment,
    /// What becomes of a first fragment, and of those behind it. Kept here for the reason for which a segment is read into a
    /// map.
    pub fate: Fate,
}

/// Which part of a datagram a packet carries.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The first fragment: it has the ports.
    First = 1,
    /// Any other.
    Later = 2,
}

/// Where a fragment belongs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Where it begins in the datagram's payload, in bytes.
    pub offset: u32,
    /// How many bytes of payload it has.
    pub len: u32,
    /// Number of the protocol, or of the IPv6 extension header, that its payload begins with.
    pub protocol: u8,
    /// Not zero: more fragments follow.
    pub more: u8,
    /// Zero.
    pub _pad: u16,
}

impl Fragment {
    /// No fragment.
    pub const NONE: Self = Self { id: 0, offset: 0, len: 0, protocol: 0, more: 0, _pad: 0 };

    /// Which part of its datagram it is. One that is the first and the last at the same time counts as the whole
    /// (RFC 6946).
    #[inline(always)]
    const fn part(&self) -> Part {
        match (self.offset, self.more) {
            (0, 0) => Part::Whole,
            (0, _) => Part::First,
            _ => Part::Later,
        }
    }
}

/// TCP flag bits (RFC 9293, 3.1).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

impl Segment {
    /// A SYN without ACK: a client opens a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.flags & (flags::SYN | flags::ACK | flags::RST) == flags::SYN
    }

    /// A plain ACK, the only segment that can answer a SYN cookie.
    #[inline(always)]
    #[must_use]
    pub const fn may_answer_cookie(&self) -> bool {
        self.flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::ACK
    }
}

/// Why a frame is not a [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotASegment {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// ICMP or ICMPv6. The segment then holds the offsets of both headers, for [`icmp::embedded`] to go on from.
    Icmp,
    /// IP, but neither of these nor TCP nor UDP.
    OtherProtocol,
    /// A fragment behind the first of TCP or UDP. The segment then holds its addresses and where it belongs; the protocol
    /// is TCP where extension headers hide it.
    LaterFragment,
    /// A fragment of anything else.
    Fragment,
    /// Cut short, or headers that contradict each other.
    Malformed,
}

impl NotASegment {
    /// The verdict on such a frame.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::NotIp => Verdict::PassNotIp,
            Self::Icmp | Self::OtherProtocol => Verdict::PassOtherProtocol,
            Self::LaterFragment | Self::Fragment => Verdict::PassFragment,
            Self::Malformed => Verdict::PassMalformed,
        }
    }
}

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_QINQ: u16 = 0x88a8;
pub(crate) const ETHERNET_LEN: u32 = 14;
pub(crate) const IPV4_LEN: u32 = 20;
pub(crate) const IPV6_LEN: u32 = 40;
pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;
pub(crate) const PROTO_ICMP: u8 = 1;
pub(crate) const PROTO_ICMPV6: u8 = 58;

/// Reads a frame into `segment`, whose former content does not matter.
///
/// Written in place instead of returned, because the BPF stack has 512 bytes for all frames of a call chain
/// and each move of a segment would take 72 of them.
///
/// # Errors
/// Says why the frame is not a segment or datagram that steering can look at.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, layer: Layer, segment: &mut Segment) -> Result<(), NotASegment> {
    match plain::parse(packet, layer, segment) {
        Some(()) => Ok(()),
        None => walk::parse(packet, layer, segment),
    }
}

impl Segment {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        key: FlowKey::tcp(Family::V4, Address { bytes: [0; 16] }, 0, Address { bytes: [0; 16] }, 0),
        ip_offset: 0,
        tcp_offset: 0,
        flags: 0,
        part: Part::Whole,
        fragment: Fragment::NONE,
        fate: Fate::Waiting,
    };

    /// Takes ports and flags from the first 14 bytes of a TCP header; nothing where its length is impossible.
    #[inline(always)]
    fn set_tcp(&mut self, header: &[u8; 14]) -> Option<()> {
        // The data offset counts 32-bit words and cannot be below the fixed header's five (RFC 9293, 3.1).
        if header[12] >> 4 < 5 {
            return None;
        }
        let [a, b, c, d, ..] = *header;
        self.set_ports([a, b, c, d]);
        self.flags = header[13];
        Some(())
    }

    /// Takes the ports of a UDP header from its first four bytes.
    #[inline(always)]
    fn set_udp(&mut self, ports: [u8; 4]) {
        self.key.protocol = Protocol::Udp;
        self.set_ports(ports);
        self.flags = 0;
    }

    #[inline(always)]
    fn set_ports(&mut self, [a, b, c, d]: [u8; 4]) {
        self.key.src_port = u16::from_be_bytes([a, b]);
        self.key.dst_port = u16::from_be_bytes([c, d]);
    }

    #[inline(always)]
    fn set_ip(&mut self, family: Family, src: Address, dst: Address, ip_offset: u32, tcp_offset: u32) {
        self.key = FlowKey::tcp(family, src, 0, dst, 0);
        self.ip_offset = ip_offset;
        self.tcp_offset = tcp_offset;
        self.part = Part::Whole;
    }
}

#[cfg(test)]
mod tests;
