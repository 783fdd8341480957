//! The server of the load: ports that swallow, one that answers, one that tells what was swallowed.

use std::{
    net::{SocketAddrV4, TcpListener},
    os::fd::AsRawFd,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;
use rustix::{
    event::epoll::EventFlags,
    fd::OwnedFd,
    io::Errno,
    net::{RecvFlags, SendFlags, SocketFlags, accept_with, listen, recv, send},
};

use super::{poller::Poller, tally::Tally};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// So much is taken from a connection at a time.
const CHUNK: usize = 256 << 10;

#[derive(Args, Debug)]
pub struct Target {
    /// Read into a buffer, as most programs do.
    #[arg(long)]
    read: SocketAddrV4,
    /// Dropped in the kernel: the receiver touches no byte.
    #[arg(long)]
    discard: SocketAddrV4,
    /// Sent back.
    #[arg(long)]
    echo: SocketAddrV4,
    /// Tells how much was read and discarded.
    #[arg(long)]
    tally: SocketAddrV4,
}

#[derive(Clone, Copy)]
enum Duty {
    Read,
    Discard,
    Echo,
    Tell,
}

/// What the work on the connections leaves.
struct State {
    buffer: Vec<u8>,
    swallowed: u64,
    started: Instant,
}

enum File {
    Listener(TcpListener, Duty),
    Connection(OwnedFd, Duty),
}

/// Does each port's duty until it is killed.
///
/// # Errors
/// When an address cannot be listened on, or the process runs out of files.
pub fn run(target: &Target) -> Result<()> {
    let mut poller = Poller::new()?;
    // By the number of the file.
    let mut files: Vec<Option<File>> = Vec::new();
    let Target { read, discard, echo, tally } = *target;
    for (address, duty) in
        [(read, Duty::Read), (discard, Duty::Discard), (echo, Duty::Echo), (tally, Duty::Tell)]
    {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        // Once more, for a longer backlog than the standard library's.
        listen(&listener, BACKLOG)?;
        poller.add(&listener, listener.as_raw_fd() as usize, EventFlags::IN)?;
        let number = listener.as_raw_fd() as usize;
        put(&mut files, number, File::Listener(listener, duty));
    }
    println!("ready");
    let mut state = State { buffer: vec![0; CHUNK], swallowed: 0, started: Instant::now() };
    let mut accepted = Vec::new();
    let mut ended = Vec::new();
    loop {
        for (number, _) in poller.wait(None)? {
            match files.get(number).and_then(Option::as_ref) {
                Some(File::Listener(listener, duty)) => accept_all(listener, *duty, &mut accepted)?,
                Some(File::Connection(socket, duty)) if !state.serve(socket, *duty) => {
                    ended.push(number);
                }
                _ => {}
            }
        }
        for number in ended.drain(..) {
            files[number] = None;
        }
        for (socket, duty) in accepted.drain(..) {
            let number = socket.as_raw_fd() as usize;
            poller.add(&socket, number, EventFlags::IN)?;
            put(&mut files, number, File::Connection(socket, duty));
        }
    }
}

fn put(files: &mut Vec<Option<File>>, number: usize, file: File) {
    if files.len() <= number {
        files.resize_with(number + 1, || None);
    }
    files[number] = Some(file);
}

fn accept_all(listener: &TcpListener, duty: Duty, accepted: &mut Vec<(OwnedFd, Duty)>) -> Result<()> {
    loop {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => accepted.push((socket, duty)),
            Err(Errno::AGAIN) => return Ok(()),
            // A client that is gone again before it was accepted.
            Err(Errno::CONNABORTED) => {}
            Err(error) => return Err(error).context("cannot accept"),
        }
    }
}

impl State {
    /// `false` when the connection is over.
    fn serve(&mut self, socket: &OwnedFd, duty: Duty) -> bool {
        // TRUNC: tcp(7) discards the bytes instead of copying them.
        let flags = if matches!(duty, Duty::Discard) { RecvFlags::TRUNC } else { RecvFlags::empty() };
        let bytes = match recv(socket, &mut self.buffer[..], flags) {
            Ok((_, 0)) => return false,
            Ok((_, bytes)) => bytes,
            Err(error) => return error == Errno::AGAIN,
        };
        match duty {
            Duty::Read | Duty::Discard => {
                self.swallowed += bytes as u64;
                true
            }
            Duty::Echo => sent_whole(socket, &self.buffer[..bytes]),
            Duty::Tell => {
                let nanoseconds = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                sent_whole(socket, &Tally { bytes: self.swallowed, nanoseconds }.to_wire())
            }
        }
    }
}

/// Answers are so short that the socket takes them whole, or the connection is broken.
fn sent_whole(socket: &OwnedFd, answer: &[u8]) -> bool {
    send(socket, answer, SendFlags::NOSIGNAL) == Ok(answer.len())
}
