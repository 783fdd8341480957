//! The services as the tables by which a connection is classified.
//!
//! [`compile`] makes the tables once; the kernel programs and the workers then read the same ones by the same code,
//! [`sheer_common::classify`].
//!
//! An address that is left alone unless named (this host's own, loopback, multicast …) is named by an entry that
//! covers nothing else: a prefix within such a range, or exactly the host's address. A wider prefix that happens to
//! contain it does not name it.

mod classes;
mod compile;
mod ids;
mod shadow;
mod trie;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
};

use sheer_common::{
    abi::{Address, Family},
    flow::FlowKey,
    limit::Limit,
    policy::{self, NAME_LEN},
};

pub use self::{
    compile::{CompileError, Compiled, compile},
    ids::ServiceIds,
    shadow::{Shadowed, shadowed},
};
use crate::{
    config::{self, Action, Reply, SameSubnet, WhenDown},
    flow::Opening,
    route::AddressSet,
    socket::{ClientAddr, OriginalDst, SourceMode},
    upstream::Destination,
};

/// What the proxy has to know of a service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, as records show it.
    pub name: Arc<str>,
    /// Its number in counters and flows, which it keeps over reloads.
    pub id: u32,
    /// What is done with its connections.
    pub action: Action,
    /// From where the proxy connects to the server.
    pub source: SourceMode,
    /// Where it connects to.
    pub upstream: Destination,
    /// What happens to its new connections while the proxy is down.
    pub when_down: WhenDown,
    /// By which way answers go to the client.
    pub reply: Reply,
    /// What becomes of a connection whose client and server would speak past the proxy.
    pub same_subnet: SameSubnet,
    /// Connections that processes of this host open are taken too.
    pub intercept_local: bool,
    /// Pings to its addresses are answered here, while their server can be reached.
    pub answer_ping: bool,
    /// How much one client may take.
    pub limit: Limit,
    /// It has been told that a client and a server of it are neighbours.
    pub told: Arc<AtomicBool>,
}

/// One policy: services and the tables that lead to them.
#[derive(Debug)]
pub struct Policy {
    services: Vec<Service>,
    by_id: HashMap<u32, usize>,
    tables: Compiled,
}

impl Policy {
    /// The policy of a config's services; `ids` are their numbers, see [`ServiceIds`].
    ///
    /// # Errors
    /// See [`compile`].
    pub fn new(
        services: &[config::Service],
        interfaces: &[String],
        generation: u32,
        ids: &[u32],
    ) -> Result<Self, CompileError> {
        let mut tables = compile(services, interfaces)?;
        tables.header.generation = generation;
        let services = services.iter().zip(ids).map(|(service, id)| Service {
            name: service.name.as_str().into(),
            id: *id,
            action: service.action,
            source: service.source,
            upstream: service.upstream,
            when_down: service.when_down,
            reply: service.reply,
            same_subnet: service.same_subnet,
            intercept_local: service.intercept_local,
            answer_ping: service.answer_ping,
            limit: service.limit.as_ref().map(limit).unwrap_or_default(),
            told: Arc::default(),
        });
        let by_id = ids.iter().enumerate().map(|(number, id)| (*id, number)).collect();
        Ok(Self { services: services.collect(), by_id, tables })
    }

    /// What was told of a service need not be told again, if it is as it was before.
    pub fn remember_told(&mut self, before: &Self) {
        let known = |a: &Service, b: &Service| {
            (&a.name, a.source, a.upstream, a.same_subnet) == (&b.name, b.source, b.upstream, b.same_subnet)
        };
        for service in &mut self.services {
            if let Some(same) = before.services.iter().find(|other| known(service, other)) {
                service.told = Arc::clone(&same.told);
            }
        }
    }

    /// The services in the order of the config.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Compiled {
        &self.tables
    }

    /// The number of the service that takes a connection, if that is one that the proxy stands behind. Where the
    /// interface decides and nobody knows it, the first that fits by any of the listed ones.
    #[must_use]
    pub fn proxied(
        &self,
        client: ClientAddr,
        original: OriginalDst,
        by: By,
        own: &AddressSet,
    ) -> Option<usize> {
        let Compiled { header, interfaces, .. } = &self.tables;
        let (family, src) = address(client.ip());
        let (_, dst) = address(original.ip());
        let key = FlowKey::tcp(family, src, client.port(), dst, original.port());
        let (own, local) = (own.contains(&original.ip()), own.contains(&client.ip()));
        let proxied = |number: &usize| self.services.get(*number).is_some_and(|s| s.action == Action::Proxy);
        let first = |class: u32| self.tables.first_match(&key, own, class).filter(proxied);
        match by {
            By::Opening(opening) => self.by_id.get(&opening.service).copied().filter(proxied),
            // A process of this host.
            _ if local => first(header.local),
            By::Listed(place) => first(*interfaces.get(place)?),
            By::Unknown if header.by_interface != 0 => interfaces.iter().find_map(|class| first(*class)),
            By::Unknown | By::Unlisted => first(header.any_interface),
        }
    }
}

/// What is known of how a connection came in.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// What tc wrote down when it came.
    Opening(Opening),
    /// The interface at this place in the config.
    Listed(usize),
    /// An interface that is not listed.
    Unlisted,
    /// Nothing.
    Unknown,
}

/// An address as the maps hold it; an IPv4-mapped one counts as IPv4.
#[must_use]
pub fn address(ip: IpAddr) -> (Family, Address) {
    match ip.to_canonical() {
        IpAddr::V4(a) => (Family::V4, Address::v4(a.octets())),
        IpAddr::V6(a) => (Family::V6, Address::v6(a.octets())),
    }
}

fn limit(limit: &config::Limit) -> Limit {
    let interval_ns = limit.new_per_second.map_or(0, |rate| 1_000_000_000 / u64::from(rate.get()));
    Limit {
        interval_ns,
        burst_ns: interval_ns * u64::from(limit.burst.get() - 1),
        block_ns: limit.block.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)),
        concurrent: limit.concurrent.map_or(0, std::num::NonZero::get),
        prefix_v4: limit.per.v4,
        prefix_v6: limit.per.v6,
        _pad: 0,
    }
}

impl From<&Service> for policy::Service {
    fn from(service: &Service) -> Self {
        let mut name = [0; NAME_LEN];
        name.iter_mut().zip(service.name.bytes()).for_each(|(to, from)| *to = from);
        Self {
            limit: service.limit,
            name,
            id: service.id,
            action: service.action.into(),
            when_down: service.when_down.into(),
            same_way: (service.reply == Reply::SameWay).into(),
            intercept_local: service.intercept_local.into(),
            answer_ping: service.answer_ping.into(),
            _pad: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests;
