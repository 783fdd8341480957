//! What really went over the wire: TCP packets seen in a namespace.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// One TCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it went to.
    pub destination: SocketAddr,
    /// Bytes of IPv4 options.
    pub ip_options: usize,
    /// SYN without ACK.
    pub opens: bool,
    /// RST.
    pub resets: bool,
}

/// A recording of every TCP packet that comes or goes on any interface of a namespace.
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
    recorder: Option<JoinHandle<()>>,
}

/// ETH_P_ALL in network order, as packet(7) wants it.
const EVERYTHING: i32 = 0x0003_u16.to_be() as i32;

impl Capture {
    /// Records from now on; when this returns, no later packet is missed.
    ///
    /// # Panics
    /// When there is no packet socket to be had.
    #[must_use]
    pub fn start(namespace: &Namespace) -> Self {
        let socket = namespace.run(|| {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))
                .expect("no packet socket")
        });
        // How often the thread looks whether it shall stop; packets wake it at once.
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (packets, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (into, stopped) = (Arc::clone(&packets), Arc::clone(&stop));
        let recorder = namespace.spawn("capture", move || record(socket, &into, &stopped));
        Self { packets, stop, recorder: Some(recorder) }
    }

    /// What was seen so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().unwrap().clone()
    }

    /// How many were seen so far that are like this.
    #[must_use]
    pub fn count(&self, like: impl Fn(&Packet) -> bool) -> usize {
        self.packets.lock().unwrap().iter().filter(|packet| like(packet)).count()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(recorder) = self.recorder.take() {
            let _ = recorder.join();
        }
    }
}

fn record(mut socket: Socket, into: &Mutex<Vec<Packet>>, stopped: &AtomicBool) {
    let mut frame = vec![0; 128 * 1024];
    while !stopped.load(Ordering::Relaxed) {
        match socket.read(&mut frame) {
            Ok(length) => into.lock().unwrap().extend(parse(&frame[..length])),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => panic!("the capture broke: {e}"),
        }
    }
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let ip = frame.get(14..)?;
    let (source, destination, header): (IpAddr, IpAddr, usize) = match frame.get(12..14)? {
        [0x08, 0x00] if *ip.get(9)? == 6 => {
            let v4 = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            (v4(12)?.into(), v4(16)?.into(), usize::from(ip[0] & 15) * 4)
        }
        [0x86, 0xdd] if *ip.get(6)? == 6 => {
            let v6 = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            (v6(8)?.into(), v6(24)?.into(), 40)
        }
        _ => return None,
    };
    let tcp = ip.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes(<[u8; 2]>::try_from(tcp.get(at..at + 2)?).ok()?));
    let flags = *tcp.get(13)?;
    Some(Packet {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        ip_options: if source.is_ipv4() { header - 20 } else { 0 },
        opens: flags & 0x12 == 0x02,
        resets: flags & 0x04 != 0,
    })
}
