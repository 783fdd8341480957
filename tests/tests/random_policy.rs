//! Random policies and random packets: the loaded program's answer beside that of a plain reference.
//!
//! `SEED=N` repeats a run; the seed is in the message of every failure.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sheer::{
    config::{Action, Prefixes, Protocol, Service},
    dataplane::Dataplane,
    explain::reference::{Packet, first_match},
    route::AddressSet,
    socket::bind_listeners,
};
use sheer_common::{policy::is_special, verdict::Verdict};
use sheer_tests::{Frame, Lab, MARK, bring_into_force, load_programs};

/// Services of each policy in turn; the last is as long as can be.
const SIZES: [usize; 8] = [1, 3, 12, 40, 64, 65, 300, 4096];
const POLICIES: usize = 64;
const PACKETS: usize = 1600;

#[test]
fn the_programs_decide_as_the_reference_does() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("seed {seed}");
    let lab = Lab::builder().clients(2).build();
    let names = lab.uplinks();
    let number = |name: &String| -> u32 {
        let shown = lab.middle().sh(&format!("ip -oneline link show {name}"));
        shown.split(':').next().unwrap().parse().unwrap()
    };
    let numbers: Vec<u32> = names.iter().map(number).collect();
    let asked = lab.middle().run(|| {
        let mut random = Rng::with_seed(seed);
        let mut bench = Bench::new(&names[..2], &numbers);
        (0..POLICIES).map(|round| bench.round(&mut random, SIZES[round % SIZES.len()], seed)).sum::<usize>()
    });
    assert!(asked >= 100_000, "only {asked} packets were compared");
}

struct Bench {
    dataplane: Dataplane,
    /// The first ones are listed, the last is not.
    listed: Vec<String>,
    numbers: Vec<u32>,
    own: AddressSet,
    generation: u32,
    _listeners: Vec<sheer::socket::Listeners>,
}

impl Bench {
    fn new(listed: &[String], numbers: &[u32]) -> Self {
        let own: AddressSet = ["10.1.2.3", "10.1.2.4", "203.0.113.1", "2001:db8::1", "fe80::7"]
            .map(|a| a.parse().unwrap())
            .into();
        let mut dataplane = load_programs(&own);
        let listeners = bind_listeners(1, MARK, 16).unwrap();
        dataplane.set_listeners(&listeners).unwrap();
        let (listed, numbers) = (listed.to_vec(), numbers.to_vec());
        Self { dataplane, listed, numbers, own, generation: 0, _listeners: listeners }
    }

    /// A policy, and packets about its edges; how many were compared.
    fn round(&mut self, random: &mut Rng, size: usize, seed: u64) -> usize {
        let services: Vec<Service> = (0..size).map(|n| service(random, n, size, &self.listed)).collect();
        self.generation += 1;
        let listed = (&self.listed[..], &self.numbers[..self.listed.len()]);
        bring_into_force(&mut self.dataplane, &services, listed, self.generation);
        for n in 0..PACKETS {
            let protocol = if random.u8(..8) == 0 { Protocol::Udp } else { Protocol::Tcp };
            let v6 = random.bool();
            let to = SocketAddr::new(
                near(random, &services, |s| s.destinations.as_ref(), v6),
                port(random, &services),
            );
            let from = near(random, &services, |s| s.clients.as_ref(), v6);
            let interface = random.usize(..self.numbers.len());
            self.compare(
                &services,
                &Packet { protocol, from, to, interface: None },
                interface,
                (seed, size, n),
            );
        }
        PACKETS
    }

    fn compare(
        &mut self,
        services: &[Service],
        packet: &Packet<'_>,
        interface: usize,
        at: (u64, usize, usize),
    ) {
        let by = self.listed.get(interface).cloned();
        let packet = Packet { interface: by.as_deref(), ..*packet };
        let frame = Frame::syn(SocketAddr::new(packet.from, 40000), packet.to);
        let frame = if packet.protocol == Protocol::Udp { frame.udp() } else { frame };
        let told = self.dataplane.explain(&frame.bytes(), self.numbers[interface]).unwrap();
        let expected = first_match(services, &self.own, &packet);
        let generation =
            if told.verdict != 0 && told.generation == 0 { self.generation } else { told.generation };
        let (seed, size, n) = at;
        let found = told.service.checked_sub(1).map(|n| n as usize);
        assert_eq!(
            found,
            expected,
            "SEED={seed}, {size} services, packet {n}: {packet:?}\nfound {:#?}\nexpected {:#?}",
            found.map(|n| &services[n]),
            expected.map(|n| &services[n])
        );
        assert_eq!(generation, self.generation, "SEED={seed}");
        let verdict = Verdict::ALL[told.verdict as usize - 1];
        assert_eq!(verdict, self.verdict(services, expected, &packet), "SEED={seed}, packet {n}: {packet:?}");
    }

