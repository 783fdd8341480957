//! The seam to the kernel's table of flows.
//!
//! The kernel marks packets of known flows by this table; the worker enters a connection's two halves as it
//! learns them, and takes both out at its end.

use std::fmt;
use std::io;

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
}

/// One table object per worker, called on that worker's thread only. An error is counted, and the
/// connection goes on: the kernel then finds its socket the slower way.
pub trait FlowTable {
    /// At accept: the half that comes from the client.
    fn insert_client(
        &mut self,
        id: ConnectionId,
        client: ClientAddr,
        original: OriginalDst,
    ) -> io::Result<()>;

    /// Right after the upstream connection was started: the half that comes from the server.
    fn insert_server(&mut self, flow: &ConnectionTuples) -> io::Result<()>;

    /// The end of a connection that never had a server half.
    fn remove_client(&mut self, id: ConnectionId, client: ClientAddr, original: OriginalDst);

    /// The end: both halves, while the sockets still own their tuples. `perhaps_reused`: a reset has freed them
    /// before, so that an entry may be a successor's by now.
    fn remove(&mut self, flow: &ConnectionTuples, perhaps_reused: bool);
}

/// A table that remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFlowTable;

impl FlowTable for NoFlowTable {
    fn insert_client(&mut self, _: ConnectionId, _: ClientAddr, _: OriginalDst) -> io::Result<()> {
        Ok(())
    }

    fn insert_server(&mut self, _: &ConnectionTuples) -> io::Result<()> {
        Ok(())
    }

    fn remove_client(&mut self, _: ConnectionId, _: ClientAddr, _: OriginalDst) {}

    fn remove(&mut self, _: &ConnectionTuples, _: bool) {}
}
