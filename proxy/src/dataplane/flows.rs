//! The connections' entries in the `flows` map.

use std::io;

use aya::maps::{HashMap, MapData, MapError};
use rustix::time::{ClockId, clock_gettime};
use sheer_common::flow::{Flow, FlowKey, FlowState, Side};

use super::{
    DataplaneError,
    object::{address, map, refused_entry},
};
use crate::flow::{ConnectionId, ConnectionTuples, FlowTable, Moved};

/// One worker's hand on the `flows` map.
pub struct KernelFlows {
    map: HashMap<MapData, FlowKey, Flow>,
}

impl KernelFlows {
    /// # Errors
    /// When `data` is not the `flows` map.
    pub fn new(data: MapData) -> Result<Self, DataplaneError> {
        let map = HashMap::try_from(aya::maps::Map::HashMap(data)).map_err(refused_entry(map::FLOWS))?;
        Ok(Self { map })
    }
}

impl FlowTable for KernelFlows {
    fn insert(&mut self, flow: &ConnectionTuples, moved: Moved) -> io::Result<()> {
        let [client, server] = keys(flow);
        self.map.insert(client, entry(flow.id, Side::FromClient, moved.up), 0).map_err(errno)?;
        self.map.insert(server, entry(flow.id, Side::FromServer, moved.down), 0).map_err(errno)
    }

    // That an entry is gone already is no failure: it was never made where the map was full.
    fn remove(&mut self, flow: &ConnectionTuples, perhaps_reused: bool) {
        for key in keys(flow) {
            let successors = perhaps_reused && self.map.get(&key, 0).is_ok_and(|f| f.connection != flow.id.0);
            if !successors {
                let _ = self.map.remove(&key);
            }
        }
    }
}

/// The keys of packets from the client, and from the server.
fn keys(flow: &ConnectionTuples) -> [FlowKey; 2] {
    [
        key(flow.client.socket_addr(), flow.original.socket_addr()),
        key(flow.upstream.socket_addr(), flow.source.socket_addr()),
    ]
}

/// The system's error behind aya's.
fn errno(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        other => io::Error::other(other),
    }
}

/// Key of packets from `from` to `to`.
fn key(from: std::net::SocketAddr, to: std::net::SocketAddr) -> FlowKey {
    let (family, src) = address(from.ip());
    let (_, dst) = address(to.ip());
    FlowKey::tcp(family, src, from.port(), dst, to.port())
}

/// A fresh entry.
fn entry(id: ConnectionId, side: Side, bytes: u64) -> Flow {
    let now = monotonic_ns();
    Flow {
        packets: 0,
        bytes,
        last_seen_ns: now,
        opened_ns: now,
        connection: id.0,
        side,
        state: FlowState::Relayed,
    }
}

/// Nanoseconds of CLOCK_MONOTONIC_COARSE, the clock of the programs' timestamps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let t = clock_gettime(ClockId::MonotonicCoarse);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}
