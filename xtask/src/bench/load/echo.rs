use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;

use super::{Load, MESSAGE, Meter, Outcome, poller::Poller};

struct Talk {
    stream: TcpStream,
    asked: Instant,
    /// Bytes of the answer that have come.
    answered: usize,
}

/// Each connection has one message on its way, always.
pub(super) fn run(load: &Load) -> Result<Outcome> {
    let message = [0x5a; MESSAGE];
    let mut poller = Poller::new()?;
    let mut talks = Vec::new();
    for index in 0..load.connections {
        let mut stream =
            TcpStream::connect(load.to).with_context(|| format!("cannot connect to {}", load.to))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        poller.add(&stream, index, EventFlags::IN)?;
        stream.write_all(&message)?;
        talks.push(Talk { stream, asked: Instant::now(), answered: 0 });
    }
    let mut buffer = [0; MESSAGE];
    let mut meter = Meter::new(load);
    meter.outcome.connections = talks.len() as u64;
    while meter.goes_on(Instant::now()) {
        for (index, _) in poller.wait(Some(Duration::from_millis(50)))? {
            let talk = &mut talks[index];
            match talk.stream.read(&mut buffer[talk.answered..]) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(bytes) => talk.answered += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("waiting for an answer"),
            }
            if talk.answered == MESSAGE {
                let now = Instant::now();
                meter.count(1);
                meter.time(now - talk.asked);
                talk.answered = 0;
                talk.asked = now;
                talk.stream.write_all(&message)?;
            }
        }
    }
    Ok(meter.finish(Instant::now()))
}
