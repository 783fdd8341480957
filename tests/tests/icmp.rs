//! ICMP errors: they go to an address that the proxy only borrowed, and have to reach it all the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

use sheer_tests::{Dial, Family, Lab, Namespace, PATIENCE, Pattern, Server, Sheer, wait_until, wire};

const NARROW: u16 = 1300;
const BYTES: u64 = 2_000_000;

/// middle ── 1500 ── near ── 1300 ── far ── 1500 ── beyond: neither end can know of the narrow place but by the ICMP errors
/// of the routers beside it.
struct Narrow {
    near: Namespace,
    _far: Namespace,
    beyond: Namespace,
}

impl Narrow {
    /// Behind the middle's device `near0`; "beyond" is 10.23.0.2 and 2001:db8:23::2.
    fn behind(lab: &Lab) -> Self {
        let (near, far) = (Namespace::new("near"), Namespace::new("far"));
        for router in [&near, &far] {
            router.sysctl("net.ipv4.ip_forward", "1");
            router.sysctl("net.ipv6.conf.all.forwarding", "1");
        }
        let beyond = Namespace::new("beyond");
        wire((lab.middle(), "near0"), (&near, "eth0"), 1500, 21);
        wire((&near, "behind"), (&far, "eth0"), NARROW, 22);
        wire((&far, "behind"), (&beyond, "eth0"), 1500, 23);
        let routes = |net: u8, via4: &str, via6: &str| {
            format!("route add 10.{net}.0.0/24 via {via4}\nroute add 2001:db8:{net}::/64 via {via6}\n")
        };
        lab.middle().configure(&routes(23, "10.21.0.2", "2001:db8:21::2"));
        near.configure(&routes(23, "10.22.0.2", "2001:db8:22::2"));
        near.configure("route add default via 10.21.0.1\nroute add default via 2001:db8:21::1\n");
        far.configure("route add default via 10.22.0.1\nroute add default via 2001:db8:22::1\n");
        beyond.configure("route add default via 10.23.0.1\nroute add default via 2001:db8:23::1\n");
        Self { near, _far: far, beyond }
    }

    fn address(family: Family) -> IpAddr {
        match family {
            Family::V4 => "10.23.0.2".parse().unwrap(),
            Family::V6 => "2001:db8:23::2".parse().unwrap(),
        }
    }

    fn connect(&self, to: SocketAddr) -> TcpStream {
        self.beyond
            .run(|| sheer_tests::connect(Dial::to(to)).unwrap_or_else(|e| panic!("beyond to {to}: {e}")))
    }
}

/// What the middle has learnt of the path.
fn path_mtu(lab: &Lab, to: IpAddr) -> Option<u16> {
    let route = lab.middle().sh(&format!("ip route get {to}"));
    let (_, mtu) = route.split_once(" mtu ")?;
    mtu.split_whitespace().next()?.parse().ok()
}

fn assert_both_ways(stream: TcpStream, what: &str) {
    let back = Pattern::new(3).there_and_back(stream, BYTES);
    assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{what}");
}

#[test]
fn a_narrow_link_behind_the_servers_router_is_discovered_while_speaking_from_the_clients_address() {
    behind_the_servers_router("client");
}

#[test]
fn a_narrow_link_behind_the_servers_router_is_discovered_while_speaking_from_the_clients_port() {
    behind_the_servers_router("client-port");
}

fn behind_the_servers_router(source: &str) {
    let lab = Lab::new();
    let narrow = Narrow::behind(&lab);
    let sheer = Sheer::on(&lab).tcp("7").source(source).interfaces(&["clients0", "near0"]).start();
    for family in Family::BOTH {
        let to = Narrow::address(family);
        let server = Server::echo_at(&narrow.beyond, SocketAddr::new(to, 7));
        assert_both_ways(lab.client().connect(server.address()), &format!("{family}, source = {source}"));
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
        assert_eq!(path_mtu(&lab, to), Some(NARROW), "{family}: not by an ICMP error");
    }
    assert!(sheer.verdicts("steer_icmp") >= 2);
    assert_eq!(sheer.stop().len(), 2);
}

