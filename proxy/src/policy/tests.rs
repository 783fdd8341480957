use std::net::{IpAddr, SocketAddr};

use sheer_common::abi::Protocol as Wire;

use super::*;
use crate::config::{Prefixes, Protocol};

fn service(name: &str) -> config::Service {
    config::Service::any(name)
}

fn prefixes(list: &str) -> Option<Prefixes> {
    let mut prefixes = Prefixes::default();
    list.split(' ').for_each(|net| prefixes.push(net.parse().unwrap()));
    Some(prefixes)
}

fn to(name: &str, destinations: &str) -> config::Service {
    config::Service { destinations: prefixes(destinations), ..service(name) }
}

fn from(name: &str, clients: &str) -> config::Service {
    config::Service { clients: prefixes(clients), ..service(name) }
}

struct Table {
    compiled: Compiled,
    names: Vec<String>,
}

impl Table {
    fn of(services: &[config::Service]) -> Self {
        Self::on(services, &[])
    }

    fn on(services: &[config::Service], interfaces: &[&str]) -> Self {
        let interfaces: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
        let compiled = compile(services, &interfaces).unwrap();
        Self { compiled, names: services.iter().map(|s| s.name.clone()).collect() }
    }

    fn ask(&self, protocol: Wire, src: &str, dst: &str, own: bool, interface: u32) -> Option<&str> {
        let (src, dst): (IpAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let (family, src) = address(src);
        let (_, to) = address(dst.ip());
        let key = FlowKey::tcp(family, src, 40000, to, dst.port()).of(protocol);
        self.compiled.first_match(&key, own, interface).map(|n| self.names[n].as_str())
    }

    fn takes(&self, src: &str, dst: &str) -> Option<&str> {
        self.ask(Wire::Tcp, src, dst, false, self.compiled.header.any_interface)
    }
}

#[test]
fn the_first_service_in_file_order_wins() {
    let table =
        Table::of(&[to("narrow", "10.1.0.0/16"), to("wide", "10.0.0.0/8"), to("never", "10.1.2.0/24")]);
    assert_eq!(table.takes("192.0.2.1", "10.1.2.3:80"), Some("narrow"));
    assert_eq!(table.takes("192.0.2.1", "10.2.2.3:80"), Some("wide"));
    assert_eq!(table.takes("192.0.2.1", "11.0.0.1:80"), None);
    let turned = Table::of(&[to("wide", "10.0.0.0/8"), to("narrow", "10.1.0.0/16")]);
    assert_eq!(turned.takes("192.0.2.1", "10.1.2.3:80"), Some("wide"));
}

#[test]
fn every_condition_must_hold() {
    let web = config::Service {
        destinations: prefixes("203.0.113.0/24 2001:db8::/32"),
        ports: Some("80,8000-8099".parse().unwrap()),
        clients: prefixes("198.51.100.0/25 2001:db8:1::/64"),
        ..service("web")
    };
    let table = Table::of(&[web, service("rest")]);
    assert_eq!(table.takes("198.51.100.1", "203.0.113.9:80"), Some("web"));
    assert_eq!(table.takes("2001:db8:1::9", "[2001:db8:ffff::1]:8099"), Some("web"));
    for (src, dst) in [
        ("198.51.100.1", "203.0.113.9:81"),
        ("198.51.100.1", "203.0.114.9:80"),
        ("198.51.100.128", "203.0.113.9:80"),
        ("198.51.100.1", "203.0.113.9:8100"),
        ("2001:db8:1:1::9", "[2001:db8::1]:80"),
    ] {
        assert_eq!(table.takes(src, dst), Some("rest"), "{src} {dst}");
    }
    assert_eq!(table.ask(Wire::Udp, "198.51.100.1", "203.0.113.9:80", false, 0), None);
}

#[test]
fn ports_at_both_ends_of_the_range_count() {
    let ports = |list: &str| config::Service { ports: Some(list.parse().unwrap()), ..service(list) };
    let table = Table::of(&[ports("1"), ports("65535"), ports("100-200"), ports("150-300")]);
    for (port, expected) in [
        (1, Some("1")),
        (2, None),
        (65535, Some("65535")),
        (65534, None),
        (150, Some("100-200")),
        (201, Some("150-300")),
        (301, None),
    ] {
        assert_eq!(table.takes("192.0.2.1", &format!("192.0.2.9:{port}")), expected, "{port}");
    }
}

#[test]
fn what_is_left_alone_is_taken_only_where_an_entry_names_nothing_else() {
    let all = Table::of(&[service("any"), to("zero", "0.0.0.0/0 ::/0"), to("half", "128.0.0.0/1 fe00::/8")]);
    for dst in [
        "127.0.0.1:80",
        "0.1.2.3:80",
        "224.0.0.9:80",
        "255.255.255.255:80",
        "169.254.1.1:80",
        "[::1]:80",
        "[fe80::1]:80",
        "[ff02::1]:80",
    ] {
        let src = if dst.starts_with('[') { "2001:db8::1" } else { "192.0.2.1" };
        assert_eq!(all.takes(src, dst), None, "{dst}");
    }
    let named = Table::of(&[
        service("any"),
        to("link", "169.254.0.0/16"),
        to("host", "169.254.169.254/32"),
        to("mc", "ff05::/16"),
    ]);
    assert_eq!(named.takes("192.0.2.1", "169.254.169.254:80"), Some("link"));
    assert_eq!(named.takes("192.0.2.1", "169.255.0.1:80"), Some("any"));
    assert_eq!(named.takes("2001:db8::1", "[ff05::2]:80"), Some("mc"));
    assert_eq!(named.takes("2001:db8::1", "[ff02::2]:80"), None);
}

#[test]
fn this_hosts_own_addresses_are_taken_by_exactly_that_entry() {
    let table = Table::of(&[to("net", "203.0.113.0/24"), to("host", "203.0.113.1/32 2001:db8::1/128")]);
    let own = |dst| table.ask(Wire::Tcp, "192.0.2.1", dst, true, table.compiled.header.any_interface);
    assert_eq!(own("203.0.113.1:80"), Some("host"));
    assert_eq!(own("203.0.113.2:80"), None);
    assert_eq!(table.takes("192.0.2.1", "203.0.113.1:80"), Some("net"), "where it is not the host's own");
}

#[test]
fn interfaces_are_told_apart() {
    let at = |names: &[&str]| config::Service {
        interfaces: Some(names.iter().map(ToString::to_string).collect()),
        ..service(&names.join("+"))
    };
    let pass = config::Service { action: Action::Pass, ..at(&["a"]) };
    let table = Table::on(&[pass, at(&["b"]), at(&["a", "c"])], &["a", "b", "c", "d"]);
    let by = |n: usize| {
        let class = table.compiled.interfaces[n];
        table.ask(Wire::Tcp, "192.0.2.1", "192.0.2.9:80", false, class)
    };
    assert_eq!([by(0), by(1), by(2), by(3)], [Some("a"), Some("b"), Some("a+c"), None]);
    let header = &table.compiled.header;
    assert_eq!(header.by_interface, 1);
}

#[test]
fn deep_and_crowded_prefixes_are_all_found() {
    // Every length on one address, and neighbours that part at each bit.
    let lengths: Vec<config::Service> = (1..=128u8)
        .rev()
        .map(|len| {
            let net =
                ipnet::Ipv6Net::new("2001:db8:5555:aaaa:1234:5678:9abc:def0".parse().unwrap(), len).unwrap();
            from(&len.to_string(), &net.trunc().to_string())
        })
        .collect();
    let table = Table::of(&lengths);
    let base: u128 = "2001:db8:5555:aaaa:1234:5678:9abc:def0".parse::<std::net::Ipv6Addr>().unwrap().into();
    for bit in 1..=127u32 {
        let other = std::net::Ipv6Addr::from(base ^ (1 << (127 - bit)));
        let expected = bit.to_string();
        assert_eq!(table.takes(&other.to_string(), "[2001:db8::1]:1"), Some(expected.as_str()), "bit {bit}");
    }
}

#[test]
fn a_long_list_is_found_as_a_short_one_is() {
    // Long enough for a table, with prefixes on both sides of its edge.
    let net = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + (n.wrapping_mul(2_654_435_761) & 0x00ff_ff00));
    let nets: Vec<String> = (0..5000).map(|n| format!("{}/24", net(n))).collect();
    let many = config::Service { destinations: prefixes(&nets.join(" ")), ..service("many") };
    let table = Table::of(&[
        to("one", "10.7.7.7/32"),
        many.clone(),
        to("wide", "12.0.0.0/7"),
        to("half", "10.128.0.0/15"),
    ]);
    let listed = many.destinations.unwrap();
    for n in (0..=u32::from(u16::MAX)).step_by(16) {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n * 0x971);
        let expected = match IpAddr::from(address) {
            ip if ip == "10.7.7.7".parse::<IpAddr>().unwrap() => Some("one"),
            ip if listed.covering(ip).is_some() => Some("many"),
            _ if matches!(address.octets()[0], 12 | 13) => Some("wide"),
            _ if address.octets()[0] == 10 && matches!(address.octets()[1], 128 | 129) => Some("half"),
            _ => None,
        };
        assert_eq!(table.takes("192.0.2.1", &format!("{address}:1")), expected, "{address}");
    }
    assert_eq!(table.takes("192.0.2.1", "10.7.7.7:1"), Some("one"));
    assert_eq!(table.takes("192.0.2.1", "127.0.0.1:1"), None);
}

