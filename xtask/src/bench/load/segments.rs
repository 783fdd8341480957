use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with},
};

use super::{Load, MESSAGE, Meter, Outcome};

/// Segments between two looks at the clock.
const BATCH: usize = 64;

const HEADER: usize = 20;

/// Sends segments of connections that nobody has, `connections` of them, each to an address of its own, from `to` on.
///
/// On its way over veth links a packet is worked on by the CPU that sends it, to the end and before the next one is
/// sent. So the rate says what a packet costs, whatever the other CPUs do; nothing queues and nothing is merged.
pub(super) fn run(load: &Load) -> Result<Outcome> {
    let socket = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::TCP))
        .context("cannot make a raw socket")?;
    let segments: Vec<_> = (0..load.connections).map(|number| segment(load.to, number)).collect();
    let mut meter = Meter::new(load);
    let mut next = segments.iter().cycle();
    let mut sent = 0;
    loop {
        let before = Instant::now();
        if !meter.goes_on(before) {
            break;
        }
        for (to, bytes) in next.by_ref().take(BATCH) {
            match sendto(&socket, bytes, SendFlags::empty(), to) {
                Ok(_) => sent += 1,
                Err(Errno::NOBUFS) => meter.outcome.failed += 1,
                Err(error) => return Err(error).with_context(|| format!("sending to {to}")),
            }
        }
        meter.count(BATCH as u64);
        meter.time(before.elapsed() / BATCH as u32);
    }
    // Here they are segments: all that were sent, also outside of the time that counts.
    meter.outcome.connections = sent;
    Ok(meter.finish(Instant::now()))
}

/// A segment in the middle of a connection. Nobody looks at its checksum: it is dropped where it was sent to.
fn segment(first: SocketAddrV4, number: usize) -> (SocketAddrV4, [u8; HEADER + MESSAGE]) {
    let step = number as u32;
    let to = SocketAddrV4::new(Ipv4Addr::from_bits(first.ip().to_bits() + step), first.port());
    let mut bytes = [0x5a; HEADER + MESSAGE];
    bytes[..2].copy_from_slice(&(20_000 + step as u16).to_be_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    // Data offset of five words; PSH and ACK.
    bytes[12..14].copy_from_slice(&[0x50, 0x18]);
    (to, bytes)
}