/// The ICMP errors go to the server's address and port, with the proxy's packets inside.
#[test]
fn a_narrow_link_behind_the_clients_router_is_discovered() {
    let lab = Lab::new();
    let narrow = Narrow::behind(&lab);
    let sheer = Sheer::on(&lab).tcp("7").interfaces(&["near0", "servers0"]).start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        assert_both_ways(narrow.connect(server.address()), &format!("{family}"));
        let client = Narrow::address(family);
        assert_eq!(server.peer_of_last(), client, "{family}");
        assert_eq!(path_mtu(&lab, client), Some(NARROW), "{family}: not by an ICMP error");
    }
    assert!(sheer.verdicts("steer_icmp") >= 2);
    assert_eq!(sheer.stop().len(), 2);
}

/// The ICMP errors name a packet from a port that Sheer takes, and yet they are the real server's.
#[test]
fn a_narrow_link_before_the_client_is_discovered_by_connections_that_are_not_proxied_too() {
    let lab = Lab::new();
    let narrow = Narrow::behind(&lab);
    let servers = Family::BOTH.map(|family| {
        Server::start(lab.server(), family, 80, |mut stream| {
            stream.read_exact(&mut [0])?;
            Pattern::new(3).send(&mut stream, BYTES).map_err(|e| std::io::Error::other(e.to_string()))
        })
    });
    let fetch = |mut stream: TcpStream| {
        stream.write_all(b"x").unwrap();
        Pattern::new(3).receive(&mut stream).map_err(|e| e.to_string())
    };
    let before = servers.each_ref().map(|server| narrow.connect(server.address()));
    let sheer = Sheer::on(&lab).tcp("80").interfaces(&["near0", "servers0"]).start();
    for (family, stream) in Family::BOTH.into_iter().zip(before) {
        assert_eq!(fetch(stream), Ok(BYTES), "{family}, past the proxy");
    }
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0);
    assert_eq!(sheer.verdicts("steer_icmp"), 0, "they are not ours");
    for (family, server) in Family::BOTH.into_iter().zip(&servers) {
        assert_eq!(fetch(narrow.connect(server.address())), Ok(BYTES), "{family}, through the proxy");
    }
    assert_eq!(sheer.stop().len(), 2);
}

/// Without the error the connection would hang until the proxy's time for connecting is over. An error that comes while
/// connect(2) still runs counts only when the SYN has been sent again, a second later.
#[test]
fn a_server_that_a_router_calls_unreachable_ends_the_connection_at_once() {
    let lab = Lab::new();
    let narrow = Narrow::behind(&lab);
    narrow.near.configure("route add unreachable 10.99.0.0/24\nroute add unreachable 2001:db8:99::/64\n");
    lab.middle().configure(
        "route add 10.99.0.0/24 via 10.21.0.2\n\
         route add 2001:db8:99::/64 via 2001:db8:21::2\n",
    );
    let sheer = Sheer::on(&lab)
        .tcp("80")
        .interfaces(&["clients0", "near0"])
        .option("--connect-timeout", "15s")
        .start();
    for to in ["10.99.0.7:80", "[2001:db8:99::7]:80"] {
        let start = Instant::now();
        // The reset may be there before connect(2) has told of the handshake.
        let dialled = lab.client().dial(Dial::to(to.parse().unwrap()));
        let error =
            dialled.and_then(|mut stream| stream.read(&mut [0])).expect_err("there is no such server");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{to}");
        let record = wait_until("the record is written", PATIENCE, || {
            sheer.records().into_iter().find(|record| record["original"] == to)
        });
        assert!(start.elapsed().as_secs() < 10, "{to} took {:?}: {record}", start.elapsed());
        assert!(record["reason"].as_str().is_some_and(|reason| reason.contains("unreachable")), "{record}");
    }
    assert!(sheer.verdicts("steer_icmp") >= 2);
    sheer.stop();
}
