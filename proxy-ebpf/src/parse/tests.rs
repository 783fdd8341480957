use std::{vec, vec::Vec};

use sheer_common::abi::Address;

use super::{NotASegment::*, *};

struct Bytes(Vec<u8>);

impl Packet for Bytes {
    fn head<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.0.get(offset..)?.first_chunk()
    }

    fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..)?.first_chunk().copied()
    }
}

/// The same bytes with none in the linear part, as some drivers hand them over.
struct NonLinear(Vec<u8>);

impl Packet for NonLinear {
    fn head<const N: usize>(&self, _: usize) -> Option<&[u8; N]> {
        None
    }

    fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..)?.first_chunk().copied()
    }
}

fn tcp_header(flags: u8) -> Vec<u8> {
    let mut h = vec![0; 20];
    h[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
    h[12] = 0x50;
    h[13] = flags;
    h
}

fn ipv4(options: usize, body: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 20];
    h[0] = 0x45 + (options / 4) as u8;
    h[2..4].copy_from_slice(&((20 + options + body.len()) as u16).to_be_bytes());
    h[9] = 6;
    h[12..20].copy_from_slice(&[10, 1, 2, 3, 192, 0, 2, 9]);
    h.resize(20 + options, 1);
    h.extend(body);
    h
}

fn ipv6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 40];
    h[0] = 0x60;
    h[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    h[6] = next;
    h[8] = 0x20;
    h[23] = 1;
    h[24] = 0x20;
    h[39] = 2;
    h.extend(body);
    h
}

fn ethernet(tags: &[u16], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 12];
    for tag in tags {
        h.extend(tag.to_be_bytes());
        h.extend([0, 7]);
    }
    h.extend(ethertype.to_be_bytes());
    h.extend(body);
    h
}

fn read<P: Packet>(packet: &P, layer: Layer) -> Result<Segment, NotASegment> {
    let mut segment = Segment::EMPTY;
    parse(packet, layer, &mut segment).map(|()| segment)
}

#[track_caller]
fn both(frame: &[u8], layer: Layer) -> Result<Segment, NotASegment> {
    let linear = read(&Bytes(frame.to_vec()), layer);
    let walked = read(&NonLinear(frame.to_vec()), layer);
    assert_eq!(linear, walked, "direct access and the walk must read alike");
    linear
}

#[track_caller]
fn assert_v4(segment: Segment, ip: u32, tcp: u32) {
    assert_eq!(segment.key.src, Address::v4([10, 1, 2, 3]));
    assert_eq!(segment.key.dst, Address::v4([192, 0, 2, 9]));
    assert_eq!((segment.key.src_port, segment.key.dst_port), (40000, 443));
    assert_eq!((segment.ip_offset, segment.tcp_offset), (ip, tcp));
}

#[test]
fn plain_frames_of_both_families_and_layers() {
    let v4 = ipv4(0, &tcp_header(flags::SYN));
    let s = both(&ethernet(&[], 0x0800, &v4), Layer::Ethernet).unwrap();
    assert_v4(s, 14, 34);
    assert!(s.opens() && !s.may_answer_cookie());
    assert_v4(both(&v4, Layer::Ip).unwrap(), 0, 20);

    let v6 = ipv6(6, &tcp_header(flags::ACK));
    let s = both(&ethernet(&[], 0x86dd, &v6), Layer::Ethernet).unwrap();
    assert_eq!((s.ip_offset, s.tcp_offset, s.key.family), (14, 54, Family::V6));
    assert_eq!((s.key.src.bytes[0], s.key.src.bytes[15], s.key.dst.bytes[15]), (0x20, 1, 2));
    assert!(!s.opens() && s.may_answer_cookie());
    assert_eq!(both(&v6, Layer::Ip).unwrap().tcp_offset, 40);
}

