//! First match in plain loops over the config: a second opinion on what the tables say, and the reason for each miss.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sheer_common::policy::{SPECIAL_V4, SPECIAL_V6};

use crate::{
    config::{Prefixes, Protocol, Service},
    route::AddressSet,
};

/// What of a packet decides who takes it. An IPv4-mapped address counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The client.
    pub from: IpAddr,
    /// Whom it asks for.
    pub to: SocketAddr,
    /// The config's interface that it comes in by; none: another one.
    pub interface: Option<&'a str>,
}

/// What a service looks at, in the order in which it is asked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The transport protocol.
    Protocol,
    /// Whom the client asks for.
    Destination,
    /// The port that it asks for.
    Port,
    /// The client.
    Client,
    /// The interface.
    Interface,
    /// That a process of this host asks.
    Local,
}

/// What kind of address a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Of somebody else.
    Foreign,
    /// This host's own: taken only by an entry that is exactly this address.
    Own,
    /// In a range that is left alone: taken only by an entry within the range.
    Special(IpNet),
}

impl Destination {
    /// Of an address.
    #[must_use]
    pub fn of(address: IpAddr, own: &AddressSet) -> Self {
        let address = address.to_canonical();
        if own.contains(&address) {
            return Self::Own;
        }
        special_ranges().find(|range| range.contains(&address)).map_or(Self::Foreign, Self::Special)
    }

    /// Whether an entry may take an address of this kind that it covers.
    fn may_be_taken_by(self, entry: IpNet) -> bool {
        match self {
            Self::Foreign => true,
            Self::Own => entry.prefix_len() == entry.max_prefix_len(),
            Self::Special(range) => range.contains(&entry),
        }
    }
}

/// The ranges that are left alone.
fn special_ranges() -> impl Iterator<Item = IpNet> {
    // A range of these lists that were no prefix would be left out; a test sees to it that there is none.
    let v4 = SPECIAL_V4.into_iter().filter_map(|(net, len)| Some(Ipv4Net::new(net.into(), len).ok()?.into()));
    let v6 = SPECIAL_V6.into_iter().filter_map(|(net, len)| Some(Ipv6Net::new(net.into(), len).ok()?.into()));
    v4.chain(v6)
}

/// The number of the first service that takes a packet, in the order of the config. `own` are this host's addresses.
#[must_use]
pub fn first_match(services: &[Service], own: &AddressSet, packet: &Packet<'_>) -> Option<usize> {
    let destination = Destination::of(packet.to.ip(), own);
    let local = own.contains(&packet.from);
    services.iter().position(|service| first_miss(service, destination, local, packet).is_none())
}

/// The first thing about a packet that a service does not take; none: it takes the packet. `destination` is the
/// [`Destination::of`] the packet; `local`: its client's address is one of this host's own.
#[must_use]
pub fn first_miss(
    service: &Service,
    destination: Destination,
    local: bool,
    packet: &Packet<'_>,
) -> Option<Dimension> {
    if service.protocol != packet.protocol {
        return Some(Dimension::Protocol);
    }
    let taken = match &service.destinations {
        None => destination == Destination::Foreign,
        Some(listed) => covering(listed, packet.to.ip()).any(|entry| destination.may_be_taken_by(entry)),
    };
    if !taken {
        return Some(Dimension::Destination);
    }
    if service.ports.as_ref().is_some_and(|ports| !ports.ranges().any(|r| r.contains(&packet.to.port()))) {
        return Some(Dimension::Port);
    }
    if service.clients.as_ref().is_some_and(|listed| covering(listed, packet.from).next().is_none()) {
        return Some(Dimension::Client);
    }
    if local {
        return (!service.intercept_local).then_some(Dimension::Local);
    }
    let by = |listed: &Vec<String>| packet.interface.is_some_and(|name| listed.iter().any(|l| l == name));
    if service.interfaces.as_ref().is_some_and(|listed| !by(listed)) {
        return Some(Dimension::Interface);
    }
    None
}