#[test]
fn services_that_never_match_are_named_with_the_one_that_is_in_their_way() {
    let ports =
        |name: &str, list: &str| config::Service { ports: Some(list.parse().unwrap()), ..service(name) };
    let shadows = |services: &[config::Service]| -> Vec<(usize, usize)> {
        shadowed(services, &[]).unwrap().iter().map(|s| (s.service, s.by)).collect()
    };
    assert_eq!(shadows(&[service("a"), ports("b", "80"), to("c", "10.0.0.0/8")]), [(1, 0), (2, 0)]);
    assert_eq!(shadows(&[ports("a", "80-90"), ports("b", "85-95"), ports("c", "86,87")]), [(2, 0)]);
    assert_eq!(shadows(&[to("a", "10.0.0.0/8"), from("b", "10.0.0.0/8")]), []);
    assert_eq!(shadows(&[to("a", "10.0.0.0/8"), to("b", "10.5.0.0/16 10.6.0.0/31")]), [(1, 0)]);
    assert_eq!(shadows(&[to("a", "10.0.0.0/8"), to("b", "10.6.0.1/32")]), [], "it may be the host's own");
    assert_eq!(shadows(&[to("a", "10.0.0.0/8"), to("b", "10.5.0.0/16 11.0.0.0/8")]), []);
    assert_eq!(
        shadows(&[service("any"), to("loopback", "127.0.0.0/8")]),
        [],
        "the first one leaves it alone"
    );
    let udp = config::Service { protocol: Protocol::Udp, action: Action::Drop, ..service("udp") };
    assert_eq!(shadows(&[service("tcp"), udp]), []);
}

#[test]
fn a_limit_is_put_in_the_programs_terms() {
    let limit = config::Limit {
        new_per_second: 100.try_into().ok(),
        burst: 200.try_into().unwrap(),
        concurrent: None,
        block: Some(std::time::Duration::from_secs(60)),
        per: Default::default(),
    };
    let made = super::limit(&limit);
    assert_eq!((made.interval_ns, made.burst_ns, made.block_ns), (10_000_000, 1_990_000_000, 60_000_000_000));
    assert_eq!((made.concurrent, made.prefix_v4, made.prefix_v6), (0, 32, 128));
}
