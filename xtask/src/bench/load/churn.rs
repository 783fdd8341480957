use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::epoll::EventFlags,
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send, socket_with,
        sockopt,
    },
};

use super::{Load, MESSAGE, Meter, Outcome, poller::Poller};

/// Ports of each client address that are used, in order. Choosing them here costs less than having the kernel search
/// for a free one, and none comes again while the kernel still remembers its last connection (60 s in TIME_WAIT).
const PORTS: std::ops::Range<u16> = 10_000..60_000;

/// A connection that waits longer than this at the end has lost a packet: it counts as failed.
const LATE: Duration = Duration::from_secs(1);

enum State {
    Connecting,
    Answering,
}

struct Visit {
    socket: OwnedFd,
    state: State,
    began: Instant,
}

/// Keeps `connections` visits under way: connect, message, answer, then close as the first, with FIN, as most clients do.
pub(super) fn run(load: &Load) -> Result<Outcome> {
    if load.from.is_empty() {
        bail!("--from is needed: one address has too few ports");
    }
    let mut poller = Poller::new()?;
    let mut meter = Meter::new(load);
    let mut made = load.used;
    let mut visits: Vec<Visit> = Vec::with_capacity(load.connections);
    for slot in 0..load.connections {
        visits.push(open(&poller, slot, load, &mut made)?);
    }
    let mut over = Vec::new();
    while meter.goes_on(Instant::now()) {
        for (slot, flags) in poller.wait(Some(Duration::from_millis(50)))? {
            match advance(&mut visits[slot], flags) {
                Step::Waiting => {}
                Step::Done => {
                    meter.count(1);
                    meter.time(visits[slot].began.elapsed());
                    over.push(slot);
                }
                Step::Failed => {
                    meter.outcome.failed += 1;
                    over.push(slot);
                }
            }
        }
        for slot in over.drain(..) {
            // The old socket closes with its value; epoll forgets it by itself.
            visits[slot] = open(&poller, slot, load, &mut made)?;
        }
    }
    meter.outcome.connections = made - load.used;
    meter.outcome.failed += visits.iter().filter(|visit| visit.began.elapsed() > LATE).count() as u64;
    Ok(meter.finish(Instant::now()))
}

enum Step {
    Waiting,
    Done,
    Failed,
}

fn advance(visit: &mut Visit, flags: EventFlags) -> Step {
    if flags.contains(EventFlags::ERR) {
        return Step::Failed;
    }
    if matches!(visit.state, State::Connecting) && flags.contains(EventFlags::OUT) {
        visit.state = State::Answering;
        if send(&visit.socket, &[0x5a; MESSAGE], SendFlags::NOSIGNAL) != Ok(MESSAGE) {
            return Step::Failed;
        }
    }
    if !flags.contains(EventFlags::IN) {
        return Step::Waiting;
    }
    let mut answer = [0; MESSAGE];
    match recv(&visit.socket, &mut answer[..], RecvFlags::empty()) {
        Ok((_, MESSAGE)) => Step::Done,
        Err(Errno::AGAIN) => Step::Waiting,
        // A short answer would be one segment in two; none is that short on the way.
        _ => Step::Failed,
    }
}

fn open(poller: &Poller, slot: usize, load: &Load, made: &mut u64) -> Result<Visit> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("cannot make a socket")?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    let source = source(&load.from, *made);
    *made += 1;
    bind(&socket, &source).with_context(|| format!("cannot bind to {source}"))?;
    match connect(&socket, &load.to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect from {source} to {}", load.to));
        }
    }
    poller.add(&socket, slot, EventFlags::IN | EventFlags::OUT | EventFlags::ET)?;
    Ok(Visit { socket, state: State::Connecting, began: Instant::now() })
}

/// The address and port of the connection with this number: the addresses in turns, then the next port.
fn source(addresses: &[Ipv4Addr], number: u64) -> SocketAddrV4 {
    let count = addresses.len() as u64;
    let address = addresses[(number % count) as usize];
    let offset = (number / count) % u64::from(PORTS.end - PORTS.start);
    SocketAddrV4::new(address, PORTS.start + offset as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_source_comes_twice_before_all_were_used() {
        let addresses = [Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(198, 51, 100, 11)];
        let all: HashSet<_> = (0..100_000).map(|number| source(&addresses, number)).collect();
        assert_eq!(all.len(), 100_000);
        assert_eq!(source(&addresses, 100_000), source(&addresses, 0));
    }
}