/// The entries that cover an address.
pub(super) fn covering(listed: &Prefixes, address: IpAddr) -> impl Iterator<Item = IpNet> + '_ {
    let (v4, v6) = match address.to_canonical() {
        IpAddr::V4(a) => (Some(a), None),
        IpAddr::V6(a) => (None, Some(a)),
    };
    let of_v4 = v4.into_iter().flat_map(|a| listed.v4.iter().filter(move |net| net.contains(&a)));
    let of_v6 = v6.into_iter().flat_map(|a| listed.v6.iter().filter(move |net| net.contains(&a)));
    of_v4.map(|net| IpNet::V4(*net)).chain(of_v6.map(|net| IpNet::V6(*net)))
}

/// The longest entry by which a service takes a destination.
pub(super) fn entry(listed: &Prefixes, address: IpAddr, destination: Destination) -> Option<IpNet> {
    let taking = covering(listed, address).filter(|entry| destination.may_be_taken_by(*entry));
    taking.max_by_key(IpNet::prefix_len)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use sheer_common::flow::FlowKey;

    use super::*;
    use crate::{
        explain::tests::{config, from, on, ports, prefixes, service, to, udp},
        policy::{address, compile},
    };

    fn takes(
        services: &[Service],
        own: &[&str],
        from: &str,
        to: &str,
        interface: Option<&str>,
    ) -> Option<usize> {
        let packet = Packet {
            protocol: Protocol::Tcp,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            interface,
        };
        let own = own.iter().map(|a| a.parse().unwrap()).collect();
        first_match(services, &own, &packet)
    }

    #[test]
    fn every_range_that_is_left_alone_is_a_prefix() {
        assert_eq!(special_ranges().count(), SPECIAL_V4.len() + SPECIAL_V6.len());
        assert!(special_ranges().all(|range| range == range.trunc()));
    }

    #[test]
    fn the_first_service_of_which_nothing_misses_wins() {
        let services = [
            udp("dns"),
            ports("ssh", "22"),
            to("net", "10.0.0.0/8"),
            from("lan", "192.168.0.0/16 fd00::/8"),
            on("left", &["eth0"]),
            service("rest"),
        ];
        let by = |from, to, interface| takes(&services, &[], from, to, interface);
        assert_eq!(by("192.0.2.1", "203.0.113.1:22", Some("eth0")), Some(1));
        assert_eq!(by("192.0.2.1", "10.9.9.9:80", Some("eth0")), Some(2));
        assert_eq!(by("192.168.7.7", "203.0.113.1:80", Some("eth0")), Some(3));
        assert_eq!(by("fd00::1", "[2001:db8::1]:80", None), Some(3));
        assert_eq!(by("192.0.2.1", "203.0.113.1:80", Some("eth0")), Some(4));
        assert_eq!(by("192.0.2.1", "203.0.113.1:80", Some("eth1")), Some(5));
        assert_eq!(by("192.0.2.1", "203.0.113.1:80", None), Some(5));
        assert_eq!(by("::ffff:192.168.7.7", "[::ffff:203.0.113.1]:80", None), Some(3));
    }

    #[test]
    fn own_and_special_destinations_are_taken_only_by_an_entry_of_their_own() {
        let services = [
            service("any"),
            to("zero", "0.0.0.0/0 ::/0"),
            to("link", "169.254.0.0/16"),
            to("host", "203.0.113.1/32 127.0.0.1/32"),
        ];
        let own = ["203.0.113.1", "203.0.113.2", "127.0.0.1"];
        let by = |to| takes(&services, &own, "192.0.2.1", to, None);
        assert_eq!(by("203.0.113.1:80"), Some(3));
        assert_eq!(by("203.0.113.2:80"), None);
        assert_eq!(by("127.0.0.1:80"), Some(3));
        assert_eq!(by("127.0.0.2:80"), None);
        assert_eq!(by("169.254.1.1:80"), Some(2));
        assert_eq!(by("224.0.0.1:80"), None);
        assert_eq!(by("8.8.8.8:80"), Some(0));
        assert_eq!(takes(&services, &[], "2001:db8::1", "[ff02::1]:80", None), None);
        assert_eq!(takes(&services, &[], "2001:db8::1", "[2001:db8::2]:80", None), Some(0));
    }

    #[test]
    fn the_entry_is_the_longest_that_may_take_the_address() {
        let listed = prefixes("10.0.0.0/8 10.1.0.0/16 10.2.0.0/16").unwrap();
        let of = |address: &str| entry(&listed, address.parse().unwrap(), Destination::Foreign);
        assert_eq!(of("10.1.1.1").unwrap().to_string(), "10.1.0.0/16");
        assert_eq!(of("10.9.1.1").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(of("11.9.1.1"), None);
    }

    /// Marsaglia's xorshift: the same cases in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }

        fn one<T: Copy>(&mut self, of: &[T]) -> T {
            of[self.below(of.len())]
        }

        fn perhaps<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(2) == 0).then(|| make(self))
        }

        /// Addresses that are close to each other, special ones, and this host's own.
        fn address(&mut self) -> IpAddr {
            let near = ["10.0.0.0", "203.0.113.0", "169.254.1.0", "127.0.0.0", "2001:db8::", "fe80::", "::"];
            match self.one(&near).parse().unwrap() {
                IpAddr::V4(a) => Ipv4Addr::from(u32::from(a) + self.below(8) as u32).into(),
                IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) + self.below(8) as u128).into(),
            }
        }

        fn prefixes(&mut self) -> Prefixes {
            let mut listed = Prefixes::default();
            for _ in 0..=self.below(3) {
                let address = self.address();
                let most = if address.is_ipv4() { 32 } else { 128 };
                let length = if self.below(3) == 0 { self.below(most + 1) } else { most - self.below(4) };
                listed.push(IpNet::new(address, length as u8).unwrap().trunc());
            }
            listed
        }

        fn service(&mut self) -> Service {
            Service {
                protocol: self.one(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]),
                destinations: self.perhaps(Self::prefixes),
                ports: self
                    .perhaps(|dice| dice.one(&["80", "80-82,443", "1-79", "81-65535"]).parse().unwrap()),
                clients: self.perhaps(Self::prefixes),
                interfaces: self.perhaps(|dice| vec![dice.one(&["eth0", "eth1"]).to_owned()]),
                intercept_local: self.below(2) == 0,
                ..service("any")
            }
        }
    }

    #[test]
    fn the_tables_say_what_the_loops_say() {
        let mut dice = Dice(0x5eed);
        let own: AddressSet = ["10.0.0.1", "203.0.113.2", "127.0.0.1", "2001:db8::3", "fe80::1", "::1"]
            .map(|a| a.parse().unwrap())
            .into();
        let mut taken = 0;
        for round in 0..300 {
            let services: Vec<Service> = (0..=dice.below(12)).map(|_| dice.service()).collect();
            let config = config(&services);
            let tables = compile(&config.services, &config.interfaces).unwrap();
            for _ in 0..100 {
                let to = SocketAddr::new(dice.address(), dice.one(&[1, 79, 80, 81, 82, 83, 443, 65535]));
                let from = dice.address();
                if from.is_ipv4() != to.is_ipv4() {
                    continue;
                }
                let at = dice.below(3);
                let interface = config.interfaces.get(at).map(String::as_str);
                let packet =
                    Packet { protocol: dice.one(&[Protocol::Tcp, Protocol::Udp]), from, to, interface };
                let ((family, src), (_, dst)) = (address(from), address(to.ip()));
                let key = FlowKey::tcp(family, src, 40000, dst, to.port()).of(packet.protocol.into());
                let class = match tables.interfaces.get(at) {
                    _ if own.contains(&from) => tables.header.local,
                    Some(class) => *class,
                    None => tables.header.any_interface,
                };
                let by_tables = tables.first_match(&key, own.contains(&to.ip()), class);
                assert_eq!(
                    first_match(&config.services, &own, &packet),
                    by_tables,
                    "round {round}: {packet:?} {services:#?}"
                );
                taken += usize::from(by_tables.is_some());
            }
        }
        assert!(taken > 1000, "only {taken} packets were taken");
    }
}
