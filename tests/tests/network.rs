//! Kinds of networks: reverse-path checks, asymmetric routes, bridges, VLANs, both ways of attaching.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::SocketAddr;

use sheer_tests::{Dial, Family, Feature, Lab, Namespace, PATIENCE, Pattern, Server, Sheer, missing};

#[test]
fn no_setting_of_the_reverse_path_check_matters() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let mut expected = 0;
    for rp_filter in ["0", "1", "2"] {
        for src_valid_mark in ["0", "1"] {
            for name in ["all", "clients0", "servers0", "lo"] {
                lab.middle().sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), rp_filter);
                lab.middle().sysctl(&format!("net.ipv4.conf.{name}.src_valid_mark"), src_valid_mark);
            }
            for family in Family::BOTH {
                let server = Server::hello(lab.server(), family, 80);
                let answer = lab.client().ask(server.address());
                let what =
                    format!("{family}, rp_filter={rp_filter}, src_valid_mark={src_valid_mark}: {answer}");
                assert_eq!(server.peer_of_last(), lab.client().ip(family), "{what}");
                expected += 1;
            }
        }
    }
    assert_eq!(sheer.stop().len(), expected);
}

#[test]
fn neither_forwarding_nor_other_mark_settings_are_needed() {
    let lab = Lab::new();
    for (name, value) in [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.ipv4.tcp_fwmark_accept", "1"),
        ("net.ipv4.fwmark_reflect", "1"),
        ("net.ipv6.fwmark_reflect", "1"),
    ] {
        lab.middle().sysctl(name, value);
    }
    // Without forwarding a host takes no route from router advertisements away, but it does lose nothing here.
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn sheer_changes_no_sysctl() {
    let lab = Lab::new();
    let settings = || lab.middle().sh("sysctl -a --pattern ^net\\.");
    // Counters among them that change by themselves.
    let stable = |text: String| -> Vec<String> {
        let varying = ["nf_conntrack_count", "fs.", "random", "stable_secret", "ip_local_reserved"];
        text.lines().filter(|l| !varying.iter().any(|v| l.contains(v))).map(str::to_owned).collect()
    };
    let before = stable(settings());
    let sheer = Sheer::on(&lab).tcp("80").start();
    let during = stable(settings());
    assert_eq!(before, during);
    sheer.stop();
    assert_eq!(before, stable(settings()));
}

#[test]
fn answers_that_come_in_by_another_listed_interface_find_their_connection() {
    let lab = Lab::new();
    lab.middle().configure(&format!(
        "link add other type veth peer name eth1 netns {}\n\
         addr add 203.0.113.1/30 dev other\n\
         addr add 2001:db8:3::1/64 dev other nodad\n\
         link set other up\n",
        lab.server().path()
    ));
    lab.server().configure(
        "addr add 203.0.113.2/30 dev eth1\n\
         addr add 2001:db8:3::2/64 dev eth1 nodad\n\
         link set eth1 up\n\
         route add 192.0.2.0/24 via 203.0.113.1\n\
         route add 2001:db8:1::/48 via 2001:db8:3::1\n",
    );
    let sheer = Sheer::on(&lab).tcp("80").interfaces(&["clients0", "servers0", "other"]).start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn attached_the_old_way_by_clsact_everything_works_as_well() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").source("proxy").option("--attach", "clsact").start();
    assert!(lab.middle().sh("tc filter show dev clients0 ingress").contains("bpf"));
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.server().gateway(family), "{family}");
    }
    sheer.kill();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.client().v4(), "killed: straight to the server");
    let sheer = sheer.restart();
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "back again");
    let filters = lab.middle().sh("tc filter show dev clients0 ingress");
    assert_eq!(filters.matches("direct-action").count(), 1, "one filter, not one for each start: {filters}");
    sheer.stop();
}

#[test]
fn a_clsact_instance_that_stops_takes_filter_and_qdisc_along() {
    let lab = Lab::new();
    Sheer::on(&lab).tcp("80").option("--attach", "clsact").start().stop();
}

#[test]
fn a_clsact_instance_that_was_killed_is_cleaned_up() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").option("--attach", "clsact").start();
    sheer.kill();
    sheer.cleanup();
}

