//! Clients that are their server's neighbours: the server would answer them, not us.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sheer_tests::{Dial, Family, Feature, Lab, Namespace, Server, Sheer, SheerBuilder, missing, ping, read};

/// Far less than the connect timeout of 5 s, far more than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Client and server on one subnet, with the middle in it:
///
/// ```text
/// client  .2 ──┐
/// server  .3 ──┼ bridge      192.0.2.0/24, 2001:db8:1::/64
/// middle  .1 ──┘
/// ```
struct Subnet {
    lab: Lab,
    client: Namespace,
    server: Namespace,
    /// Where the bridge is, if not in the middle.
    _switch: Option<Namespace>,
}

fn address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => format!("192.0.2.{host}").parse().unwrap(),
        Family::V6 => format!("2001:db8:1::{host}").parse().unwrap(),
    }
}

/// Plugs a host's interface into the bridge of a namespace, as its port `port`.
fn plug(bridge: &Namespace, port: &str, index: u32, host: &Namespace, interface: &str, number: u8) {
    bridge.configure(&format!(
        "link add {port} index {index} type veth peer name {interface} netns {}\n\
         link set {port} master br0 up\n",
        host.path()
    ));
    host.configure(&format!(
        "addr add 192.0.2.{number}/24 dev {interface}\n\
         addr add 2001:db8:1::{number}/64 dev {interface} nodad\n\
         link set {interface} up\n"
    ));
}

impl Subnet {
    /// A switch of its own; the middle has one interface `lan0`. The client's way to the server leads through the middle
    /// nevertheless; the server knows no such detour.
    fn switched() -> Self {
        let subnet = Self::around(Some(Namespace::new("switch")));
        for family in Family::BOTH {
            let (server, middle) = (address(family, 3), address(family, 1));
            subnet.client.configure(&format!("route add {server} via {middle}\n"));
        }
        subnet
    }

    /// The bridge is in the middle: client and server are behind two of its ports, and speak to each other directly.
    fn bridged() -> Self {
        Self::around(None)
    }

    fn around(switch: Option<Namespace>) -> Self {
        let lab = Lab::builder().clients(0).servers(0).build();
        let (client, server) = (Namespace::new("client"), Namespace::new("server"));
        let bridge = switch.as_ref().unwrap_or(lab.middle());
        bridge.configure("link add br0 type bridge\nlink set br0 up\n");
        plug(bridge, "port0", 100, &client, "eth0", 2);
        plug(bridge, "port1", 101, &server, "eth0", 3);
        match &switch {
            Some(switch) => plug(switch, "port2", 102, lab.middle(), "lan0", 1),
            None => {
                lab.middle()
                    .configure("addr add 192.0.2.1/24 dev br0\naddr add 2001:db8:1::1/64 dev br0 nodad\n");
            }
        }
        let middles = if switch.is_some() { "lan0" } else { "br0" };
        for (namespace, device) in [(&client, "eth0"), (&server, "eth0"), (lab.middle(), middles)] {
            namespace.wait_for_ipv6(device);
        }
        Self { lab, client, server, _switch: switch }
    }

    fn sheer(&self) -> SheerBuilder<'_> {
        Sheer::on(&self.lab).interfaces(&["lan0"])
    }

    fn hello(&self, family: Family) -> Server {
        Server::hello_at(&self.server, SocketAddr::new(address(family, 3), 80))
    }
}

fn service(keys: &str) -> String {
    format!("[[service]]\nname = \"web\"\nport = 80\n{keys}\n")
}

/// What a connection that is not served ends with, and after how long.
fn refused(client: &Namespace, to: SocketAddr) -> (ErrorKind, Duration) {
    let start = Instant::now();
    let ended = client.dial(Dial::to(to)).and_then(|mut stream| read(&mut stream, &mut [0]));
    (ended.expect_err("it was served").kind(), start.elapsed())
}

