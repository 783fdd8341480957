//! The packet that is asked about.

use std::net::{IpAddr, SocketAddr};

use crate::config::Protocol;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
/// Flags and fragment offset: do not fragment (RFC 791, section 3.1).
const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0];
const HOPS: u8 = 64;

/// A SYN, or an empty datagram, in an Ethernet frame. Checksums are zero: nobody looks at them. Nothing where the two
/// addresses are of different families.
#[must_use]
pub fn frame(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Option<Vec<u8>> {
    let (number, body) = match protocol {
        Protocol::Tcp => (TCP, syn(from.port(), to.port())),
        Protocol::Udp => (UDP, datagram(from.port(), to.port())),
    };
    // Both ends of the link are locally administered addresses.
    let mut frame = vec![0x02; 12];
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ETHERTYPE_IPV4);
            frame.extend([0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(DO_NOT_FRAGMENT);
            frame.extend([HOPS, number, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(ETHERTYPE_IPV6);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([number, HOPS]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => return None,
    }
    frame.extend(body);
    Some(frame)
}

fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&from.to_be_bytes());
    segment[2..4].copy_from_slice(&to.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = SYN;
    segment[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    segment
}

fn datagram(from: u16, to: u16) -> Vec<u8> {
    [from, to, 8, 0].iter().flat_map(|field| field.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(protocol: Protocol, from: &str, to: &str) -> Option<Vec<u8>> {
        frame(protocol, from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn lengths_say_how_long_the_packet_is() {
        let length = |frame: &[u8], at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        for (protocol, body) in [(Protocol::Tcp, 20), (Protocol::Udp, 8)] {
            let v4 = made(protocol, "192.0.2.1:40000", "203.0.113.1:443").unwrap();
            assert_eq!((v4.len(), length(&v4, 16)), (14 + 20 + body, 20 + body));
            let v6 = made(protocol, "[2001:db8::1]:40000", "[2001:db8::2]:443").unwrap();
            assert_eq!((v6.len(), length(&v6, 18)), (14 + 40 + body, body));
            assert_eq!(length(&v6, 14 + 40 + 2), 443);
        }
    }

    #[test]
    fn two_families_make_no_packet() {
        assert_eq!(made(Protocol::Tcp, "192.0.2.1:1", "[2001:db8::1]:1"), None);
    }
}
