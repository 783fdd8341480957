//! Who is pinged, and until when that is answered.

use std::{net::IpAddr, time::Duration};

use aya::maps::{HashMap, MapData};
use sheer_common::ping::{PingKey, Pinged};

use super::{
    Dataplane, DataplaneError,
    flows::monotonic_ns,
    object::{map, refused_entry},
    view::ip,
};
use crate::policy::address;

/// An address of a service that has been pinged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The service's number.
    pub service: u32,
    /// Who was pinged.
    pub address: IpAddr,
    /// How long ago.
    pub ago: Duration,
}

impl Dataplane {
    /// Who has been pinged.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn pinged(&mut self) -> Result<Vec<Asked>, DataplaneError> {
        let now = monotonic_ns();
        let asked = |(key, value): (PingKey, Pinged)| Asked {
            service: key.service,
            address: ip(key.family, key.address),
            ago: Duration::from_nanos(now.saturating_sub(value.asked_ns)),
        };
        // Entries may go while they are read.
        Ok(self.pings()?.iter().filter_map(Result::ok).map(asked).collect())
    }

    /// Has pings to an address answered for so long; zero: no more.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn answer_pings(&mut self, service: u32, to: IpAddr, lasts: Duration) -> Result<(), DataplaneError> {
        let (family, address) = address(to);
        let key = PingKey::new(service, family, address);
        let mut pings = self.pings()?;
        // Forgotten meanwhile: nobody asks any more.
        let Ok(known) = pings.get(&key, 0) else { return Ok(()) };
        let lasts = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX / 2);
        let reachable_until_ns = if lasts == 0 { 0 } else { monotonic_ns() + lasts };
        let value = Pinged { reachable_until_ns, ..known };
        pings.insert(key, value, 0).map_err(refused_entry(map::PINGED))
    }

    fn pings(&mut self) -> Result<HashMap<&mut MapData, PingKey, Pinged>, DataplaneError> {
        HashMap::try_from(self.map_mut(map::PINGED)?).map_err(refused_entry(map::PINGED))
    }
}
