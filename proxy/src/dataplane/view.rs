//! Reading the pinned maps of an instance, running or dead, from another process.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use serde::Serialize;
use sheer_common::{
    abi::{Address, Family, LAYOUT, Settings},
    flow::{Flow, FlowKey, FlowState, Side},
};

use super::{DataplaneError, Pins, flows::monotonic_ns, object::map, object::refused_entry};

/// One connection as the kernel sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Connection {
    /// Number of the connection.
    pub id: u64,
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom the client asked for.
    pub original: SocketAddr,
    /// The address that the server sees; absent where the map had no room for this half.
    pub source: Option<SocketAddr>,
    /// The server; absent likewise.
    pub upstream: Option<SocketAddr>,
    /// Who forwards.
    pub state: &'static str,
    /// From the client.
    pub up: Traffic,
    /// From the server.
    pub down: Traffic,
    /// Seconds since it was entered in the map, at most a fifth of a second after it was accepted.
    pub age_s: f64,
    /// Seconds since the last packet in either direction.
    pub idle_s: f64,
}

/// Packets of one direction, as they came in.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Traffic {
    /// Merged segments count once.
    pub packets: u64,
    /// From the IP header on; what came before the connection was entered counts as payload.
    pub bytes: u64,
}

/// Opens a pinned map, if it is what this binary expects under that name.
fn open(path: &Path, name: &'static str, value_size: usize) -> Result<MapData, DataplaneError> {
    let data = MapData::from_pin(path).map_err(refused_entry(name))?;
    let found = data.info().map_err(refused_entry(name))?.value_size();
    // A map of another version would be read past its end.
    if found as usize != value_size {
        let expected = value_size;
        return Err(refused_entry(name)(MapError::InvalidValueSize { size: found as usize, expected }));
    }
    Ok(data)
}

/// The settings of an instance.
///
/// # Errors
/// When there is no such map, or it is of another version.
pub fn settings(pins: &Pins) -> Result<Settings, DataplaneError> {
    let name = map::SETTINGS;
    let data = open(&pins.map(name), name, size_of::<Settings>())?;
    let array = Array::<_, Settings>::try_from(Map::Array(data)).map_err(refused_entry(name))?;
    let settings = array.get(&0, 0).map_err(refused_entry(name))?;
    if settings.layout == LAYOUT { Ok(settings) } else { Err(DataplaneError::OtherLayout) }
}

/// The connections of an instance, oldest first.
///
/// # Errors
/// When there is no such map, or it is of another version.
pub fn connections(pins: &Pins) -> Result<Vec<Connection>, DataplaneError> {
    settings(pins)?;
    let name = map::FLOWS;
    let data = open(&pins.map(name), name, size_of::<Flow>())?;
    let flows = HashMap::<_, FlowKey, Flow>::try_from(Map::HashMap(data)).map_err(refused_entry(name))?;
    let now = monotonic_ns();
    let mut found: BTreeMap<u64, Connection> = BTreeMap::new();
    // An entry that goes while it is read is no error: its connection has just ended.
    for (key, flow) in flows.iter().filter_map(Result::ok) {
        let c = found.entry(flow.connection).or_insert_with(|| Connection {
            id: flow.connection,
            client: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            original: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            source: None,
            upstream: None,
            state: match flow.state {
                FlowState::Relayed => "relayed",
            },
            up: Traffic::default(),
            down: Traffic::default(),
            age_s: seconds(now, flow.opened_ns),
            idle_s: f64::INFINITY,
        });
        c.idle_s = c.idle_s.min(seconds(now, flow.last_seen_ns));
        c.age_s = c.age_s.max(seconds(now, flow.opened_ns));
        let (from, to) =
            (socket(key.family, key.src, key.src_port), socket(key.family, key.dst, key.dst_port));
        let traffic = Traffic { packets: flow.packets, bytes: flow.bytes };
        match flow.side {
            Side::FromClient => (c.client, c.original, c.up) = (from, to, traffic),
            Side::FromServer => (c.upstream, c.source, c.down) = (Some(from), Some(to), traffic),
        }
    }
    // Only the server's half: the client's went while the map was read.
    found.retain(|_, c| c.client.port() != 0);
    Ok(found.into_values().collect())
}

fn seconds(now: u64, then: u64) -> f64 {
    now.saturating_sub(then) as f64 / 1e9
}

fn socket(family: Family, address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(ip(family, address), port)
}

/// An address out of a map.
pub(super) fn ip(family: Family, address: Address) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(address.v4_bytes())),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(address.bytes)),
    }
}
