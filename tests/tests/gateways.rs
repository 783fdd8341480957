//! Clients behind several gateways: what comes by one way is answered by the same one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr};

use sheer_tests::{Dial, Family, Feature, Host, Lab, Pattern, Server, Sheer, TunPair, missing};

const SERVICE: &str = "[[service]]\nname = \"web\"\nport = [80, 7]\nreply = \"same-way\"\n";
const BYTES: u64 = 1_000_000;
/// The network on the tun device.
const TUN: u8 = 35;

/// The client's address: the routes of the middle lead to it by one way only.
fn address(family: Family) -> IpAddr {
    match family {
        Family::V4 => "203.0.113.9".parse().unwrap(),
        Family::V6 => "2001:db8:9::9".parse().unwrap(),
    }
}

/// Every gateway has the client's address.
fn lab(gateways: u8) -> Lab {
    let lab = Lab::builder().clients(gateways).servers(1).build();
    for gateway in lab.clients() {
        for family in Family::BOTH {
            gateway.configure(&format!("addr add {} dev lo\n", address(family)));
        }
    }
    lab
}

fn assert_served(gateway: &Host, servers: &[Server; 2], family: Family) {
    let [hello, echo] = servers;
    let dial = |to| gateway.dial(Dial::to(to).from(SocketAddr::new(address(family), 0)));
    let mut stream = dial(hello.address()).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut String::new()).unwrap();
    assert_eq!(hello.peer_of_last(), address(family));
    Pattern::new(7).there_and_back(dial(echo.address()).unwrap(), BYTES).unwrap();
}

#[test]
fn answers_leave_by_the_way_by_which_the_client_came() {
    let lab = lab(3);
    let sheer = Sheer::on(&lab).config(SERVICE).start();
    for family in Family::BOTH {
        lab.middle().configure(&format!("route add default via {}\n", lab.client().ip(family)));
        let servers = [Server::hello(lab.server(), family, 80), Server::echo(lab.server(), family, 7)];
        lab.clients().iter().for_each(|gateway| assert_served(gateway, &servers, family));
    }
    sheer.stop();
}

#[test]
fn without_it_answers_go_by_the_routes() {
    let lab = lab(2);
    let sheer = Sheer::on(&lab).config("[[service]]\nname = \"web\"\nport = 80\n").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.middle().configure(&format!("route add default via {}\n", lab.client().v4()));
    let [first, second] = lab.clients() else { panic!("two gateways") };
    let within = std::time::Duration::from_secs(2);
    let dial = || Dial::to(server.address()).from(SocketAddr::new(address(Family::V4), 0)).within(within);
    first.dial(dial()).unwrap();
    assert!(second.dial(dial()).is_err(), "the answer has to go to the first gateway");
    sheer.stop();
}

#[test]
fn a_gateway_may_be_behind_a_device_without_ethernet_header() {
    if missing(Feature::Tun, "a gateway may be behind a device without an Ethernet header") {
        return;
    }
    let lab = lab(2);
    let [wired, tunnelled] = lab.clients() else { panic!("two gateways") };
    let _pumps = TunPair::between(lab.middle(), tunnelled, TUN);
    for family in Family::BOTH {
        let (near, far) = match family {
            Family::V4 => (format!("10.{TUN}.0.1"), format!("10.{TUN}.0.2")),
            Family::V6 => (format!("2001:db8:{TUN}::1"), format!("2001:db8:{TUN}::2")),
        };
        tunnelled.configure(&format!("route replace default via {near}\n"));
        for default in [wired.ip(family).to_string(), far] {
            lab.middle().configure(&format!("route replace default via {default}\n"));
            let sheer = Sheer::on(&lab).interfaces(&["clients0", "tun0", "servers0"]).config(SERVICE).start();
            let servers = [Server::hello(lab.server(), family, 80), Server::echo(lab.server(), family, 7)];
            assert_served(wired, &servers, family);
            assert_served(tunnelled, &servers, family);
            sheer.stop();
        }
    }
}