#[test]
fn one_and_two_vlan_tags_are_followed_and_three_are_not() {
    let v4 = ipv4(0, &tcp_header(flags::SYN));
    assert_v4(both(&ethernet(&[0x8100], 0x0800, &v4), Layer::Ethernet).unwrap(), 18, 38);
    assert_v4(both(&ethernet(&[0x88a8, 0x8100], 0x0800, &v4), Layer::Ethernet).unwrap(), 22, 42);
    assert_eq!(both(&ethernet(&[0x88a8, 0x8100, 0x8100], 0x0800, &v4), Layer::Ethernet), Err(NotIp));
}

#[test]
fn ipv4_options_are_skipped() {
    let v4 = ipv4(40, &tcp_header(flags::SYN));
    assert_v4(both(&ethernet(&[], 0x0800, &v4), Layer::Ethernet).unwrap(), 14, 74);
}

#[test]
fn ipv6_extension_headers_are_skipped() {
    let mut body = vec![43, 1];
    body.resize(16, 0); // hop-by-hop, 16 bytes
    body.extend([51, 0, 0, 0, 0, 0, 0, 0]); // routing, 8 bytes
    body.extend([60, 4]);
    body.resize(16 + 8 + 24, 0); // authentication, 24 bytes
    body.extend([6, 0, 0, 0, 0, 0, 0, 0]); // destination options, 8 bytes
    body.extend(tcp_header(flags::SYN));
    let s = both(&ethernet(&[], 0x86dd, &ipv6(0, &body)), Layer::Ethernet).unwrap();
    assert_eq!(s.tcp_offset, 14 + 40 + 56);
    assert!(s.opens());
}

#[test]
fn an_endless_chain_of_extension_headers_ends() {
    let body: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(both(&ipv6(60, &body), Layer::Ip), Err(OtherProtocol));
}

