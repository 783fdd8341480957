//! The connections' entries in the `flows` map.

use std::io;

use aya::maps::{HashMap, MapData, MapError};
use rustix::time::{ClockId, clock_gettime};
use sheer_common::flow::{Flow, FlowKey, FlowState, Side};

use super::{
    DataplaneError,
    object::{address, map, refused_entry},
};
use crate::{
    flow::{ConnectionId, ConnectionTuples, FlowTable},
    socket::{ClientAddr, OriginalDst},
};

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

    fn insert(&mut self, key: FlowKey, id: ConnectionId, side: Side) -> io::Result<()> {
        self.map.insert(key, entry(id, side), 0).map_err(errno)
    }
}

impl FlowTable for KernelFlows {
    fn insert_client(
        &mut self,
        id: ConnectionId,
        client: ClientAddr,
        original: OriginalDst,
    ) -> io::Result<()> {
        self.insert(key(client.socket_addr(), original.socket_addr()), id, Side::FromClient)
    }

    fn insert_server(&mut self, flow: &ConnectionTuples) -> io::Result<()> {
        self.insert(key(flow.upstream.socket_addr(), flow.source.socket_addr()), flow.id, Side::FromServer)
    }

    // That an entry is gone already is no failure: it was never made where the map was full.
    fn remove_client(&mut self, _: ConnectionId, client: ClientAddr, original: OriginalDst) {
        let _ = self.map.remove(&key(client.socket_addr(), original.socket_addr()));
    }

    fn remove(&mut self, flow: &ConnectionTuples, perhaps_reused: bool) {
        for key in [
            key(flow.client.socket_addr(), flow.original.socket_addr()),
            key(flow.upstream.socket_addr(), flow.source.socket_addr()),
        ] {
            let successors = perhaps_reused && self.map.get(&key, 0).is_ok_and(|f| f.connection != flow.id.0);
            if !successors {
                let _ = self.map.remove(&key);
            }
        }
    }
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
fn entry(id: ConnectionId, side: Side) -> Flow {
    let now = monotonic_ns();
    Flow {
        packets: 0,
        bytes: 0,
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
