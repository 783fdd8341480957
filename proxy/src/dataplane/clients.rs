//! Clients that are limited or blocked, as the programs have them.

use std::{net::IpAddr, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use serde::Serialize;
use sheer_common::{
    abi::Settings,
    limit::{ALL_SERVICES, Block, ClientKey},
};

use super::{
    Dataplane, DataplaneError,
    flows::monotonic_ns,
    object::{map, refused_entry},
    view::ip,
};
use crate::{clients::ClientTable, policy::address};

/// The `concurrent` map.
pub(super) struct ConcurrentClients(HashMap<MapData, ClientKey, u32>);

impl ConcurrentClients {
    pub(super) fn new(data: MapData) -> Result<Self, DataplaneError> {
        HashMap::try_from(Map::HashMap(data)).map(Self).map_err(refused_entry(map::CONCURRENT))
    }
}

impl ClientTable for ConcurrentClients {
    // Where the map is full the programs let the client's SYN in, and the proxy refuses the connection.
    fn set(&mut self, client: &ClientKey, count: u32) {
        let _ = if count == 0 { self.0.remove(client) } else { self.0.insert(client, count, 0) };
    }
}

/// A client that is shut out.
#[derive(Clone, Debug, Serialize)]
pub struct Blocked {
    /// Its address, or the prefix by which the service tells clients apart.
    pub client: String,
    /// Number of the service that shut it out; none: all do, since somebody said so.
    #[serde(skip)]
    pub service: Option<u32>,
    /// Seconds until it is let in again.
    pub remaining_s: f64,
    /// Seconds since it was shut out.
    pub since_s: f64,
    /// Connections refused since.
    pub refused: u64,
}

impl Dataplane {
    /// Shuts an address out of all services.
    ///
    /// # Errors
    /// When the map is full or refuses.
    pub fn block(&mut self, client: IpAddr, time: Duration) -> Result<(), DataplaneError> {
        let (family, address) = address(client);
        let now = monotonic_ns();
        let lasts = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let block = Block { until_ns: now.saturating_add(lasts), since_ns: now, refused: 0 };
        let name = map::BLOCKED_BY_HAND;
        let mut by_hand = self.blocks(name)?;
        let over: Vec<_> = entries(&by_hand).filter(|(_, b)| b.until_ns <= now).map(|(k, _)| k).collect();
        for key in over {
            let _ = by_hand.remove(&key);
        }
        by_hand.insert(ClientKey::by_hand(family, address), block, 0).map_err(refused_entry(name))?;
        self.note_blocking()
    }

    /// Lets an address in again: ends every block that it falls under. How many there were.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn unblock(&mut self, client: IpAddr) -> Result<usize, DataplaneError> {
        let (family, address) = address(client);
        let now = monotonic_ns();
        let covers = |key: &ClientKey| key.family == family && key.address == address.masked(key.prefix);
        let mut stood = 0;
        for name in BLOCKS {
            let mut blocks = self.blocks(name)?;
            let found: Vec<_> = entries(&blocks).filter(|(key, _)| covers(key)).collect();
            for (key, block) in found {
                stood += usize::from(block.until_ns > now);
                // That it has gone by itself is no failure.
                let _ = blocks.remove(&key);
            }
        }
        self.note_blocking()?;
        Ok(stood)
    }

    /// Everybody who is shut out, the longest first.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn blocked(&mut self) -> Result<Vec<Blocked>, DataplaneError> {
        let now = monotonic_ns();
        let mut blocked = Vec::new();
        for name in BLOCKS {
            let blocks = self.blocks(name)?;
            let stand = entries(&blocks).filter(|(_, block)| block.until_ns > now);
            blocked.extend(stand.map(|(key, block)| shown(&key, &block, now)));
        }
        blocked.sort_by(|a: &Blocked, b| b.remaining_s.total_cmp(&a.remaining_s));
        Ok(blocked)
    }

    pub(super) fn blocks(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, ClientKey, Block>, DataplaneError> {
        HashMap::try_from(self.map_mut(name)?).map_err(refused_entry(name))
    }

    /// The programs look for blocks by hand only while there are any.
    fn note_blocking(&mut self) -> Result<(), DataplaneError> {
        let blocking = entries(&self.blocks(map::BLOCKED_BY_HAND)?).next().is_some();
        let now = self.settings()?;
        self.set_settings(Settings { blocking: blocking.into(), ..now })
    }
}

/// Both kinds of blocks.
const BLOCKS: [&str; 2] = [map::BLOCKED_BY_HAND, map::BLOCKED];

/// What can be read of a map that others write to meanwhile.
fn entries(blocks: &HashMap<&mut MapData, ClientKey, Block>) -> impl Iterator<Item = (ClientKey, Block)> {
    blocks.iter().filter_map(Result::ok)
}

fn shown(key: &ClientKey, block: &Block, now: u64) -> Blocked {
    let address = ip(key.family, key.address);
    let whole = key.prefix == if address.is_ipv4() { 32 } else { 128 };
    Blocked {
        client: if whole { address.to_string() } else { format!("{address}/{}", key.prefix) },
        service: (key.service != ALL_SERVICES).then_some(key.service),
        remaining_s: block.until_ns.saturating_sub(now) as f64 / 1e9,
        since_s: now.saturating_sub(block.since_ns) as f64 / 1e9,
        refused: block.refused,
    }
}
