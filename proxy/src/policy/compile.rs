//! Services into tables.

use std::{collections::BTreeMap, net::Ipv6Addr, sync::Arc};

use sheer_common::{
    abi::{Address, Bits},
    classify::{self, Class, PORT_ROWS, Row, Tables, port_lane},
    flow::FlowKey,
    policy::{Policy as Header, Roots, SPECIAL_V4, SPECIAL_V6},
};

use super::{
    classes::{Classes, MAX_CLASSES},
    trie::{Builder, Effect, Item},
};
use crate::config::{Prefixes, Protocol, Reply, Service};

/// Why services cannot be made into tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The services overlap in too many ways.
    #[error(
        "the prefixes of these services overlap in more than {} different ways; let fewer services have prefixes \
         within each other's",
        MAX_CLASSES
    )]
    TooManyClasses,
    /// A table is full.
    #[error("these services have more prefixes than a policy can hold; leave out those within others")]
    TooManyPrefixes,
}

/// Tables of one policy.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Roots and classes; the generation is not set.
    pub header: Header,
    /// The `nodes` map.
    pub rows: Vec<Row>,
    /// The `classes` map.
    pub classes: Vec<Arc<Class>>,
    /// For each of the config's interfaces the class of the services that take it.
    pub interfaces: Vec<u32>,
}

impl Tables for Compiled {
    fn row(&self, index: u32) -> Option<&Row> {
        self.rows.get(index as usize)
    }

    fn class(&self, index: u32) -> Option<&Class> {
        self.classes.get(index as usize).map(Arc::as_ref)
    }
}

impl Compiled {
    /// The number of the first service that takes a tuple coming in by an interface of this class.
    #[must_use]
    pub fn first_match(&self, key: &FlowKey, own: bool, interface: u32) -> Option<usize> {
        let classes = classify::Classes::of(self, &self.header, key, own, interface);
        classes.first_match(self).map(|service| service as usize)
    }
}

/// Makes the tables of services, at most [`sheer_common::policy::MAX_SERVICES`]; `interfaces` are the config's.
///
/// # Errors
/// When the tables would grow beyond what a policy can hold.
pub fn compile(services: &[Service], interfaces: &[String]) -> Result<Compiled, CompileError> {
    let mut classes = Classes::new();
    let mut rows = vec![Row::default(); 2 * PORT_ROWS as usize];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        fill_ports(&mut rows, &mut classes, services, protocol)?;
    }
    let mut builder = Builder { rows: &mut rows, classes: &mut classes };
    let destinations = builder.tries(services, |s| s.destinations.as_ref(), &special_ranges())?;
    let clients = builder.tries(services, |s| s.clients.as_ref(), &Default::default())?;
    let own = builder.own_tries(services)?;
    let header = Header {
        generation: 0,
        services: services.len() as u32,
        destinations,
        own,
        clients,
        any_interface: classes.of(numbers(services, |s| s.interfaces.is_none()))?,
        by_interface: services.iter().any(|s| s.interfaces.is_some()).into(),
        takes_udp: services.iter().any(|s| s.protocol == Protocol::Udp).into(),
        local: classes.of(numbers(services, |s| s.intercept_local))?,
        same_way: services.iter().any(|s| s.reply == Reply::SameWay).into(),
        pinged: classes.of(numbers(services, |s| s.answer_ping))?,
        intercepts_local: services.iter().any(|s| s.intercept_local).into(),
        answers_ping: services.iter().any(|s| s.answer_ping).into(),
    };
    let of_interface = |name: &String| {
        classes.of(numbers(services, |s| s.interfaces.as_ref().is_none_or(|listed| listed.contains(name))))
    };
    let interfaces = interfaces.iter().map(of_interface).collect::<Result<_, _>>()?;
    Ok(Compiled { header, rows, classes: classes.into_vec(), interfaces })
}

fn numbers<'s>(
    services: &'s [Service],
    takes: impl Fn(&'s Service) -> bool + 's,
) -> impl Iterator<Item = usize> + 's {
    services.iter().enumerate().filter(move |(_, service)| takes(service)).map(|(number, _)| number)
}

