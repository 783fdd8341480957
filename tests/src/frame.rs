//! Frames as a client or a server would send them, and disguises for them.

use std::net::{IpAddr, SocketAddr};

const SYN: u8 = 0x02;
const PSH_ACK: u8 = 0x18;

/// A VLAN tag by its protocol number (IEEE 802.1Q, 802.1ad).
#[derive(Clone, Copy, Debug)]
pub struct Tag(u16);

impl Tag {
    pub const VLAN: Self = Self(0x8100);
    pub const QINQ: Self = Self(0x88a8);
}

/// A TCP segment in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    payload: usize,
    tags: Vec<Tag>,
    options: bool,
    fragment: bool,
    protocol: u8,
}

impl Frame {
    pub fn syn(from: SocketAddr, to: SocketAddr) -> Self {
        Self { from, to, flags: SYN, payload: 0, tags: vec![], options: false, fragment: false, protocol: 6 }
    }

    pub fn data(from: SocketAddr, to: SocketAddr) -> Self {
        Self { flags: PSH_ACK, payload: 64, ..Self::syn(from, to) }
    }

    pub fn tagged(self, tags: &[Tag]) -> Self {
        Self { tags: tags.to_vec(), ..self }
    }

    /// IPv4 options, or IPv6 extension headers.
    pub fn with_options(self) -> Self {
        Self { options: true, ..self }
    }

    /// The first of several fragments.
    pub fn fragment(self) -> Self {
        Self { fragment: true, ..self }
    }

    /// SCTP instead of TCP.
    pub fn sctp(self) -> Self {
        Self { protocol: 132, ..self }
    }

    /// UDP instead of TCP.
    pub fn udp(self) -> Self {
        Self { protocol: 17, ..self }
    }

    /// With so many bytes behind the header.
    pub fn with_payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    /// A packet with a UDP datagram instead, from and to the same ports; its checksum is left out.
    pub fn datagram(&self, data: &[u8]) -> Vec<u8> {
        let length = 8 + data.len() as u16;
        let mut packet = self.clone().udp().with_payload(usize::from(length) - 20).ip();
        let at = packet.len() - usize::from(length);
        packet[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
        packet[at + 6..at + 8].fill(0);
        packet[at + 8..].copy_from_slice(data);
        packet
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![0x02; 12];
        for tag in &self.tags {
            frame.extend(tag.0.to_be_bytes());
            frame.extend(7u16.to_be_bytes());
        }
        frame.extend(if self.from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(self.ip());
        frame
    }

    /// The packet without a link-layer header.
    pub fn ip(&self) -> Vec<u8> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.ipv4(from.octets(), to.octets()),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.ipv6(from.octets(), to.octets()),
            _ => panic!("two families in one packet"),
        }
    }

    fn ipv4(&self, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let options: &[u8] = if self.options { &[1, 1, 1, 0] } else { &[] };
        let tcp = self.tcp();
        let mut p = vec![0; 20];
        p[0] = 0x45 + options.len() as u8 / 4;
        p[2..4].copy_from_slice(&((20 + options.len() + tcp.len()) as u16).to_be_bytes());
        p[6] = if self.fragment { 0x20 } else { 0x40 };
        p[8] = 64;
        p[9] = self.protocol;
        p[12..16].copy_from_slice(&from);
        p[16..20].copy_from_slice(&to);
        p.extend(options);
        p.extend(tcp);
        p
    }

    fn ipv6(&self, from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut first = self.protocol;
        if self.fragment {
            body.extend([first, 0, 0, 1, 0, 0, 0, 9]);
            first = 44;
        }
        if self.options {
            // Hop-by-hop with padding, then destination options.
            body.splice(0..0, [60, 0, 1, 4, 0, 0, 0, 0, first, 0, 1, 4, 0, 0, 0, 0]);
            first = 0;
        }
        body.extend(self.tcp());
        let mut p = vec![0x60, 0, 0, 0];
        p.extend((body.len() as u16).to_be_bytes());
        p.extend([first, 64]);
        p.extend(from);
        p.extend(to);
        p.extend(body);
        p
    }

    fn tcp(&self) -> Vec<u8> {
        let mut t = vec![0; 20 + self.payload];
        t[..2].copy_from_slice(&self.from.port().to_be_bytes());
        t[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        t[4..8].copy_from_slice(&1000u32.to_be_bytes());
        t[12] = 0x50;
        t[13] = self.flags;
        t
    }
}
