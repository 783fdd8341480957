//! Clients behind several gateways: what comes by one way is answered by the same one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use sheer_tests::{Dial, Family, Lab, Server, Sheer};

/// An address that the routes of the middle lead to the first gateway only.
fn address(family: Family) -> IpAddr {
    match family {
        Family::V4 => "203.0.113.9".parse().unwrap(),
        Family::V6 => "2001:db8:9::9".parse().unwrap(),
    }
}

/// Every gateway has the client's address; the middle's default route leads to the first of them.
fn lab() -> Lab {
    let lab = Lab::builder().clients(3).servers(1).build();
    for family in Family::BOTH {
        for gateway in lab.clients() {
            gateway.configure(&format!("addr add {} dev lo\n", address(family)));
        }
        lab.middle().configure(&format!("route add default via {}\n", lab.client().ip(family)));
    }
    lab
}

#[test]
fn answers_leave_by_the_way_by_which_the_client_came() {
    let lab = lab();
    let service = "[[service]]\nname = \"web\"\nport = [80, 7]\nreply = \"same-way\"\n";
    let sheer = Sheer::on(&lab).config(service).start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let echo = Server::echo(lab.server(), family, 7);
        for gateway in lab.clients() {
            let dial = |to| Dial::to(to).from(SocketAddr::new(address(family), 0));
            let mut stream = gateway.dial(dial(server.address())).unwrap();
            stream.read_to_string(&mut String::new()).unwrap();
            assert_eq!(server.peer_of_last(), address(family));
            let mut stream = gateway.dial(dial(echo.address())).unwrap();
            let sent = vec![7; 1_000_000];
            std::thread::scope(|scope| {
                let mut writer = stream.try_clone().unwrap();
                let sent = &sent;
                scope.spawn(move || writer.write_all(sent).unwrap());
                stream.read_exact(&mut vec![0; sent.len()]).unwrap();
            });
        }
    }
    sheer.stop();
}
