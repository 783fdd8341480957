//! The seam to the kernel's table of flows.
//!
//! The kernel knows and counts packets of known flows by this table; the worker enters the two halves of a
//! connection that lasts, and takes both out at its end.

use std::fmt;
use std::io;

pub use sheer_common::flow::Opening;

use crate::socket::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr};

/// Unique in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Both halves of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionTuples {
    pub id: ConnectionId,
    pub client: ClientAddr,
    pub original: OriginalDst,
    pub source: SourceAddr,
    pub upstream: UpstreamAddr,
    /// Number of the service that took it.
    pub service: u32,
}

/// Payload that a connection has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client.
    pub up: u64,
    /// From the server.
    pub down: u64,
}

/// One table object per worker, called on that worker's thread only. An error is counted, and the
/// connection goes on: the kernel then finds its socket the slower way.
///
/// Only connections that last are entered (see [`WORTH_ENTERING`]): two entries made and removed cost a short one
/// more than all its packets.
pub trait FlowTable {
    /// Both halves, with what was moved before.
    fn insert(&mut self, flow: &ConnectionTuples, moved: Moved) -> io::Result<()>;

    /// The end: both halves, while the sockets still own their tuples. `perhaps_reused`: a reset has freed them
    /// before, so that an entry may be a successor's by now.
    fn remove(&mut self, flow: &ConnectionTuples, perhaps_reused: bool);

    /// What tc wrote down of a connection when it came, if it did.
    fn opening(&mut self, _client: ClientAddr, _original: OriginalDst) -> Option<Opening> {
        None
    }
}

/// A connection is entered when it has moved so many bytes of payload, or has lived through a tick of its worker's
/// clock, which comes five times a second.
pub const WORTH_ENTERING: u64 = 64 * 1024;

/// A table that remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFlowTable;

impl FlowTable for NoFlowTable {
    fn insert(&mut self, _: &ConnectionTuples, _: Moved) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: &ConnectionTuples, _: bool) {}
}