/// Sweeps over the ports: between two ends of ranges the set of services does not change.
fn fill_ports(
    rows: &mut [Row],
    classes: &mut Classes,
    services: &[Service],
    protocol: Protocol,
) -> Result<(), CompileError> {
    let mut changes: BTreeMap<u32, Vec<(usize, bool)>> = BTreeMap::new();
    for (number, service) in services.iter().enumerate().filter(|(_, s)| s.protocol == protocol) {
        let mut change = |first: u16, last: u16| {
            changes.entry(first.into()).or_default().push((number, true));
            changes.entry(u32::from(last) + 1).or_default().push((number, false));
        };
        match &service.ports {
            Some(ports) => ports.ranges().for_each(|range| change(*range.start(), *range.end())),
            None => change(0, u16::MAX),
        }
    }
    let mut present = Class::EMPTY;
    let mut changes = changes.into_iter().peekable();
    while let Some((first, of_port)) = changes.next() {
        for (service, begins) in of_port {
            if begins { present.insert(service) } else { present.remove(service) }
        }
        let next = changes.peek().map_or(first, |(next, _)| *next);
        let class = classes.number(present)?;
        for port in first..next {
            let (row, lane) = port_lane(protocol.into(), port as u16);
            rows[row as usize].set_lane(lane, class);
        }
    }
    Ok(())
}

/// Items of both families.
#[derive(Clone, Debug, Default)]
struct Items {
    v4: Vec<Item>,
    v6: Vec<Item>,
}

impl Items {
    fn add(&mut self, prefixes: &Prefixes, service: u16, takes: impl Fn(u8, u8) -> bool) {
        let effect = Effect::Add(service);
        let v4 = prefixes.v4.iter().filter(|net| takes(net.prefix_len(), 32));
        self.v4.extend(v4.map(|net| {
            let bits = Address::v4(net.network().octets()).bits();
            Item { bits, length: net.prefix_len(), effect }
        }));
        let v6 = prefixes.v6.iter().filter(|net| takes(net.prefix_len(), 128));
        self.v6.extend(v6.map(|net| {
            let bits = Address::v6(net.network().octets()).bits();
            Item { bits, length: net.prefix_len(), effect }
        }));
    }
}

fn special_ranges() -> Items {
    let clear = |bits: Bits, length| Item { bits, length, effect: Effect::Clear };
    let v6 = |groups: [u16; 8]| Address::v6(Ipv6Addr::from(groups).octets()).bits();
    Items {
        v4: SPECIAL_V4.map(|(net, length)| clear(Address::v4(net).bits(), length)).to_vec(),
        v6: SPECIAL_V6.map(|(net, length)| clear(v6(net), length)).to_vec(),
    }
}

impl Builder<'_> {
    /// The tries of a dimension: services without prefixes take every address but those in `cleared`.
    fn tries<'s>(
        &mut self,
        services: &'s [Service],
        prefixes: impl Fn(&'s Service) -> Option<&'s Prefixes> + Copy + 's,
        cleared: &Items,
    ) -> Result<Roots, CompileError> {
        let outside = self.classes.of(numbers(services, move |s| prefixes(s).is_none()))?;
        let mut items = cleared.clone();
        for (number, service) in (0..).zip(services) {
            if let Some(prefixes) = prefixes(service) {
                items.add(prefixes, number, |_, _| true);
            }
        }
        Ok(Roots { v4: self.build(items.v4, outside)?, v6: self.build(items.v6, outside)? })
    }

    /// The tries of destinations that are this host's own: single addresses only.
    fn own_tries(&mut self, services: &[Service]) -> Result<Roots, CompileError> {
        let mut items = Items::default();
        for (number, service) in (0..).zip(services) {
            if let Some(prefixes) = &service.destinations {
                items.add(prefixes, number, |length, whole| length == whole);
            }
        }
        let none = classify::NO_SERVICE;
        Ok(Roots { v4: self.build(items.v4, none)?, v6: self.build(items.v6, none)? })
    }
}