#[test]
fn the_tc_filters_of_others_are_left_alone() {
    let lab = Lab::new();
    lab.middle().sh("tc qdisc add dev clients0 clsact");
    lab.middle().sh("tc filter add dev clients0 ingress protocol ip pref 60000 u32 match u32 0 0 flowid 1:1");
    let sheer = Sheer::on(&lab).tcp("80").option("--attach", "clsact").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert_eq!(sheer.stop_beside_others().len(), 1);
    let filters = lab.middle().sh("tc filter show dev clients0 ingress");
    assert!(filters.contains("u32") && !filters.contains("direct-action"), "{filters}");
}

#[test]
fn a_port_of_a_bridge_can_be_listed_although_packets_are_routed_by_the_bridge() {
    if missing(Feature::Bridge, "a port of a bridge can be listed") {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.client().gateway(Family::V4);
    lab.middle().configure(&format!(
        "link add name br0 type bridge\n\
         addr del {gateway}/30 dev clients0\n\
         link set clients0 master br0\n\
         addr add {gateway}/30 dev br0\n\
         link set br0 up\n"
    ));
    for interfaces in [["clients0", "servers0"], ["br0", "servers0"]] {
        let sheer = Sheer::on(&lab).tcp("80").source("proxy").interfaces(&interfaces).start();
        let server = Server::hello(lab.server(), Family::V4, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "{interfaces:?}");
        assert_eq!(sheer.stop().len(), 1);
    }
}

#[test]
fn tagged_packets_are_intercepted_on_the_trunk_and_on_the_vlan_device() {
    if missing(Feature::Vlan, "tagged packets are intercepted on the trunk and on the VLAN device") {
        return;
    }
    let lab = Lab::new();
    let (client, gateway) = ("10.9.0.2", "10.9.0.1");
    lab.client().configure(&format!(
        "link add link eth0 name eth0.9 type vlan id 9\n\
         addr add {client}/24 dev eth0.9\n\
         link set eth0.9 up\n\
         route replace 198.51.100.0/24 via {gateway} src {client}\n"
    ));
    lab.middle().configure(&format!(
        "link add link clients0 name clients0.9 type vlan id 9\n\
         addr add {gateway}/24 dev clients0.9\n\
         link set clients0.9 up\n"
    ));
    for interfaces in [["clients0", "servers0"], ["clients0.9", "servers0"]] {
        let sheer = Sheer::on(&lab).tcp("80").interfaces(&interfaces).start();
        let server = Server::hello(lab.server(), Family::V4, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last().to_string(), client, "{interfaces:?}");
        assert_eq!(sheer.stop().len(), 1, "{interfaces:?}");
    }
}

/// middle ── 1500 ── near ── 1280 ── far ── 1500 ── beyond: neither end can know of the narrow place but by the ICMP errors
/// of the routers beside it.
struct Narrow {
    _near: Namespace,
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
        wire((lab.middle(), "near0", 701), (&near, "eth0"), 1500, 21);
        wire((&near, "behind", 702), (&far, "eth0"), 1280, 22);
        wire((&far, "behind", 703), (&beyond, "eth0"), 1500, 23);
        let routes = |net: u8, via4: &str, via6: &str| {
            format!("route add 10.{net}.0.0/24 via {via4}\nroute add 2001:db8:{net}::/64 via {via6}\n")
        };
        lab.middle().configure(&routes(23, "10.21.0.2", "2001:db8:21::2"));
        near.configure(&routes(23, "10.22.0.2", "2001:db8:22::2"));
        near.configure("route add default via 10.21.0.1\nroute add default via 2001:db8:21::1\n");
        far.configure("route add default via 10.22.0.1\nroute add default via 2001:db8:22::1\n");
        beyond.configure("route add default via 10.23.0.1\nroute add default via 2001:db8:23::1\n");
        Self { _near: near, _far: far, beyond }
    }
}

