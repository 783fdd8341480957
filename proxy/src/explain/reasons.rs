//! Why each service before the one that matched did not, and by what the one did.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::reference::{Destination, Dimension, Packet, entry, first_miss};
use crate::{
    config::{Action, Config, Ports, Prefixes, Protocol, Service, WhenDown},
    route::AddressSet,
};

/// Services that are told one by one; the rest is counted.
const SHOWN: usize = 10;

/// Entries of a list that are told.
const LISTED: usize = 3;

/// How the services were gone through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// How many there are.
    pub count: usize,
    /// Those that missed and are not in `missed`, by what.
    pub others: BTreeMap<Dimension, usize>,
    /// The last ones before the one that matched; where none did, those that came closest.
    pub missed: Vec<Missed>,
    /// The one that matched.
    pub taken: Option<Taken>,
}

/// A service that a packet missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// Its place in the config, from one.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// By what.
    pub miss: Miss,
}

/// The first thing that a service does not take, and what it takes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Miss {
    /// The transport protocol.
    Protocol {
        /// The service's.
        takes: Protocol,
    },
    /// Whom the client asks for.
    Destination {
        /// The service's entries; none: everybody but addresses that are left alone.
        takes: Option<List>,
    },
    /// The port.
    Port {
        /// The service's, ranges as `8000-8099`.
        takes: List,
    },
    /// The client.
    Client {
        /// The service's entries.
        takes: List,
    },
    /// The interface.
    Interface {
        /// The service's.
        takes: List,
    },
    /// A process of this host asks.
    Local,
}

/// The beginning of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The first ones.
    pub first: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

impl List {
    fn of<T: ToString>(count: usize, items: impl Iterator<Item = T>) -> Self {
        // One more takes no more room than to say that there is one more.
        let shown = if count == LISTED + 1 { count } else { LISTED };
        let first: Vec<_> = items.take(shown).map(|item| item.to_string()).collect();
        Self { more: count.saturating_sub(first.len()), first }
    }

    /// Those of the address's own family first.
    fn of_prefixes(listed: &Prefixes, address: IpAddr) -> Self {
        let v4 = listed.v4.iter().map(|net| IpNet::V4(*net));
        let v6 = listed.v6.iter().map(|net| IpNet::V6(*net));
        match address {
            IpAddr::V4(_) => Self::of(listed.len(), v4.chain(v6)),
            IpAddr::V6(_) => Self::of(listed.len(), v6.chain(v4)),
        }
    }

    fn of_ports(ports: &Ports) -> Self {
        let shown = |range: &std::ops::RangeInclusive<u16>| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        Self::of(ports.ranges().count(), ports.ranges().map(shown))
    }
}

/// The service that matched, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its place in the config, from one.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// What becomes of its connections while nobody is there.
    pub when_down: WhenDown,
    /// The longest entry for the destination; none: any.
    pub destination: Option<IpNet>,
    /// The range of ports; none: any.
    pub port: Option<(u16, u16)>,
    /// The longest entry for the client; none: any.
    pub client: Option<IpNet>,
    /// The interface; none: any.
    pub interface: Option<String>,
}

impl Services {
    /// Goes through a config's services up to the one that the programs found, by its index.
    pub(super) fn of(config: &Config, own: &AddressSet, packet: &Packet<'_>, found: Option<usize>) -> Self {
        let services = &config.services;
        let destination = Destination::of(packet.to.ip(), own);
        let earlier = services.iter().take(found.unwrap_or(services.len()));
        let misses = earlier.enumerate().filter_map(|(index, service)| {
            first_miss(service, destination, own.contains(&packet.from), packet)
                .map(|dimension| (index, dimension))
        });
        let mut misses: Vec<_> = misses.collect();
        if found.is_none() {
            // Stable, so that among equals the last ones of the config come last.
            misses.sort_by_key(|(_, dimension)| *dimension);
        }
        let mut told = misses.split_off(misses.len().saturating_sub(SHOWN));
        told.sort_unstable();
        let mut others = BTreeMap::new();
        for (_, dimension) in misses {
            *others.entry(dimension).or_default() += 1;
        }
        let missed = told.into_iter().map(|(index, dimension)| Missed {
            number: index + 1,
            name: services[index].name.clone(),
            miss: miss(&services[index], dimension, packet.from, packet.to),
        });
        let taken = found.and_then(|index| Some((index, services.get(index)?)));
        Self {
            count: services.len(),
            others,
            missed: missed.collect(),
            taken: taken.map(|(index, service)| taken_by(index, service, destination, packet)),
        }
    }
}

