//! One direction of a connection: copy first, splice when there is much to move, and back.

use std::io;
use std::task::{Context, Poll, ready};

use super::pipe::{PIPE_SIZE, Pipe};
use super::{BUFFER, Bench, PipePool};
use crate::reason::Side;
use crate::socket::Stream;

/// Full reads in a row after which a direction counts as bulk.
const FULL_READS: u8 = 3;
/// A splice that moves less is small.
const SMALL_SPLICE: usize = 16 * 1024;
/// Small splices in a row after which a direction no longer counts as bulk.
const SMALL_SPLICES: u8 = 8;
/// Bytes after which the other connections of the worker get their turn.
const TURN: usize = 1024 * 1024;

/// An error, and the side that it came from.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) side: Side,
    pub(super) error: io::Error,
}

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// Read, but not yet taken by the receiver, from the index on.
    Bytes(Box<[u8]>, u32),
    /// So many bytes in a pipe; zero: the pipe is at hand for the next round.
    Pipe(Pipe, u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wait {
    #[default]
    Turn,
    Read,
    Write,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Taken by the receiver's socket.
    bytes: u64,
    held: Held,
    bulk: bool,
    /// Full reads in a row, or small splices in a row if `bulk`.
    streak: u8,
    spliced: bool,
    /// The sender's FIN was read.
    eof: bool,
    ended: bool,
    wait: Wait,
    /// splice(2) does not work on these sockets.
    no_splice: bool,
}

impl Direction {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn spliced(&self) -> bool {
        self.spliced
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn waits_for_reading(&self) -> bool {
        !self.ended && self.wait == Wait::Read
    }

    pub(super) fn waits_for_writing(&self) -> bool {
        !self.ended && self.wait == Wait::Write
    }

    pub(super) fn release(self, pipes: &mut PipePool) {
        if let Held::Pipe(pipe, held) = self.held {
            pipes.put_back(pipe, held == 0);
        }
    }

    /// Moves bytes until one side has no more to give or to take, or the turn is over. Ready when the
    /// direction has ended and its FIN is passed on; `last` spares the FIN, for the sockets are closed next.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from_side, from): (Side, &Stream),
        (to_side, to): (Side, &Stream),
        bench: &mut Bench,
        last: bool,
    ) -> Result<Poll<()>, Fault> {
        let at = |side| move |error| Fault { side, error };
        let turn_ends = self.bytes + TURN as u64;
        loop {
            self.wait = Wait::Write;
            if self.poll_deliver(cx, to, bench).map_err(at(to_side))?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.eof {
                if !last {
                    to.shutdown_write().map_err(at(to_side))?;
                }
                self.ended = true;
                return Ok(Poll::Ready(()));
            }
            if self.bytes >= turn_ends {
                self.wait = Wait::Turn;
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            self.wait = Wait::Read;
            match self.poll_fetch(cx, from, bench) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(fetched) => match fetched.map_err(at(from_side))? {
                    Fetched::Buffered(n) => self.pass_on(cx, to, &bench.buffer[..n]).map_err(at(to_side))?,
                    Fetched::Held => {}
                },
            }
        }
    }

    /// Passes on what lies in a socket that has broken, without asking the reactor: a write may find the end before
    /// the reactor has reported what came before it.
    pub(super) fn last_words(&mut self, cx: &mut Context<'_>, from: &Stream, to: &Stream, bench: &mut Bench) {
        while matches!(self.poll_deliver(cx, to, bench), Ok(Poll::Ready(()))) {
            match from.read_now(&mut bench.buffer) {
                Ok(n) if n > 0 => {
                    if self.pass_on(cx, to, &bench.buffer[..n]).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Sends what is held. Ready when nothing is held any more.
    fn poll_deliver(&mut self, cx: &mut Context<'_>, to: &Stream, bench: &mut Bench) -> io::Result<Poll<()>> {
        loop {
            match &mut self.held {
                Held::Nothing | Held::Pipe(_, 0) => break,
                Held::Bytes(bytes, sent) => {
                    if to.poll_writable(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                    let n = to.write_now(cx, &bytes[*sent as usize..])?;
                    self.bytes += n as u64;
                    *sent += n as u32;
                    if *sent as usize == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Pipe(pipe, held) => {
                    // The first try goes without asking; `poll_fetch` has just filled the pipe.
                    if pipe.blocked && to.poll_writable(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                    let n = to.splice_from_now(cx, pipe.read_end(), *held as usize)?;
                    pipe.blocked = n == 0;
                    self.bytes += n as u64;
                    *held -= n as u32;
                }
            }
        }
        if (self.eof || !self.bulk)
            && let Held::Pipe(pipe, _) = std::mem::take(&mut self.held)
        {
            bench.pipes.put_back(pipe, true);
        }
        Ok(Poll::Ready(()))
    }

    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        bench: &mut Bench,
    ) -> Poll<io::Result<Fetched>> {
        if self.bulk && from.saw_urgent() {
            (self.bulk, self.no_splice, self.streak) = (false, true, 0);
            if let Held::Pipe(pipe, _) = std::mem::take(&mut self.held) {
                bench.pipes.put_back(pipe, true);
            }
        }
        if self.bulk {
            let pipe = match std::mem::take(&mut self.held) {
                Held::Pipe(pipe, _) => Some(pipe),
                _ => bench.pipes.take(),
            };
            if let Some(pipe) = pipe {
                return self.poll_splice(cx, from, pipe, bench);
            }
        }
        let n = ready!(from.poll_read(cx, &mut bench.buffer))?;
        if n == 0 {
            self.eof = true;
        } else if !self.bulk {
            self.streak = if n == BUFFER { self.streak.saturating_add(1) } else { 0 };
            if self.streak >= FULL_READS && !self.no_splice {
                (self.bulk, self.streak) = (true, 0);
            }
        }
        Poll::Ready(Ok(Fetched::Buffered(n)))
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        mut pipe: Pipe,
        bench: &mut Bench,
    ) -> Poll<io::Result<Fetched>> {
        match from.poll_splice_into(cx, pipe.write_end(), PIPE_SIZE) {
            Poll::Pending => {
                bench.pipes.put_back(pipe, true);
                Poll::Pending
            }
            Poll::Ready(Ok(0)) => {
                bench.pipes.put_back(pipe, true);
                self.eof = true;
                Poll::Ready(Ok(Fetched::Held))
            }
            Poll::Ready(Ok(n)) => {
                self.spliced = true;
                self.streak = if n < SMALL_SPLICE { self.streak + 1 } else { 0 };
                if self.streak > SMALL_SPLICES {
                    (self.bulk, self.streak) = (false, 0);
                }
                pipe.blocked = false;
                self.held = Held::Pipe(pipe, n as u32);
                Poll::Ready(Ok(Fetched::Held))
            }
            Poll::Ready(Err(error)) => {
                bench.pipes.put_back(pipe, true);
                if error.kind() == io::ErrorKind::InvalidInput {
                    (self.bulk, self.no_splice, self.streak) = (false, true, 0);
                    return Poll::Ready(Ok(Fetched::Held));
                }
                Poll::Ready(Err(error))
            }
        }
    }

    /// Sends straight from the shared buffer, and keeps a copy of what is left.
    fn pass_on(&mut self, cx: &mut Context<'_>, to: &Stream, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let n = to.write_now(cx, bytes)?;
        self.bytes += n as u64;
        if n < bytes.len() {
            self.held = Held::Bytes(bytes[n..].into(), 0);
        }
        Ok(())
    }
}

enum Fetched {
    /// So many bytes lie in the shared buffer; 0 at the end of the stream.
    Buffered(usize),
    /// In the pipe that the direction holds, or nothing this time.
    Held,
}