/// The ICMP errors go to the address that the proxy borrowed from the client.
#[test]
fn a_narrow_link_behind_a_router_is_discovered_while_speaking_from_the_clients_address() {
    let lab = Lab::new();
    let narrow = Narrow::behind(&lab);
    let sheer = Sheer::on(&lab).tcp("80").interfaces(&["clients0", "near0"]).start();
    for address in ["10.23.0.2:80", "[2001:db8:23::2]:80"] {
        let to: SocketAddr = address.parse().unwrap();
        let listener = narrow.beyond.run(|| std::net::TcpListener::bind(to).unwrap());
        let received = narrow.beyond.spawn("sink", move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            (Pattern::new(3).receive(&mut stream).map_err(|e| e.to_string()), peer.ip())
        });
        let mut stream = lab.client().connect(to);
        Pattern::new(3).send(&mut stream, 1_000_000).map_err(|e| e.to_string()).unwrap();
        drop(stream);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        assert_eq!(received.join().unwrap(), (Ok(1_000_000), lab.client().ip(family)), "{address}");
    }
    sheer.stop();
}

/// The ICMP errors name a packet from a port that Sheer takes, and yet they are the real server's.
#[test]
fn a_narrow_link_before_the_client_is_discovered_by_connections_that_are_not_proxied_too() {
    let lab = Lab::new();
    let Narrow { beyond, .. } = &Narrow::behind(&lab);
    let servers = Family::BOTH.map(|family| {
        Server::start(lab.server(), family, 80, |mut stream| {
            stream.read_exact(&mut [0])?;
            Pattern::new(3).send(&mut stream, 1_000_000).map_err(|e| std::io::Error::other(e.to_string()))
        })
    });
    let open = |server: &Server| beyond.run(|| sheer_tests::connect(Dial::to(server.address())).unwrap());
    let fetch = |mut stream: std::net::TcpStream| {
        stream.write_all(b"x").unwrap();
        Pattern::new(3).receive(&mut stream).map_err(|e| e.to_string())
    };
    let before = servers.each_ref().map(open);
    let sheer = Sheer::on(&lab).tcp("80").interfaces(&["near0", "servers0"]).start();
    for (family, stream) in Family::BOTH.into_iter().zip(before) {
        assert_eq!(fetch(stream), Ok(1_000_000), "{family}, past the proxy");
    }
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0);
    for (family, server) in Family::BOTH.into_iter().zip(&servers) {
        assert_eq!(fetch(open(server)), Ok(1_000_000), "{family}, through the proxy");
    }
    assert_eq!(sheer.stop().len(), 2);
}

/// A veth pair of this MTU with the addresses 10.NET.0.1 and .2, and 2001:db8:NET::1 and ::2.
fn wire(one: (&Namespace, &str, u32), other: (&Namespace, &str), mtu: u32, net: u8) {
    let ((near, name, index), (far, peer)) = (one, other);
    near.configure(&format!(
        "link add {name} index {index} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {}\n\
         addr add 10.{net}.0.1/24 dev {name}\n\
         addr add 2001:db8:{net}::1/64 dev {name} nodad\n\
         link set {name} up\n",
        far.path()
    ));
    far.configure(&format!(
        "addr add 10.{net}.0.2/24 dev {peer}\n\
         addr add 2001:db8:{net}::2/64 dev {peer} nodad\n\
         link set {peer} up\n"
    ));
    near.wait_for_ipv6(name);
    far.wait_for_ipv6(peer);
}

#[test]
fn connections_that_were_under_way_before_are_not_disturbed() {
    let lab = Lab::new();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let from = SocketAddr::new(lab.client().v4(), 40000);
    let mut stream = lab.client().dial(Dial::to(server.address()).from(from)).unwrap();
    let mut ping = || {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    ping();
    let sheer = Sheer::on(&lab).tcp("7").start();
    ping();
    ping();
    assert_eq!(sheer.stop().len(), 0);
    ping();
}

#[test]
fn a_server_under_syn_flood_protection_is_still_reached() {
    let lab = Lab::new();
    // Cookies for every connection: the third packet of the handshake finds no half-open socket.
    lab.middle().sysctl("net.ipv4.tcp_syncookies", "2");
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        for _ in 0..5 {
            lab.client().ask(server.address());
            assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
        }
    }
    assert_eq!(sheer.stop().len(), 10);
}