fn miss(service: &Service, dimension: Dimension, from: IpAddr, to: SocketAddr) -> Miss {
    let prefixes =
        |listed: &Option<Prefixes>, address| listed.as_ref().map(|listed| List::of_prefixes(listed, address));
    match dimension {
        Dimension::Protocol => Miss::Protocol { takes: service.protocol },
        Dimension::Destination => Miss::Destination { takes: prefixes(&service.destinations, to.ip()) },
        Dimension::Port => {
            Miss::Port { takes: service.ports.as_ref().map(List::of_ports).unwrap_or_default() }
        }
        Dimension::Client => Miss::Client { takes: prefixes(&service.clients, from).unwrap_or_default() },
        Dimension::Local => Miss::Local,
        Dimension::Interface => {
            let listed = service.interfaces.as_deref().unwrap_or_default();
            Miss::Interface { takes: List::of(listed.len(), listed.iter()) }
        }
    }
}

fn taken_by(index: usize, service: &Service, destination: Destination, packet: &Packet<'_>) -> Taken {
    let port = packet.to.port();
    let range = service.ports.as_ref().and_then(|ports| ports.ranges().find(|range| range.contains(&port)));
    let listed = service.interfaces.as_ref().and(packet.interface);
    Taken {
        number: index + 1,
        name: service.name.clone(),
        action: service.action,
        when_down: service.when_down,
        destination: service.destinations.as_ref().and_then(|d| entry(d, packet.to.ip(), destination)),
        port: range.map(|range| (*range.start(), *range.end())),
        client: service.clients.as_ref().and_then(|c| entry(c, packet.from, Destination::Foreign)),
        interface: listed.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{config, from, on, ports, service, to, udp};

    fn asked(services: &[Service], own: &AddressSet, found: Option<usize>) -> Services {
        let packet = Packet {
            protocol: Protocol::Tcp,
            from: "198.51.100.10".parse().unwrap(),
            to: "203.0.113.10:443".parse().unwrap(),
            interface: Some("eth0"),
        };
        Services::of(&config(services), own, &packet, found)
    }

    fn list(first: &[&str], more: usize) -> List {
        List { first: first.iter().map(ToString::to_string).collect(), more }
    }

    #[test]
    fn each_miss_says_what_the_service_takes_there() {
        let services = [
            udp("dns"),
            to("net", "2001:db8::/32 10.0.0.0/8"),
            ports("ssh", "22,8000-8099"),
            from("lan", "10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16 10.5.0.0/16"),
            on("left", &["eth1"]),
            Service { ports: Some("1-1000".parse().unwrap()), ..to("web", "0.0.0.0/0 203.0.113.0/24") },
        ];
        let answer = asked(&services, &AddressSet::new(), Some(5));
        let misses: Vec<_> = answer.missed.iter().map(|missed| missed.miss.clone()).collect();
        assert_eq!(
            misses,
            [
                Miss::Protocol { takes: Protocol::Udp },
                Miss::Destination { takes: Some(list(&["10.0.0.0/8", "2001:db8::/32"], 0)) },
                Miss::Port { takes: list(&["22", "8000-8099"], 0) },
                Miss::Client { takes: list(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"], 2) },
                Miss::Interface { takes: list(&["eth1"], 0) },
            ]
        );
        let taken = answer.taken.unwrap();
        assert_eq!((taken.number, taken.name.as_str(), taken.port), (6, "web", Some((1, 1000))));
        assert_eq!(taken.destination.unwrap().to_string(), "203.0.113.0/24");
        assert_eq!((taken.client, taken.interface), (None, None));
    }

    #[test]
    fn of_many_services_the_last_ones_before_the_match_are_told() {
        let mut services: Vec<Service> = (0..400).map(|n| to(&n.to_string(), "10.0.0.0/8")).collect();
        services.extend((0..12).map(|n| ports(&n.to_string(), "22")));
        services.push(service("rest"));
        let answer = asked(&services, &AddressSet::new(), Some(412));
        assert_eq!(answer.others, [(Dimension::Destination, 400), (Dimension::Port, 2)].into());
        let told: Vec<_> = answer.missed.iter().map(|missed| missed.number).collect();
        assert_eq!(told, (403..=412).collect::<Vec<_>>());
    }

    #[test]
    fn where_none_matches_those_are_told_that_came_closest() {
        let mut services: Vec<Service> = (0..5).map(|n| ports(&n.to_string(), "22")).collect();
        services.extend((0..12).map(|n| to(&n.to_string(), "10.0.0.0/8")));
        let answer = asked(&services, &AddressSet::new(), None);
        assert_eq!(answer.others, [(Dimension::Destination, 7)].into());
        let told: Vec<_> = answer.missed.iter().map(|missed| missed.number).collect();
        assert_eq!(told, [1, 2, 3, 4, 5, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn an_address_that_is_left_alone_is_a_miss_of_services_without_entries() {
        let own = ["203.0.113.10".parse().unwrap()].into();
        let answer = asked(&[service("any"), to("net", "203.0.113.0/24")], &own, None);
        let misses: Vec<_> = answer.missed.into_iter().map(|missed| missed.miss).collect();
        let net = Miss::Destination { takes: Some(list(&["203.0.113.0/24"], 0)) };
        assert_eq!(misses, [Miss::Destination { takes: None }, net]);
    }
}
