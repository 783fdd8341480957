use std::{
    io::{ErrorKind, Read},
    net::{Shutdown, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    event::epoll::EventFlags,
    fs::{MemfdFlags, memfd_create, sendfile},
    io::{Errno, write},
};

use super::{Kind, Load, Outcome, Window, poller::Poller, tally::Teller};

const CHUNK: usize = 256 << 10;

/// How long the last bytes may take to reach the receiver.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends until the window is over and counts what the receiver has received in it. At the end each byte sent must have
/// arrived.
pub(super) fn run(load: &Load) -> Result<Outcome> {
    let mut teller =
        Teller::connect(load.tally.context("--tally is needed: who sends does not know what arrives")?)?;
    let source = Source::of(load.kind)?;
    let before = teller.ask()?;
    let mut poller = Poller::new()?;
    let mut streams = Vec::new();
    for index in 0..load.connections {
        let stream = TcpStream::connect(load.to).with_context(|| format!("cannot connect to {}", load.to))?;
        stream.set_nonblocking(true)?;
        poller.add(&stream, index, EventFlags::OUT)?;
        streams.push(stream);
    }
    let window = Window::of(load);
    let mut sent = send_until(window.begin, &source, &mut poller, &streams)?;
    let begin = teller.ask()?;
    sent += send_until(window.end, &source, &mut poller, &streams)?;
    let end = teller.ask()?;

    finish(&streams)?;
    let (arrived, _) = teller.ask()?.since(before);
    ensure!(arrived == sent, "{sent} bytes were sent, {arrived} arrived");
    let (units, seconds) = end.since(begin);
    Ok(Outcome { units, seconds, connections: streams.len() as u64, ..Outcome::default() })
}

/// Where the bytes come from.
enum Source {
    /// Copied into the socket, as most programs do.
    Buffer(Vec<u8>),
    /// Pages of a file, as a web server sends them.
    File(OwnedFd),
}

impl Source {
    fn of(kind: Kind) -> Result<Self> {
        let bytes = vec![0x5a; CHUNK];
        if !matches!(kind, Kind::BulkPages) {
            return Ok(Self::Buffer(bytes));
        }
        let file = memfd_create("bulk", MemfdFlags::CLOEXEC).context("cannot make a file in memory")?;
        ensure!(write(&file, &bytes)? == CHUNK, "a file in memory took only a part");
        Ok(Self::File(file))
    }

    fn send(&self, stream: &TcpStream) -> Result<usize, Errno> {
        match self {
            Self::Buffer(bytes) => write(stream, bytes),
            Self::File(file) => sendfile(stream, file, Some(&mut 0), CHUNK),
        }
    }
}

fn send_until(end: Instant, source: &Source, poller: &mut Poller, streams: &[TcpStream]) -> Result<u64> {
    let mut sent = 0;
    while Instant::now() < end {
        for (index, _) in poller.wait(Some(Duration::from_millis(50)))? {
            match source.send(&streams[index]) {
                Ok(bytes) => sent += bytes as u64,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error).context("sending"),
            }
        }
    }
    Ok(sent)
}

/// Ends each stream and waits for the receiver's own end, which comes after it has read everything.
fn finish(streams: &[TcpStream]) -> Result<()> {
    for stream in streams {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.shutdown(Shutdown::Write)?;
    }
    for mut stream in streams {
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => anyhow::bail!("the receiver sent something"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                anyhow::bail!("the receiver did not end within {} s", PATIENCE.as_secs())
            }
            Err(error) => return Err(error).context("waiting for the receiver's end"),
        }
    }
    Ok(())
}
