//! Limits, loops, and this host's own addresses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use sheer_tests::{Dial, Family, Lab, PATIENCE, Server, Sheer, read, wait_until};
use socket2::{Domain, Socket, Type};

#[test]
fn beyond_the_connection_limit_new_ones_wait_and_it_is_said() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("7").option("--max-connections", "2").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut held: Vec<_> = (0..2).map(|_| lab.client().connect(server.address())).collect();
    for stream in &mut held {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let mut third = lab.client().connect(server.address());
    third.write_all(b"y").unwrap();
    sheer.process().wait_for_stderr("that the limit is reached", |line| line.contains("--max-connections"));
    assert_eq!(server.count(), 2, "the third one has to wait");
    held.pop();
    let mut back = [0];
    third.read_exact(&mut back).unwrap();
    assert_eq!((&back, server.count()), (b"y", 3));
    drop((held, third));
    assert_eq!(sheer.stop().len(), 3);
}

#[test]
fn connections_to_this_hosts_own_addresses_are_left_alone() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let own = SocketAddr::new(lab.client().gateway(family), 80);
        let listener = lab.middle().run(|| std::net::TcpListener::bind(own).unwrap());
        let stream = lab.client().connect(own);
        let (_accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, stream.local_addr().unwrap(), "{family}");
    }
    assert_eq!(sheer.stop().len(), 0);
}

#[test]
fn connections_of_this_host_itself_are_left_alone() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let stream = lab.middle().run(|| sheer_tests::connect(Dial::to(server.address())).unwrap());
        assert_eq!(server.last(), stream.local_addr().unwrap(), "{family}");
    }
    assert_eq!(sheer.stop().len(), 0);
}

#[test]
fn any_number_of_workers_serves() {
    for workers in ["1", "3"] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").option("--workers", workers).start();
        for family in Family::BOTH {
            let server = Server::hello(lab.server(), family, 80);
            for _ in 0..20 {
                lab.client().ask(server.address());
                assert_eq!(server.peer_of_last(), lab.client().ip(family));
            }
        }
        assert_eq!(sheer.stop().len(), 40);
    }
}

/// Where several listeners share a port (SO_REUSEPORT), kernels before 6.6 lose what is assigned to one of them.
#[test]
fn every_worker_has_listeners_of_its_own_that_share_no_port_and_is_given_connections() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").option("--workers", "3").start();
    let listening = lab.middle().sh("ss -tlnH");
    let at: Vec<SocketAddr> = listening.lines().map(|l| column(l, 3).parse().unwrap()).collect();
    assert_eq!(at.len(), 6, "one of each family for each worker: {listening}");
    for address in at {
        let make = || Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        let socket = lab.middle().run(make);
        socket.set_reuse_port(true).unwrap();
        let shared = socket.bind(&address.into()).map_err(|e| e.kind());
        assert_eq!(shared, Err(ErrorKind::AddrInUse), "{address} can be shared");
    }
    let server = Server::hello(lab.server(), Family::V4, 80);
    (0..40).for_each(|_| drop(lab.client().ask(server.address())));
    // Each worker counts in steps of their number.
    let number = |record: &Value| record["id"].as_u64().unwrap() % 3;
    let workers: BTreeSet<u64> = sheer.stop().iter().map(number).collect();
    assert_eq!(workers, BTreeSet::from([0, 1, 2]), "some worker got nothing to do");
}

#[test]
fn who_calls_a_listener_itself_is_refused() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("1-65535").option("--workers", "1").start();
    let listening = lab.middle().sh("ss -tlnH");
    for at in listening.lines().map(|line| column(line, 3)) {
        // The reset may be as fast as connect(2).
        let dialled = lab.middle().dial(Dial::to(at.parse().unwrap()));
        let answer = dialled.and_then(|mut stream| read(&mut stream, &mut [0]));
        assert_eq!(answer.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset), "{at}");
        let record = wait_until("its record is written", PATIENCE, || {
            sheer.records().into_iter().find(|record| record["original"] == at)
        });
        assert_eq!((&record["reason"], &record["by"]), (&"loop".into(), &"proxy".into()), "{record}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

fn column(line: &str, number: usize) -> &str {
    line.split_ascii_whitespace().nth(number).unwrap()
}

#[test]
fn an_address_that_becomes_this_hosts_own_is_left_alone_from_then_on() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    lab.middle().configure("addr add 203.0.113.1/32 dev clients0\n");
    let own: SocketAddr = "203.0.113.1:80".parse().unwrap();
    let listener = lab.middle().run(|| std::net::TcpListener::bind(own).unwrap());
    listener.set_nonblocking(true).unwrap();
    // The news takes a moment to arrive; until then connections are taken, and fail.
    let peer = wait_until("the new address is known", PATIENCE, || {
        let attempt = lab.client().dial(Dial::to(own).within(Duration::from_millis(500)));
        let accepted = listener.accept().ok().map(|(_, peer)| peer)?;
        (accepted == attempt.ok()?.local_addr().ok()?).then_some(accepted)
    });
    assert_eq!(peer.ip(), lab.client().v4());
    sheer.stop();
}

#[test]
fn nobody_listening_on_this_hosts_own_address_is_refused_by_the_host() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let own = SocketAddr::new(lab.client().gateway(Family::V4), 80);
    let error = lab.client().dial(Dial::to(own)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    sheer.stop();
}

#[test]
fn a_destination_that_is_routed_back_here_does_not_go_round_for_ever() {
    for (source, family, net) in [("client", Family::V4, "203.0.113"), ("proxy", Family::V4, "203.0.113")] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").source(source).option("--connect-timeout", "1s").start();
        lab.server().sysctl("net.ipv4.ip_forward", "1");
        lab.middle().configure(&format!("route add {net}.0/24 via {}\n", lab.server().ip(family)));
        let nowhere: IpAddr = format!("{net}.9").parse().unwrap();
        let dial = Dial::to(SocketAddr::new(nowhere, 80)).within(Duration::from_secs(5));
        let ended = lab.client().dial(dial).and_then(|mut stream| read(&mut stream, &mut [0]));
        assert!(ended.is_err(), "{source}: nobody is there, and yet: {ended:?}");
        let accepted = sheer.json("status")["connections"]["accepted"].as_u64().unwrap();
        assert!(accepted <= 3, "{source}: one connection was taken {accepted} times");
        sheer.stop();
    }
}