/// A fragment of TCP with that offset, in bytes, which ends at the same place as its body.
fn fragments(offset: u16, more: bool, body: &[u8]) -> [Vec<u8>; 2] {
    let mut v4 = ipv4(0, body);
    v4[4..6].copy_from_slice(&[0xab, 0xcd]);
    v4[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    let mut behind = vec![6, 0];
    behind.extend((offset | u16::from(more)).to_be_bytes());
    behind.extend([1, 2, 0xab, 0xcd]);
    behind.extend(body);
    [v4, ipv6(44, &behind)]
}

/// What was read, with the answer.
fn look(frame: &[u8]) -> (Result<(), NotASegment>, Segment) {
    let mut segment = Segment::EMPTY;
    (parse(&Bytes(frame.to_vec()), Layer::Ip, &mut segment), segment)
}

#[test]
fn a_first_fragment_is_read_as_a_whole_packet_and_says_what_it_is() {
    let header = tcp_header(flags::SYN);
    for (frame, id) in fragments(0, true, &[&header[..], &[7; 44]].concat()).iter().zip([0xabcd, 0x0102_abcd])
    {
        let s = both(frame, Layer::Ip).unwrap();
        assert!(s.opens() && s.part == Part::First);
        assert_eq!((s.key.src_port, s.key.dst_port), (40000, 443));
        let found = s.fragment;
        assert_eq!((found.id, found.offset, found.len, found.more, found.protocol), (id, 0, 64, 1, 6));
    }
    let mut dont = ipv4(0, &header);
    dont[6] = 0x40;
    assert_eq!(both(&dont, Layer::Ip).unwrap().part, Part::Whole);
}

#[test]
fn a_fragment_that_is_first_and_last_is_a_whole_packet() {
    let [_, v6] = fragments(0, false, &tcp_header(flags::SYN));
    let s = both(&v6, Layer::Ip).unwrap();
    assert_eq!((s.part, s.tcp_offset, s.opens()), (Part::Whole, 48, true));
}

#[test]
fn later_fragments_tell_where_they_belong_and_no_ports() {
    for more in [true, false] {
        for frame in fragments(1480, more, &[0xff; 100]) {
            assert_eq!(both(&frame, Layer::Ip), Err(LaterFragment));
            let (_, s) = look(&frame);
            let found = s.fragment;
            assert_eq!((s.part, found.offset, found.len, found.more), (Part::Later, 1480, 100, more.into()));
            assert_eq!((s.key.src_port, s.key.dst_port, s.key.protocol), (0, 0, Protocol::Tcp));
        }
    }
    let [mut v4, mut v6] = fragments(8, false, &[1; 9]);
    (v4[9], v6[40]) = (17, 17);
    for udp in [v4, v6] {
        assert_eq!(both(&udp, Layer::Ip), Err(LaterFragment));
        assert_eq!(look(&udp).1.key.protocol, Protocol::Udp);
    }
}

#[test]
fn a_first_fragment_that_does_not_show_the_header_is_malformed_however_padded() {
    for len in [0, 8, 16] {
        for mut frame in fragments(0, true, &tcp_header(flags::SYN)[..len]) {
            frame.resize(100, 0x50);
            assert_eq!(both(&frame, Layer::Ip), Err(Malformed), "{len} bytes of it");
            assert_eq!(look(&frame).1.part, Part::Whole, "nothing is concluded from it");
        }
    }
}

#[test]
fn fragments_with_lengths_that_contradict_themselves_are_malformed() {
    let [mut v4, mut v6] = fragments(8, true, &[0; 64]);
    (v4[2], v4[3]) = (0, 0);
    (v6[4], v6[5]) = (0, 7);
    assert_eq!(both(&v4, Layer::Ip), Err(Malformed), "a length of zero is no fragment's");
    assert_eq!(both(&v6, Layer::Ip), Err(Malformed), "shorter than the header of fragments");
}

#[test]
fn fragments_of_other_protocols_are_named_and_hidden_ones_counted_in() {
    for (offset, more) in [(0, true), (64, false)] {
        let [mut v4, mut v6] = fragments(offset, more, &[0; 64]);
        (v4[9], v6[40]) = (1, 58);
        assert_eq!(both(&v4, Layer::Ip), Err(Fragment), "ICMP");
        assert_eq!(both(&v6, Layer::Ip), Err(Fragment), "ICMPv6");
        assert_ne!(look(&v6).1.part, Part::First, "nobody has to remember it");
    }
    // Destination options behind the header of fragments.
    let hidden = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp_header(flags::ACK)].concat();
    let [_, mut first] = fragments(0, true, &hidden);
    let [_, mut later] = fragments(64, false, &hidden);
    (first[40], later[40]) = (60, 60);
    let s = both(&first, Layer::Ip).unwrap();
    assert!(s.part == Part::First && s.hides_protocol() && s.tcp_offset == 56);
    assert_eq!(both(&later, Layer::Ip), Err(LaterFragment));
    assert!(look(&later).1.hides_protocol());
    first[48] = 132;
    assert_eq!(both(&first, Layer::Ip), Err(Fragment), "SCTP behind them");
    assert!(look(&first).1.hides_protocol() && look(&first).1.part == Part::First, "the others do not know");
}

#[test]
fn datagrams_have_ports_however_short_they_are() {
    for payload in [0, 1, 100] {
        let udp = [&[0x9c, 0x40, 0x00, 0x35, 0, 8, 0, 0][..], &vec![7; payload]].concat();
        let mut v4 = ipv4(8, &udp);
        v4[9] = 17;
        for frame in [v4, ipv6(17, &udp)] {
            let datagram = both(&frame, Layer::Ip).unwrap();
            assert_eq!((datagram.key.src_port, datagram.key.dst_port), (40000, 53));
            assert_eq!((datagram.key.protocol, datagram.flags), (Protocol::Udp, 0));
        }
    }
}

#[test]
fn other_protocols_and_what_is_not_ip_are_named() {
    let mut gre = ipv4(0, &[0; 20]);
    gre[9] = 47;
    assert_eq!(both(&gre, Layer::Ip), Err(OtherProtocol));
    assert_eq!(both(&ipv6(47, &[0; 20]), Layer::Ip), Err(OtherProtocol));
    assert_eq!(both(&ethernet(&[], 0x0806, &[0; 28]), Layer::Ethernet), Err(NotIp));
    assert_eq!(both(&[0x50, 0, 0], Layer::Ip), Err(NotIp));
}

