//! Kinds of networks: asymmetric routes, both ways of attaching.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use serde_json::Value;
use sheer_tests::{Family, Lab, Namespace, PATIENCE, Pattern, Server, Sheer, ping, wait_until, wire};

/// A second link between the middle, as `other`, and a host, as `eth1`.
fn second_link(lab: &Lab, host: &Namespace) {
    wire((lab.middle(), "other"), (host, "eth1"), 1500, 24);
}

const BYTES: u64 = 1_000_000;

#[test]
fn answers_that_come_in_by_another_listed_interface_find_their_connection() {
    let lab = Lab::new();
    second_link(&lab, lab.server());
    lab.server()
        .configure("route add 192.0.2.0/24 via 10.24.0.1\nroute add 2001:db8:1::/48 via 2001:db8:24::1\n");
    let sheer = Sheer::on(&lab).tcp("7").interfaces(&["clients0", "servers0", "other"]).start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let back = Pattern::new(3).there_and_back(lab.client().connect(server.address()), BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{family}");
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn what_goes_to_the_client_by_another_interface_belongs_to_the_same_connection() {
    let lab = Lab::new();
    second_link(&lab, lab.client());
    let (v4, v6) = (lab.client().v4(), lab.client().v6());
    lab.middle().configure(&format!(
        "route add {v4} via 10.24.0.2 dev other\nroute add {v6} via 2001:db8:24::2 dev other\n"
    ));
    let sheer = Sheer::on(&lab).tcp("7").interfaces(&["clients0", "servers0", "other"]).start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let back = Pattern::new(3).there_and_back(lab.client().connect(server.address()), BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{family}");
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn a_connection_may_change_its_way_on_either_side_while_it_stands() {
    let lab = Lab::new();
    second_link(&lab, lab.client());
    wire((lab.middle(), "third"), (lab.server(), "eth1"), 1500, 25);
    let sheer = Sheer::on(&lab).tcp("7").interfaces(&["clients0", "servers0", "other", "third"]).start();
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    let streams = servers.each_ref().map(|server| {
        let mut stream = lab.client().connect(server.address());
        ping(&mut stream).unwrap();
        stream
    });
    for (host, net) in [(lab.client(), 24), (lab.server(), 25)] {
        host.configure(&format!(
            "route replace default via 10.{net}.0.1\nroute replace default via 2001:db8:{net}::1\n"
        ));
    }
    let before = lab.middle().sh("ip -s link show clients0");
    for (family, stream) in Family::BOTH.into_iter().zip(streams) {
        let back = Pattern::new(3).there_and_back(stream, BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{family}");
    }
    let received = |text: &str| -> u64 {
        let mut lines = text.lines().skip_while(|line| !line.contains("RX:"));
        lines.nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    let old_way = received(&lab.middle().sh("ip -s link show clients0")) - received(&before);
    assert!(old_way < BYTES / 10, "{old_way} bytes still came by the old way: {before}");
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn a_client_that_comes_by_another_way_is_answered_by_that_one_from_then_on() {
    let lab = Lab::new();
    second_link(&lab, lab.client());
    let sheer = Sheer::on(&lab)
        .interfaces(&["clients0", "servers0", "other"])
        .config("[[service]]\nname = \"echo\"\nport = 7\nreply = \"same-way\"\n")
        .start();
    for (family, other) in Family::BOTH.into_iter().zip(["10.24.0.1", "2001:db8:24::1"]) {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        ping(&mut stream).unwrap();
        let known = || sheer.json("flows").get(0).map(|_| ());
        wait_until("the connection stands in flows", PATIENCE, known);
        lab.client().configure(&format!("route replace default via {other}\n"));
        let before = sent_by(&lab, "other");
        Pattern::new(3).there_and_back(stream, BYTES).unwrap();
        let sent = sent_by(&lab, "other") - before;
        assert!(sent >= BYTES, "{family}: of {BYTES} bytes {sent} left by the new way");
        sheer.wait_for_no_flows();
    }
    sheer.stop();
}

/// Bytes that the middle has sent by an interface.
fn sent_by(lab: &Lab, interface: &str) -> u64 {
    let shown = lab.middle().sh(&format!("ip -s -j link show {interface}"));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
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
