//! Packets cut into fragments, and sent in any order.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Host;
use crate::namespace::Namespace;

/// IPPROTO_RAW: the headers are ours (raw(7)).
const OURS: i32 = 255;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_FRAGMENT: u8 = 44;
/// ETH_P_ALL in network order, as packet(7) wants it.
const EVERYTHING: i32 = 0x0003_u16.to_be() as i32;

/// In which order the fragments of a packet are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first one first.
    InOrder,
    /// The first one last.
    Reversed,
    /// As chance will have it, by this seed.
    Shuffled(u64),
}

impl Arrival {
    /// One of each.
    pub const ALL: [Self; 3] = [Self::InOrder, Self::Reversed, Self::Shuffled(7)];

    /// Puts the fragments of the `nth` packet into this order.
    pub fn arrange<T>(self, fragments: &mut [T], nth: u32) {
        match self {
            Self::InOrder => {}
            Self::Reversed => fragments.reverse(),
            Self::Shuffled(seed) => fastrand::Rng::with_seed(seed + u64::from(nth)).shuffle(fragments),
        }
    }
}

/// Cuts a packet into fragments with so much payload each, a multiple of eight. One that is short enough stays whole.
///
/// # Panics
/// When it is not an IP packet, or has extension headers.
#[must_use]
pub fn cut(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0, "fragments begin at multiples of eight bytes");
    let header = header_len(packet);
    let payload = &packet[header..];
    if payload.len() <= size {
        return vec![packet.to_vec()];
    }
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(n, piece)| fragment(packet, piece, n * size, n * size + piece.len() < payload.len(), id))
        .collect()
}

/// One fragment: the headers of `packet` and a piece of its payload.
#[must_use]
pub fn fragment(packet: &[u8], piece: &[u8], offset: usize, more: bool, id: u32) -> Vec<u8> {
    let mut cut = packet[..header_len(packet)].to_vec();
    let (offset, more) = (offset as u16, u16::from(more));
    if is_v4(packet) {
        cut[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        cut[6..8].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
    } else {
        cut.extend([cut[6], 0]);
        cut.extend((offset | more).to_be_bytes());
        cut.extend(id.to_be_bytes());
        cut[6] = IPPROTO_FRAGMENT;
    }
    cut.extend(piece);
    if is_v4(packet) {
        let total = cut.len() as u16;
        cut[2..4].copy_from_slice(&total.to_be_bytes());
        cut[10..12].fill(0);
        let sum = checksum(&[&cut[..header_len(packet)]]);
        cut[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let len = cut.len() as u16 - 40;
        cut[4..6].copy_from_slice(&len.to_be_bytes());
    }
    cut
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

fn header_len(packet: &[u8]) -> usize {
    if is_v4(packet) { usize::from(packet[0] & 15) * 4 } else { 40 }
}

/// The checksum of the internet over these pieces, of even length but for the last (RFC 1071).
fn checksum(pieces: &[&[u8]]) -> u16 {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let mut sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Writes the checksum of TCP or UDP into a packet that is whole.
pub fn fill_checksum(packet: &mut [u8]) {
    let header = header_len(packet);
    let (addresses, protocol) = if is_v4(packet) {
        (packet[12..20].to_vec(), packet[9])
    } else {
        (packet[8..40].to_vec(), packet[6])
    };
    let at = header + if protocol == IPPROTO_TCP { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let len = (packet.len() - header) as u32;
    let rest = [&len.to_be_bytes()[..], &[0, 0, 0, protocol]].concat();
    let sum = checksum(&[&addresses, &rest, &packet[header..]]);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Sends packets with their headers out of a host's `eth0`.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
    to: SocketAddr,
}

impl Sender {
    /// Towards this address; what the packets themselves say is not looked at.
    ///
    /// # Panics
    /// When there is no raw socket to be had.
    #[must_use]
    pub fn new(host: &Host, to: IpAddr) -> Self {
        let to = SocketAddr::new(to, 0);
        let socket = host.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(OURS))).unwrap();
            socket.bind_device(Some(b"eth0")).unwrap();
            socket
        });
        Self { socket, to }
    }

    /// Sends one packet.
    ///
    /// # Panics
    /// When the kernel does not want it.
    pub fn send(&self, packet: &[u8]) {
        self.socket
            .send_to(packet, &self.to.into())
            .unwrap_or_else(|e| panic!("sending to {}: {e}", self.to));
    }
}

/// Cuts every TCP segment that a host sends to an address into fragments, as a router would on the way, and sends
/// them in the order wished for. The way back stays as it is. Ends when this value goes.
///
/// The host has a route by a device of its own at whose other end every packet is read, cut, and sent out of `eth0`.
#[derive(Debug)]
pub struct Cutter<'h> {
    host: &'h Host,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    _far: Namespace,
}

impl<'h> Cutter<'h> {
    /// Fragments with so many bytes of payload each, a multiple of eight.
    ///
    /// # Panics
    /// When the kernel refuses the device.
    #[must_use]
    pub fn on(host: &'h Host, to: IpAddr, size: usize, arrival: Arrival) -> Self {
        let far = Namespace::new("cutter");
        let from = if to.is_ipv4() { host.v4() } else { host.v6() };
        // One segment to a packet, so that the stack leaves nothing to the device to cut.
        host.configure(&format!(
            "link add cut0 gso_max_segs 1 type veth peer name cut1 netns {}\n\
             link set cut0 addrgenmode none\n\
             link set cut0 up\n\
             neigh add {to} lladdr 02:00:00:00:00:c1 dev cut0\n",
            far.path()
        ));
        far.configure("link set cut1 addrgenmode none\nlink set cut1 up\n");
        let reader =
            far.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING))).unwrap());
        // How often the thread looks whether it shall stop; packets wake it at once.
        reader.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let sender = Sender::new(host, to);
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let worker = host.spawn("cutter", move || work(reader, &sender, size, arrival, &stopped));
        host.configure(&format!("route add {to} dev cut0 src {from}\n"));
        Self { host, stop, worker: Some(worker), _far: far }
    }
}

impl Drop for Cutter<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        if !std::thread::panicking() {
            self.host.configure("link del cut0\n");
        }
    }
}

fn work(mut reader: Socket, sender: &Sender, size: usize, arrival: Arrival, stop: &AtomicBool) {
    let mut frame = vec![0; 128 * 1024];
    for id in 1.. {
        let length = loop {
            match reader.read(&mut frame) {
                Ok(length) => break length,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => panic!("the cutter broke: {e}"),
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        };
        let Some(packet) = tcp_to(&mut frame[..length], sender.to.ip()) else { continue };
        fill_checksum(packet);
        let mut fragments = cut(packet, size, id);
        arrival.arrange(&mut fragments, id);
        fragments.iter().for_each(|fragment| sender.send(fragment));
    }
}

/// The packet in a frame, if it is TCP to this address.
fn tcp_to(frame: &mut [u8], to: IpAddr) -> Option<&mut [u8]> {
    let packet = frame.get_mut(14..)?;
    let (protocol, destination) = match to {
        IpAddr::V4(to) => (packet.get(9)?, packet.get(16..20)? == to.octets()),
        IpAddr::V6(to) => (packet.get(6)?, packet.get(24..40)? == to.octets()),
    };
    (*protocol == IPPROTO_TCP && destination).then_some(packet)
}
