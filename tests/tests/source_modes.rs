//! Whom the server sees, and that the client sees nobody but the server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::SocketAddr;

use sheer_tests::{Dial, Family, Lab, Server, Sheer, read};
use socket2::{Domain, Socket, Type};

#[test]
fn by_default_the_server_sees_the_clients_own_address() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let answer = lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
        assert_eq!(answer, format!("you are {}\n", server.last()), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn the_client_sees_the_servers_true_address() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let stream = lab.client().connect(server.address());
        assert_eq!(stream.peer_addr().unwrap(), server.address(), "{family}");
    }
    sheer.stop();
}

#[test]
fn with_source_client_port_the_server_sees_address_and_port() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("client-port").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let from = SocketAddr::new(lab.client().ip(family), 43210);
        let mut stream = lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("you are {from}\n"), "{family}");
    }
    // Without the proxy in between it would look the same: that it was there is in the records.
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn with_source_client_port_one_client_port_can_speak_to_two_servers() {
    let lab = Lab::builder().servers(2).build();
    let sheer = Sheer::on(&lab).tcp("7").source("client-port").start();
    for family in Family::BOTH {
        let from = SocketAddr::new(lab.client().ip(family), 43210);
        let servers = lab.servers().iter().map(|host| Server::echo(host, family, 7)).collect::<Vec<_>>();
        let dial = |server: &Server| lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
        let mut streams = servers.iter().map(dial).collect::<Vec<_>>();
        for (server, stream) in servers.iter().zip(&mut streams) {
            let message = server.address().to_string();
            stream.write_all(message.as_bytes()).unwrap();
            let mut back = vec![0; message.len()];
            stream.read_exact(&mut back).unwrap();
            assert_eq!((String::from_utf8(back).unwrap(), server.last()), (message, from), "{family}");
        }
    }
    let records = sheer.stop();
    assert_eq!(records.len(), 4);
    assert!(records.iter().all(|record| record["source_port_changed"].is_null()), "{records:?}");
}

#[test]
fn with_source_client_port_a_port_that_is_taken_gives_way_to_another_and_it_is_said() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("client-port").start();
    for family in Family::BOTH {
        let from = SocketAddr::new(lab.client().ip(family), 43210);
        let _taken = lab.middle().run(|| occupy(from));
        let server = Server::hello(lab.server(), family, 80);
        let mut stream = lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        assert_eq!(server.peer_of_last(), from.ip(), "{family}: the port gives way, never the address");
        assert_ne!(server.last().port(), from.port(), "{family}");
    }
    let records = sheer.stop();
    let told = records.iter().map(|record| &record["source_port_changed"]);
    assert_eq!(told.collect::<Vec<_>>(), [true, true], "{records:?}");
}

/// Holds a foreign address and port for itself, as another proxy on this host might.
fn occupy(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket
}

#[test]
fn with_source_proxy_the_server_sees_this_hosts_own_address() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("proxy").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.server().gateway(family), "{family}");
    }
    sheer.stop();
}

#[test]
fn with_a_fixed_source_the_server_sees_that_address() {
    for (family, fixed) in [(Family::V4, "203.0.113.77"), (Family::V6, "2001:db8:77::77")] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").source(fixed).start();
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last().to_string(), fixed);
        sheer.stop();
    }
}

#[test]
fn a_fixed_source_of_the_other_family_is_never_replaced_by_another_address() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").source("203.0.113.77").start();
    let server = Server::hello(lab.server(), Family::V6, 80);
    let served =
        lab.client().dial(Dial::to(server.address())).and_then(|mut stream| read(&mut stream, &mut [0; 16]));
    let error = served.expect_err("there is no way to serve this with an IPv4 source");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(server.count(), 0, "the server must not see an address that nobody asked for");
    assert!(sheer.process().is_running());
    sheer.stop();
}

#[test]
fn many_clients_are_told_apart() {
    let lab = Lab::builder().clients(3).servers(2).build();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        for host in lab.servers() {
            let server = Server::hello(host, family, 80);
            for client in lab.clients() {
                client.ask(server.address());
                assert_eq!(server.peer_of_last(), client.ip(family));
            }
        }
    }
    assert_eq!(sheer.stop().len(), 12);
}

#[test]
fn ports_that_were_not_named_go_their_way_untouched() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80,8000-8010").start();
    let server = Server::hello(lab.server(), Family::V4, 81);
    let from = SocketAddr::new(lab.client().v4(), 40000);
    lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
    assert_eq!(server.last(), from);
    let inside = Server::hello(lab.server(), Family::V4, 8010);
    lab.client().ask(inside.address());
    assert_eq!(sheer.stop().len(), 1, "only the connection to a named port went through the proxy");
}

#[test]
fn both_directions_carry_data_at_the_same_time() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    let server = Server::echo(lab.server(), Family::V6, 7);
    let mut stream = lab.client().connect(server.address());
    for round in 0..200_u32 {
        let message = round.to_be_bytes();
        stream.write_all(&message).unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, message);
    }
    drop(stream);
    sheer.stop();
}
