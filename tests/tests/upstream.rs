//! Connections that go on to one host, whomever the client asked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use sheer_tests::{Dial, Family, Lab, Server, Sheer, read};

/// Addresses that nobody has.
fn asked(family: Family, port: u16) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => "203.0.113.80".parse().unwrap(),
        Family::V6 => "2001:db8:99::80".parse().unwrap(),
    };
    SocketAddr::new(ip, port)
}

#[test]
fn an_upstream_without_a_port_gets_the_port_that_the_client_asked_for() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let host = lab.server().ip(family);
        let service = format!("[[service]]\nname = \"all\"\nport = [80, 81]\nupstream = \"{host}\"\n");
        // Its own connections match the service too, and are never taken again.
        let sheer = Sheer::on(&lab).config(&format!("{service}intercept_local = true\n")).start();
        for port in [80, 81] {
            let server = Server::hello(lab.server(), family, port);
            lab.client().ask(asked(family, port));
            assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
        }
        let mut records = sheer.stop();
        records.sort_by_key(|record| record["upstream"].to_string());
        let upstreams: Vec<_> = records.iter().map(|record| record["upstream"].as_str().unwrap()).collect();
        assert_eq!(upstreams, [80, 81].map(|port| SocketAddr::new(host, port).to_string()));
        assert_eq!(records[0]["original"], asked(family, 80).to_string());
    }
}

#[test]
fn an_upstream_with_a_port_gets_all_of_them() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let server = Server::hello(lab.server(), family, 8080);
        let service = format!("[[service]]\nname = \"all\"\nupstream = \"{}\"\n", server.address());
        let sheer = Sheer::on(&lab).config(&service).start();
        for port in [80, 443] {
            let stream = lab.client().connect(asked(family, port));
            assert_eq!(stream.peer_addr().unwrap(), asked(family, port), "the client sees whom it asked for");
            assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
        }
        assert_eq!(sheer.stop().len(), 2);
    }
}

#[test]
fn a_client_of_the_other_ip_version_is_served_from_our_own_address_or_refused() {
    let lab = Lab::new();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let service = |keys| {
        format!("[[service]]\nname = \"all\"\nport = 80\nupstream = \"{}\"\n{keys}\n", server.address())
    };
    let sheer = Sheer::on(&lab).config(&service("source = \"proxy\"")).start();
    lab.client().ask(asked(Family::V6, 80));
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4));
    sheer.reload(&service(""));
    let refused = lab.client().dial(Dial::to(asked(Family::V6, 80))).and_then(|mut s| read(&mut s, &mut [0]));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(sheer.stop().iter().any(|record| record["reason"] == "source_unusable"));
}

#[test]
fn an_upstream_that_is_our_own_listener_is_refused() {
    for (family, loopback) in [(Family::V4, "127.0.0.1"), (Family::V6, "[::1]")] {
        let lab = Lab::new();
        let service = |upstream: &str| {
            format!("[[service]]\nname = \"all\"\nport = 80\nsource = \"proxy\"\nupstream = \"{upstream}\"\n")
        };
        let sheer = Sheer::on(&lab).config(&service("127.0.0.1:9")).start();
        let listening = lab.middle().sh("ss -Hltn");
        let ours =
            listening.split_whitespace().find(|word| word.starts_with(&format!("{loopback}:"))).unwrap();
        sheer.reload(&service(ours));
        let refused = lab.client().dial(Dial::to(asked(family, 80))).and_then(|mut s| read(&mut s, &mut [0]));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset, "{family}");
        let records = sheer.stop();
        assert_eq!((records.len(), &records[0]["reason"]), (1, &"loop".into()), "{family}: {records:?}");
    }
}
