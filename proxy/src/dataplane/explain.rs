//! Asking the loaded programs what they would do with a packet.

use std::net::IpAddr;

use aya::{
    maps::{HashMap, MapError},
    programs::{TestRun as _, TestRunOptions},
};
use sheer_common::{
    abi::Address,
    classify::Classes,
    explain::{Explanation, KnownSocket},
    limit::{Block, Client, ClientKey, Limit},
};

use super::{
    Dataplane, DataplaneError,
    flows::monotonic_ns,
    object::{map, program, refused_entry},
    view::ip,
};
use crate::policy::address;

/// Where `ifindex` stands in `struct __sk_buff` (include/uapi/linux/bpf.h).
const IFINDEX: usize = 40;

/// The entry before a question.
const UNANSWERED: Explanation = Explanation {
    verdict: 0,
    service: 0,
    own: 0,
    socket: KnownSocket::NotAsked,
    classes: Classes { destination: 0, port: 0, client: 0, interface: 0 },
    generation: 0,
    worker: 0,
};

/// What the programs know of a client of a service. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct KnownClient {
    /// When it was asked.
    pub now_ns: u64,
    /// The address, or the prefix's first one.
    pub address: IpAddr,
    /// How many leading bits of it make the client.
    pub prefix: u8,
    /// What its rate is reckoned by; none: nothing is remembered.
    pub rate: Option<Client>,
    /// Connections that it has.
    pub concurrent: u32,
    /// A block by the service that stands.
    pub blocked: Option<Block>,
}

impl Dataplane {
    /// What the programs do with a frame (with Ethernet header) that comes in by an interface, which must exist in the
    /// calling thread's network namespace. Nothing is counted or changed.
    ///
    /// # Errors
    /// When the kernel does not run the program.
    pub fn explain(&mut self, frame: &[u8], interface: u32) -> Result<Explanation, DataplaneError> {
        let name = map::EXPLANATION;
        self.array::<Explanation>(name)?.set(0, UNANSWERED, 0).map_err(refused_entry(name))?;
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&interface.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        self.classifier(program::EXPLAIN)?
            .test_run(options)
            .map_err(|e| DataplaneError::Ask { source: Box::new(e) })?;
        self.array::<Explanation>(name)?.get(&0, 0).map_err(refused_entry(name))
    }

    /// What is known of the client of a service that an address belongs to.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn known_client(
        &mut self,
        service: u32,
        limit: &Limit,
        client: IpAddr,
    ) -> Result<KnownClient, DataplaneError> {
        let (family, whole) = address(client);
        let key = ClientKey::new(service, family, &whole, limit.prefix(family));
        Ok(KnownClient {
            now_ns: monotonic_ns(),
            address: ip(family, key.address),
            prefix: key.prefix,
            rate: self.entry(map::LIMITS, &key)?,
            concurrent: self.entry(map::CONCURRENT, &key)?.unwrap_or(0),
            blocked: self.standing(&key)?,
        })
    }

    /// The block by hand that an address is under, and the time now.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn blocked_by_hand(&mut self, client: IpAddr) -> Result<Option<(Block, u64)>, DataplaneError> {
        let (family, whole): (_, Address) = address(client);
        let block = self.standing(&ClientKey::by_hand(family, whole))?;
        Ok(block.map(|block| (block, monotonic_ns())))
    }

    fn standing(&mut self, key: &ClientKey) -> Result<Option<Block>, DataplaneError> {
        let block: Option<Block> = self.entry(map::BLOCKED_BY_HAND, key)?;
        Ok(block.filter(|block| block.until_ns > monotonic_ns()))
    }

    fn entry<V: aya::Pod>(
        &mut self,
        name: &'static str,
        key: &ClientKey,
    ) -> Result<Option<V>, DataplaneError> {
        let found = HashMap::<_, ClientKey, V>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        match found.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(refused_entry(name)(e)),
        }
    }
}