#[test]
fn by_default_it_is_refused_at_once_and_told_once() {
    if missing(Feature::Bridge, "a client in its server's subnet") {
        return;
    }
    let subnet = Subnet::switched();
    let mut sheer = subnet.sheer().config(&service("")).start();
    for family in Family::BOTH {
        let server = subnet.hello(family);
        for _ in 0..3 {
            let (error, took) = refused(&subnet.client, server.address());
            assert_eq!(error, ErrorKind::ConnectionReset, "{family}");
            assert!(took < AT_ONCE, "{family}: {took:?}");
        }
        assert_eq!(server.count(), 0, "{family}: nobody was to be called");
    }
    let status = sheer.json("status");
    assert_eq!(status["connections"]["same_subnet"]["refuse"], 6, "{status}");
    assert_eq!(status["connections"]["closed"]["same_subnet"], 6, "{status}");
    let told = sheer.process().wait_for_stderr("what is wrong", |line| line.contains("neighbours on lan0"));
    for part in ["service web", "192.0.2.2", "192.0.2.3:80", "\"proxy\"", "\"redirect\"", "subnet of its own"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The same services again: nothing new to tell. Another one: it is told again, once.
    sheer.reload(&service(""));
    refused(&subnet.client, SocketAddr::new(address(Family::V4, 3), 80));
    assert_eq!(tellings(&mut sheer), 1);
    sheer.reload(&service("source = \"client-port\""));
    refused(&subnet.client, SocketAddr::new(address(Family::V4, 3), 80));
    sheer_tests::wait_until("it is told again", sheer_tests::PATIENCE, || {
        (tellings(&mut sheer) == 2).then_some(())
    });
    let records = sheer.stop();
    assert!(records.iter().all(|r| r["reason"] == "same_subnet" && r["by"] == "proxy"), "{records:?}");
    assert!(records.iter().all(|r| r["source"].is_null() && r["same_subnet"] == "refuse"), "{records:?}");
}

fn tellings(sheer: &mut Sheer<'_>) -> usize {
    let said = sheer.process().stderr();
    said.iter().filter(|line| line.contains("neighbours on lan0")).count()
}

#[test]
fn with_proxy_the_server_sees_this_hosts_own_address_and_the_record_says_so() {
    if missing(Feature::Bridge, "a client in its server's subnet") {
        return;
    }
    let subnet = Subnet::switched();
    let sheer = subnet.sheer().config(&service("same_subnet = \"proxy\"")).start();
    for family in Family::BOTH {
        let server = subnet.hello(family);
        subnet.client.ask(server.address());
        assert_eq!(server.peer_of_last(), address(family, 1), "{family}");
    }
    let status = sheer.json("status");
    assert_eq!(status["connections"]["same_subnet"]["proxy"], 2, "{status}");
    let mut records = sheer.stop();
    // Workers do not wait for each other.
    records.sort_by_key(|record| record["time"].to_string());
    for (record, family) in records.iter().zip(Family::BOTH) {
        assert_eq!(
            (&record["same_subnet"], &record["source_step"]),
            (&"proxy".into(), &"proxy".into()),
            "{record}"
        );
        let source: SocketAddr = record["source"].as_str().unwrap().parse().unwrap();
        assert_eq!(source.ip(), address(family, 1), "{record}");
    }
    assert_eq!(records.len(), 2);
}

#[test]
fn with_redirect_the_server_is_called_as_everywhere() {
    if missing(Feature::Bridge, "a client in its server's subnet") {
        return;
    }
    let subnet = Subnet::switched();
    let text = format!(
        "{}[proxy]\naccess_format = \"json\"\nconnect_timeout = \"500ms\"\n",
        service("same_subnet = \"redirect\"")
    );
    let sheer = subnet.sheer().config(&text).start();
    let server = subnet.hello(Family::V4);
    // Its answer cannot be taken here, where this host is not between the two.
    refused(&subnet.client, server.address());
    let record = sheer.record();
    assert_eq!(
        (&record["same_subnet"], &record["source_step"]),
        (&"redirect".into(), &"address".into()),
        "{record}"
    );
    assert!(record["source"].as_str().unwrap().starts_with("192.0.2.2:"), "{record}");
    sheer.stop();
}

#[test]
fn with_redirect_neighbours_on_two_ports_of_our_bridge_are_served_as_everybody_is() {
    if missing(Feature::Bridge, "a client and its server on two ports of a bridge") {
        return;
    }
    let subnet = Subnet::bridged();
    let sheer = Sheer::on(&subnet.lab)
        .interfaces(&["port0", "port1"])
        .config("[[service]]\nname = \"web\"\nport = [80, 7]\nsame_subnet = \"redirect\"\n")
        .start();
    for family in Family::BOTH {
        let server = subnet.hello(family);
        let answer = subnet.client.ask(server.address());
        assert_eq!(server.peer_of_last(), address(family, 2), "{family}");
        assert_eq!(answer, format!("you are {}\n", server.last()), "{family}");
        let echo = Server::echo_at(&subnet.server, SocketAddr::new(address(family, 3), 7));
        let mut stream = subnet.client.connect(echo.address());
        for _ in 0..100 {
            ping(&mut stream).unwrap();
        }
    }
    let records = sheer.stop();
    assert_eq!(records.len(), 4);
    assert!(records.iter().all(|r| r["same_subnet"] == "redirect"), "{records:?}");
}

#[test]
fn a_fixed_source_of_the_servers_subnet_is_refused_unless_it_is_our_own() {
    if missing(Feature::Bridge, "a fixed source in the server's subnet") {
        return;
    }
    let subnet = Subnet::switched();
    let sheer = subnet.sheer().config(&service("source = \"192.0.2.77\"")).start();
    let server = subnet.hello(Family::V4);
    let (error, took) = refused(&subnet.client, server.address());
    assert_eq!(error, ErrorKind::ConnectionReset);
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(sheer.record()["reason"], "same_subnet");
    sheer.reload(&service("source = \"192.0.2.1\""));
    subnet.client.ask(server.address());
    assert_eq!(server.peer_of_last(), address(Family::V4, 1));
    let records = sheer.stop();
    assert_eq!(records.iter().filter(|record| record["same_subnet"].is_null()).count(), 1, "{records:?}");
}

#[test]
fn an_upstream_that_is_the_clients_neighbour_or_the_client_itself_is_found_too() {
    if missing(Feature::Bridge, "an upstream in the client's subnet") {
        return;
    }
    let subnet = Subnet::switched();
    for namespace in [&subnet.client, &subnet.server] {
        namespace.configure("route add default via 192.0.2.1\n");
    }
    let sheer = subnet.sheer().config(&service("upstream = \"192.0.2.3\"")).start();
    let server = subnet.hello(Family::V4);
    let asked: SocketAddr = "203.0.113.80:80".parse().unwrap();
    let (error, took) = refused(&subnet.client, asked);
    assert!(error == ErrorKind::ConnectionReset && took < AT_ONCE, "{error} {took:?}");
    // The backend asks for the address that it serves itself.
    let (error, took) = refused(&subnet.server, asked);
    assert!(error == ErrorKind::ConnectionReset && took < AT_ONCE, "{error} {took:?}");
    sheer.reload(&service("upstream = \"192.0.2.3\"\nsame_subnet = \"proxy\""));
    for client in [&subnet.client, &subnet.server] {
        client.ask(asked);
        assert_eq!(server.peer_of_last(), address(Family::V4, 1));
    }
    assert_eq!(sheer.stop().len(), 4);
}

#[test]
fn a_server_behind_a_router_within_the_subnets_prefix_is_no_neighbour() {
    if missing(Feature::Bridge, "a router within a subnet") {
        return;
    }
    let subnet = Subnet::switched();
    // The server's side knows the client by the same detour only.
    let hidden: SocketAddr = "192.0.2.200:80".parse().unwrap();
    subnet.server.configure("addr add 192.0.2.200/32 dev lo\nroute add 192.0.2.2 via 192.0.2.1\n");
    subnet.client.configure("route add 192.0.2.200 via 192.0.2.1\n");
    let sheer = subnet.sheer().config(&service("")).start();
    let server = Server::hello_at(&subnet.server, hidden);
    // As long as the routes say neighbour, it is one.
    assert_eq!(refused(&subnet.client, hidden).0, ErrorKind::ConnectionReset);
    subnet.lab.middle().configure("route add 192.0.2.200 via 192.0.2.3\n");
    // An answer of the kernel is remembered for a moment.
    sheer_tests::wait_until("the new route is gone by", sheer_tests::PATIENCE, || {
        let mut stream = subnet.client.dial(Dial::to(hidden)).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(())
    });
    assert_eq!(server.peer_of_last(), address(Family::V4, 2));
    sheer.stop();
}

#[test]
fn a_subnet_that_comes_while_we_run_is_known_at_once() {
    if missing(Feature::Bridge, "a subnet that comes later") {
        return;
    }
    let subnet = Subnet::switched();
    let sheer = subnet.sheer().config(&service("same_subnet = \"proxy\"")).start();
    for (namespace, host) in [(&subnet.client, 2), (&subnet.server, 3), (subnet.lab.middle(), 1)] {
        let device = if host == 1 { "lan0" } else { "eth0" };
        namespace.configure(&format!("addr add 203.0.113.{host}/24 dev {device}\n"));
    }
    subnet.client.configure("route add 203.0.113.3 via 203.0.113.1 src 203.0.113.2\n");
    let server = Server::hello_at(&subnet.server, "203.0.113.3:80".parse().unwrap());
    sheer_tests::wait_until("the news has come", sheer_tests::PATIENCE, || {
        let dial = Dial::to(server.address()).within(Duration::from_millis(500));
        let mut stream = subnet.client.dial(dial).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let _ = stream.write_all(b"?");
        stream.read_exact(&mut [0]).ok()
    });
    assert_eq!(server.peer_of_last(), "203.0.113.1".parse::<IpAddr>().unwrap());
    sheer.stop();
}
