//! The connections' entries in the `flows` map.

use std::io;

use aya::maps::{HashMap, Map, MapData, MapError};
use rustix::time::{ClockId, clock_gettime};
use sheer_common::flow::{Flow, FlowKey, FlowState, Opening, Side};

use super::{
    DataplaneError,
    object::{map, refused_entry},
};
use crate::{
    flow::{ConnectionTuples, FlowTable, Moved},
    policy::address,
    socket::{ClientAddr, OriginalDst},
};

/// One worker's hand on the `flows` and `openings` maps.
pub struct KernelFlows {
    map: HashMap<MapData, FlowKey, Flow>,
    openings: HashMap<MapData, FlowKey, Opening>,
}

impl KernelFlows {
    /// # Errors
    /// When these are not the maps of these names.
    pub fn new(flows: MapData, openings: MapData) -> Result<Self, DataplaneError> {
        Ok(Self {
            map: HashMap::try_from(Map::HashMap(flows)).map_err(refused_entry(map::FLOWS))?,
            openings: HashMap::try_from(Map::LruHashMap(openings)).map_err(refused_entry(map::OPENINGS))?,
        })
    }
}

impl FlowTable for KernelFlows {
    fn insert(&mut self, flow: &ConnectionTuples, moved: Moved) -> io::Result<()> {
        let [client, server] = keys(flow);
        self.map.insert(client, entry(flow, Side::FromClient, moved.up), 0).map_err(errno)?;
        self.map.insert(server, entry(flow, Side::FromServer, moved.down), 0).map_err(errno)
    }

    fn opening(&mut self, client: ClientAddr, original: OriginalDst) -> Option<Opening> {
        self.openings.get(&key(client.socket_addr(), original.socket_addr()), 0).ok()
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
fn entry(flow: &ConnectionTuples, side: Side, bytes: u64) -> Flow {
    let now = monotonic_ns();
    Flow {
        packets: 0,
        bytes,
        last_seen_ns: now,
        opened_ns: now,
        connection: flow.id.0,
        side,
        state: FlowState::Relayed,
        service: flow.service,
        _pad: 0,
    }
}

/// Nanoseconds of CLOCK_MONOTONIC_COARSE, the clock of the programs' timestamps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let t = clock_gettime(ClockId::MonotonicCoarse);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}