#[test]
fn every_cut_of_every_frame_is_malformed_and_never_a_segment() {
    let tagged = ethernet(&[0x8100], 0x0800, &ipv4(8, &tcp_header(flags::SYN)));
    let v6 =
        ethernet(&[], 0x86dd, &ipv6(0, &[&[6u8, 0, 0, 0, 0, 0, 0, 0][..], &tcp_header(flags::SYN)].concat()));
    for (frame, enough) in [(&tagged, 14 + 4 + 28 + 14), (&v6, 14 + 40 + 8 + 14)] {
        for len in 0..enough {
            assert_eq!(both(&frame[..len], Layer::Ethernet), Err(Malformed), "{len} bytes");
        }
        assert!(both(&frame[..enough], Layer::Ethernet).is_ok());
    }
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    let good = ipv4(0, &tcp_header(flags::SYN));
    for (at, value) in [(0, 0x44), (0, 0x65), (3, 19), (32, 0x40)] {
        let mut bad = ethernet(&[0x8100], 0x0800, &good);
        bad[18 + at] = value;
        if at == 3 {
            bad[18 + 2] = 0;
        }
        assert_eq!(both(&bad, Layer::Ethernet), Err(Malformed), "byte {at} = {value:#x}");
    }
    let mut v6 = ethernet(&[0x8100], 0x86dd, &ipv6(6, &tcp_header(0)));
    v6[18] = 0x40;
    assert_eq!(both(&v6, Layer::Ethernet), Err(Malformed));
}

/// An ICMP error with the packet that it is about, as a router sends it.
fn icmp_error(kind: u8, about: &[u8], v6: bool) -> Vec<u8> {
    let mut icmp = vec![kind, 4, 0, 0, 0, 0, 5, 20];
    icmp.extend(about);
    if v6 {
        return ipv6(58, &icmp);
    }
    let mut packet = ipv4(0, &icmp);
    packet[9] = 1;
    packet
}

fn complaint(packet: &[u8]) -> Option<FlowKey> {
    let packet = Bytes(packet.to_vec());
    let mut segment = Segment::EMPTY;
    assert_eq!(parse(&packet, Layer::Ip, &mut segment), Err(Icmp));
    icmp::embedded(&packet, &mut segment).map(|()| segment.key)
}

#[test]
fn an_icmp_error_names_the_connection_as_its_packets_come_in() {
    let sent = ipv4(8, &tcp_header(0));
    for kind in [3, 11, 12] {
        let key = complaint(&icmp_error(kind, &sent[..28 + 8], false)).unwrap();
        assert_eq!((key.src, key.dst), (Address::v4([192, 0, 2, 9]), Address::v4([10, 1, 2, 3])));
        assert_eq!((key.src_port, key.dst_port), (443, 40000));
    }
    let sent = ipv6(6, &tcp_header(0));
    for kind in 1..=4 {
        let key = complaint(&icmp_error(kind, &sent, true)).unwrap();
        assert_eq!((key.src.bytes[15], key.dst.bytes[15], key.src_port), (2, 1, 443));
    }
}

#[test]
fn other_icmp_messages_name_none() {
    let sent = ipv4(0, &tcp_header(0));
    assert_eq!(complaint(&icmp_error(8, &sent, false)), None, "an echo request");
    assert_eq!(complaint(&icmp_error(3, &sent[..22], false)), None, "cut before the ports");
    let mut udp = sent.clone();
    udp[9] = 17;
    assert_eq!(complaint(&icmp_error(3, &udp, false)), None, "about a datagram");
    let mut later = sent;
    later[7] = 1;
    assert_eq!(complaint(&icmp_error(3, &later, false)), None, "about a later fragment");
    assert_eq!(complaint(&icmp_error(135, &ipv6(6, &tcp_header(0)), true)), None, "a neighbour solicitation");
}
