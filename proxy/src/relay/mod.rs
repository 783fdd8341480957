//! The relay: bytes both ways between two streams until both directions have ended.
//!
//! Both directions of a connection are polled by one hand-written poll function in one task. Reads go into a
//! buffer that all connections of a worker share; a direction owns bytes only while the receiving
//! side does not take them. After [`direction`] has seen bulk it moves bytes with splice(2) through
//! pipes out of the worker's [`PipePool`].
//!
//! ```text
//! client ──read──▶ shared buffer / pipe ──write──▶ server      up
//! client ◀─write── shared buffer / pipe ◀──read─── server      down
//! ```

mod direction;
pub mod pipe;
#[cfg(test)]
mod tests;

use std::task::{Context, Poll};

use serde::Serialize;

use crate::reason::{CloseReason, Side};
use crate::socket::Stream;
use direction::{Direction, Fault};
pub use pipe::PipePool;

/// Bytes of the read buffer that the connections of a worker share.
pub const BUFFER: usize = 64 * 1024;

/// How the bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// Through the shared buffer only.
    Copied,
    /// At least once through a pipe.
    Spliced,
}

impl Path {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Spliced => "spliced",
        }
    }
}

/// What the relay says of a connection at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayOutcome {
    /// Bytes that the server's socket took, respectively the client's.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub path: Path,
    pub reason: CloseReason,
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Bench {
    buffer: Box<[u8]>,
    pub pipes: PipePool,
}

impl Bench {
    #[must_use]
    pub fn new(pipes: PipePool) -> Self {
        Self { buffer: vec![0; BUFFER].into_boxed_slice(), pipes }
    }
}

/// Two connected streams and what is under way between them.
#[derive(Debug)]
pub struct Relay {
    client: Stream,
    server: Stream,
    up: Direction,
    down: Direction,
    /// Whose direction ended first.
    first: Option<Side>,
}

impl Relay {
    #[must_use]
    pub fn new(client: Stream, server: Stream) -> Self {
        Self { client, server, up: Direction::default(), down: Direction::default(), first: None }
    }

    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.bytes(), self.down.bytes())
    }

    #[must_use]
    pub fn half_closed(&self) -> bool {
        self.first.is_some()
    }

    /// Moves what can be moved. Ready when both directions have ended, or when one side was reset; then
    /// [`Relay::close`] closes the sockets.
    pub fn poll(&mut self, cx: &mut Context<'_>, bench: &mut Bench) -> Poll<CloseReason> {
        match self.poll_directions(cx, bench) {
            Ok(true) => Poll::Ready(match self.first {
                Some(Side::Server) => CloseReason::ServerClosed,
                _ => CloseReason::ClientClosed,
            }),
            Ok(false) => Poll::Pending,
            Err(Fault { side, error }) => Poll::Ready(CloseReason::of_stream_error(side, &error)),
        }
    }

    /// True when both directions have ended.
    fn poll_directions(&mut self, cx: &mut Context<'_>, bench: &mut Bench) -> Result<bool, Fault> {
        let Self { client, server, up, down, first } = self;
        let (from_client, from_server) = ((Side::Client, &*client), (Side::Server, &*server));
        if !up.ended() {
            let polled = up.poll(cx, from_client, from_server, bench, down.ended());
            // A server that answers and resets while the client still uploads has answered all the same.
            if polled.as_ref().is_err_and(|fault| fault.side == Side::Server) && !down.ended() {
                down.last_words(cx, server, client, bench);
            }
            if polled?.is_ready() {
                first.get_or_insert(Side::Client);
            }
        }
        if !down.ended() {
            let polled = down.poll(cx, from_server, from_client, bench, up.ended());
            if polled.as_ref().is_err_and(|fault| fault.side == Side::Client) && !up.ended() {
                up.last_words(cx, client, server, bench);
            }
            if polled?.is_ready() {
                first.get_or_insert(Side::Server);
            }
        }
        if up.ended() && down.ended() {
            return Ok(true);
        }
        // A reset is noticed by a pending read or write. Where neither is pending, it has to be asked for.
        if !up.waits_for_reading() && !down.waits_for_writing() {
            watch(cx, Side::Client, client)?;
        }
        if !down.waits_for_reading() && !up.waits_for_writing() {
            watch(cx, Side::Server, server)?;
        }
        Ok(false)
    }

    /// What there is to say at the end.
    #[must_use]
    pub fn outcome(&self, reason: CloseReason) -> RelayOutcome {
        let (bytes_up, bytes_down) = self.bytes();
        let path = if self.up.spliced() || self.down.spliced() { Path::Spliced } else { Path::Copied };
        RelayOutcome { bytes_up, bytes_down, path, reason }
    }

    /// Closes both sockets as `reason` asks for: in order after an end in order, with RST otherwise.
    pub fn close(self, reason: CloseReason, pipes: &mut PipePool) {
        self.up.release(pipes);
        self.down.release(pipes);
        match reason {
            CloseReason::ClientClosed | CloseReason::ServerClosed => {}
            // The reset side is gone: an RST to it would be one call for nothing.
            CloseReason::ClientReset => self.server.reset(),
            CloseReason::ServerReset => self.client.reset(),
            _ => {
                self.client.reset();
                self.server.reset();
            }
        }
    }
}

fn watch(cx: &mut Context<'_>, side: Side, stream: &Stream) -> Result<(), Fault> {
    match stream.poll_reset(cx) {
        Poll::Ready(Some(error)) => Err(Fault { side, error }),
        Poll::Ready(None) | Poll::Pending => Ok(()),
    }
}