    fn verdict(&self, services: &[Service], expected: Option<usize>, packet: &Packet<'_>) -> Verdict {
        let udp_is_looked_at = services.iter().any(|s| s.protocol == Protocol::Udp);
        match expected.map(|n| services[n].action) {
            Some(Action::Proxy) => Verdict::SteerNew,
            Some(Action::Pass) => Verdict::PassService,
            Some(Action::Drop) => Verdict::DropService,
            None if packet.protocol == Protocol::Udp && !udp_is_looked_at => Verdict::PassNoService,
            None => {
                let (family, address) = sheer::policy::address(packet.to.ip());
                let alone = self.own.contains(&packet.to.ip()) || is_special(family, &address);
                if alone { Verdict::PassLocal } else { Verdict::PassNoService }
            }
        }
    }
}

fn service(random: &mut Rng, number: usize, size: usize, interfaces: &[String]) -> Service {
    // In long policies most services have to be narrow, or the first few would take everything.
    let rare = |random: &mut Rng| random.usize(..size.min(40) + 2) == 0;
    let protocol = if random.u8(..6) == 0 { Protocol::Udp } else { Protocol::Tcp };
    let action = match (random.u8(..4), protocol) {
        (0, _) => Action::Drop,
        (1, _) | (_, Protocol::Udp) => Action::Pass,
        _ => Action::Proxy,
    };
    Service {
        protocol,
        destinations: (!rare(random)).then(|| prefixes(random)),
        ports: (!rare(random)).then(|| ports(random)),
        clients: random.bool().then(|| prefixes(random)),
        interfaces: (random.u8(..5) == 0).then(|| vec![random.choice(interfaces).unwrap().clone()]),
        action,
        intercept_local: random.bool(),
        ..Service::any(&format!("s{number}"))
    }
}

fn prefixes(random: &mut Rng) -> Prefixes {
    let mut list = Prefixes::default();
    for _ in 0..=random.usize(..12) {
        list.push(prefix(random));
    }
    list
}

/// Often within one another, often whole addresses, now and then in what is left alone.
fn prefix(random: &mut Rng) -> IpNet {
    if random.bool() {
        let bases = [
            "10.1.2.3",
            "10.1.2.4",
            "10.1.0.0",
            "203.0.113.1",
            "127.0.0.1",
            "169.254.3.3",
            "224.1.1.1",
            "0.1.0.0",
        ];
        let mut bits = u32::from(random.choice(&bases).unwrap().parse::<Ipv4Addr>().unwrap());
        bits ^= random.u32(..) >> random.u32(0..32) & random.u32(..);
        let length = *random.choice(&[0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 32]).unwrap();
        return Ipv4Net::new(bits.into(), length).unwrap().trunc().into();
    }
    let bases = ["2001:db8::1", "2001:db8:1::", "fe80::7", "ff02::1", "::1", "2001:db8:ffff:ffff:8000::"];
    let mut bits = u128::from(random.choice(&bases).unwrap().parse::<Ipv6Addr>().unwrap());
    bits ^= random.u128(..) >> random.u32(16..128) & random.u128(..);
    let length =
        *random.choice(&[0, 3, 8, 10, 16, 31, 32, 33, 48, 56, 63, 64, 65, 96, 127, 128, 128]).unwrap();
    Ipv6Net::new(bits.into(), length).unwrap().trunc().into()
}

fn ports(random: &mut Rng) -> sheer::config::Ports {
    let range = |random: &mut Rng| {
        let from = random.u16(1..200);
        match random.u8(..8) {
            0 => format!("{from}-65535"),
            1 => "65535".to_owned(),
            2 | 3 => from.to_string(),
            _ => format!("{from}-{}", from + random.u16(..60)),
        }
    };
    let list: Vec<String> = (0..=random.usize(..3)).map(|_| range(random)).collect();
    list.join(",").parse().unwrap()
}

fn port(random: &mut Rng, services: &[Service]) -> u16 {
    let of_service = random.choice(services).and_then(|s| s.ports.as_ref());
    let range = of_service.and_then(|ports| ports.ranges().next().cloned());
    match (range, random.u8(..4)) {
        (Some(range), 0) => *range.start(),
        (Some(range), 1) => range.end().saturating_add(1),
        (Some(range), 2) => range.start().saturating_sub(1),
        _ => random.u16(..260),
    }
}

/// An address in or beside a prefix of some service.
fn near<'s>(
    random: &mut Rng,
    services: &'s [Service],
    of: fn(&'s Service) -> Option<&'s Prefixes>,
    v6: bool,
) -> IpAddr {
    let list = random.choice(services).and_then(of);
    if v6 {
        let net = list.and_then(|list| random.choice(&list.v6)).copied();
        let net = net.unwrap_or_else(|| "2001:db8::/32".parse().unwrap());
        let host = (random.u128(..) >> random.u32(1..128)) & u128::from(net.hostmask());
        let mut bits = u128::from(net.network()) | host;
        if random.u8(..4) == 0 {
            bits ^= 1 << random.u32(..128);
        }
        return Ipv6Addr::from(bits).into();
    }
    let net = list.and_then(|list| random.choice(&list.v4)).copied();
    let net = net.unwrap_or_else(|| "10.1.0.0/16".parse().unwrap());
    let host = (random.u32(..) >> random.u32(0..32)) & u32::from(net.hostmask());
    let mut bits = u32::from(net.network()) | host;
    if random.u8(..4) == 0 {
        bits ^= 1 << random.u32(..32);
    }
    Ipv4Addr::from(bits).into()
}
