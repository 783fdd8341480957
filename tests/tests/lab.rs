//! The lab itself, without Sheer: what the other scenarios build on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use sheer_tests::{Dial, Ended, Family, Lab, Pattern, Server, reset};

#[test]
fn clients_reach_servers_by_plain_routing_in_both_families() {
    let lab = Lab::builder().clients(2).servers(2).build();
    for family in Family::BOTH {
        for server_host in lab.servers() {
            let server = Server::hello(server_host, family, 80);
            for client in lab.clients() {
                let answer = client.ask(server.address());
                assert!(answer.starts_with("you are "), "{answer}");
                assert_eq!(server.peer_of_last(), client.ip(family));
            }
        }
    }
}

#[test]
fn an_echo_server_gives_back_what_came_and_sees_the_half_close() {
    let lab = Lab::new();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    stream.write_all(b"there and back").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!((back.as_str(), server.ended()), ("there and back", Ended::Well));
}

#[test]
fn a_reset_is_seen_as_a_reset() {
    let lab = Lab::new();
    let server = Server::echo(lab.server(), Family::V6, 7);
    reset(lab.client().connect(server.address()));
    assert_eq!(server.ended(), Ended::Reset);
}

#[test]
fn a_client_can_choose_its_port_and_use_it_again_at_once() {
    let lab = Lab::new();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let from = SocketAddr::new(lab.client().v4(), 40000);
    for _ in 0..3 {
        let mut stream = lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "you are 192.0.2.2:40000\n");
    }
}

#[test]
fn patterns_cross_the_lab_unharmed() {
    let lab = Lab::new();
    let server = Server::start(lab.server(), Family::V4, 80, |mut stream| {
        Pattern::new(1).send(&mut stream, 10_000_000).map_err(|e| std::io::Error::other(e.to_string()))
    });
    let mut stream = lab.client().connect(server.address());
    assert_eq!(Pattern::new(1).receive(&mut stream).unwrap(), 10_000_000);
}

#[test]
fn nothing_listens_where_no_server_is() {
    let lab = Lab::new();
    let nowhere = SocketAddr::new(lab.server().v4(), 9);
    let error = lab.client().dial(Dial::to(nowhere)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
