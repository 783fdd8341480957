//! Others on the same host: firewalls, connection tracking, address translation, programs at tc. Beside each of them Sheer
//! works, or `sheer doctor` names it, with a cure that works.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use sheer_tests::{Dial, Family, InFront, Lab, Pattern, Server, Sheer, binary, skip};

/// The mark that Sheer takes when nobody else has it, as people write it into their firewall.
const MARK: &str = "0x2040";
/// Conntrack has to see windows move.
const BYTES: u64 = 10_000_000;

/// A command line for a shell in the middle, as a user would type it.
fn sh(lab: &Lab, line: &str) {
    let output = lab.middle().command("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A chain of a table `inet strict` with these rules.
fn chain(lab: &Lab, hook: &str, policy: &str, rules: &[&str]) {
    let (table, head) = ("inet strict", format!("type filter hook {hook} priority 0; policy {policy};"));
    sh(lab, &format!("nft 'add table {table}; add chain {table} {hook} {{ {head} }}'"));
    for rule in rules {
        sh(lab, &format!("nft 'add rule {table} {hook} {rule}'"));
    }
}

/// A chain that drops what no rule accepts. IPv6 needs its neighbours at least.
fn strict(lab: &Lab, hook: &str, rules: &[&str]) {
    chain(lab, hook, "drop", &[&["meta l4proto ipv6-icmp accept"], rules].concat());
}

/// What `sheer doctor` complains of under this id; the exit code has to say that there is something.
fn complaints(lab: &Lab, id: &str) -> Vec<Value> {
    let mut command = lab.middle().command(&binary().to_string_lossy());
    let output = command.args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = report["findings"].as_array().unwrap();
    let found = all.iter().filter(|f| f["id"] == id && f["severity"] != "fine").cloned().collect::<Vec<_>>();
    assert!(!found.is_empty(), "doctor does not name {id}: {report:#}");
    assert_eq!(output.status.code(), Some(1));
    found
}

/// The cures of these complaints, one for each.
fn cures(lab: &Lab, id: &str) -> Vec<String> {
    complaints(lab, id).iter().map(|found| found["cure"].as_str().unwrap().to_owned()).collect()
}

fn servers(lab: &Lab) -> [(Family, Server); 2] {
    Family::BOTH.map(|family| (family, Server::echo(lab.server(), family, 7)))
}

fn echoed(stream: TcpStream, bytes: u64) -> Result<u64, String> {
    Pattern::new(3).there_and_back(stream, bytes).map_err(|e| e.to_string())
}

/// Transfers both ways, in both families; the server sees the client's address. Gives how many there were.
fn assert_works(lab: &Lab, servers: &[(Family, Server); 2], what: &str) -> usize {
    for (family, server) in servers {
        assert_eq!(echoed(lab.client().connect(server.address()), BYTES), Ok(BYTES), "{family}: {what}");
        assert_eq!(server.peer_of_last(), lab.client().ip(*family), "{family}: {what}");
    }
    servers.len()
}

/// Starts Sheer, sees that it works, and stops it.
fn assert_works_with(lab: &Lab, source: &str, what: &str) {
    let sheer = Sheer::on(lab).tcp("7").source(source).start();
    let made = assert_works(lab, &servers(lab), what);
    assert_eq!(sheer.stop_beside_others().len(), made, "{what}: by the proxy");
}

/// Nothing gets through, by the client's own patience.
fn assert_fails(lab: &Lab, servers: &[(Family, Server); 2], what: &str) {
    for (family, server) in servers {
        let dialled = lab.client().dial(Dial::to(server.address()).within(Duration::from_millis(500)));
        let outcome = dialled.map_err(|e| e.to_string()).and_then(|stream| echoed(stream, 1000));
        assert!(outcome.is_err(), "{family}: {what}: it works");
    }
}

const EVERY_HOOK: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// Has conntrack track, and drops what it takes for invalid, wherever that can be.
fn drop_invalid(lab: &Lab) {
    for hook in EVERY_HOOK {
        chain(lab, hook, "accept", &["ct state invalid counter drop"]);
    }
}

fn assert_none_invalid(lab: &Lab) {
    let rules = lab.middle().sh("nft list table inet strict");
    assert_eq!(rules.matches("counter packets 0 ").count(), EVERY_HOOK.len(), "{rules}");
}

#[test]
fn connection_tracking_finds_nothing_invalid_where_the_proxy_has_a_port_of_its_own() {
    let lab = Lab::new();
    drop_invalid(&lab);
    assert_works_with(&lab, "client", "invalid packets are dropped");
    assert_none_invalid(&lab);
}

/// It has one entry for both halves, whose sequence numbers have nothing to do with each other.
#[test]
fn where_the_clients_port_is_kept_doctor_names_connection_tracking_and_its_cure_works() {
    let lab = Lab::new();
    drop_invalid(&lab);
    cures(&lab, "conntrack-invalid").iter().for_each(|cure| sh(&lab, cure));
    assert_works_with(&lab, "client-port", "with doctor's rules");
    assert_none_invalid(&lab);
}

#[test]
fn where_the_clients_port_is_kept_connections_may_be_left_untracked_by_their_mark() {
    let lab = Lab::new();
    drop_invalid(&lab);
    for hook in ["prerouting", "output"] {
        let head = format!("type filter hook {hook} priority raw;");
        sh(&lab, &format!("nft 'add chain inet strict raw-{hook} {{ {head} }}'"));
        sh(&lab, &format!("nft 'add rule inet strict raw-{hook} meta mark {MARK} notrack'"));
    }
    assert_works_with(&lab, "client-port", "untracked");
    assert_none_invalid(&lab);
}

#[test]
fn a_firewall_that_drops_by_default_everywhere_is_named_and_its_cures_let_connections_through() {
    for source in ["client", "client-port"] {
        let lab = Lab::new();
        for hook in ["input", "forward", "output"] {
            strict(&lab, hook, &[]);
        }
        let sheer = Sheer::on(&lab).tcp("7").source(source).option("--connect-timeout", "1s").start();
        let servers = servers(&lab);
        assert_fails(&lab, &servers, "without a rule");
        for id in ["firewall-input", "firewall-output"] {
            cures(&lab, id).iter().for_each(|cure| sh(&lab, cure));
        }
        assert_works(&lab, &servers, "with doctor's rules");
        sheer.stop_beside_others();
    }
}

/// What else people may write; each list is enough.
#[test]
fn other_rules_that_let_connections_through_a_firewall_that_drops_by_default() {
    let mark = format!("meta mark {MARK} accept");
    let first = format!("meta mark {MARK} tcp flags & (syn|ack) == syn accept");
    let standing = "ct state established,related accept";
    for (hook, rules) in [
        ("input", &["socket transparent 1 accept"][..]),
        ("input", &[standing, &first]),
        ("input", &[standing, "tcp dport 7 accept"]),
        ("output", &["socket transparent 1 accept"]),
        ("output", &[standing, "tcp dport 7 accept"]),
        ("forward", &[]),
        ("prerouting", &[&mark]),
        ("postrouting", &[&mark]),
    ] {
        let lab = Lab::new();
        strict(&lab, hook, rules);
        assert_works_with(&lab, "client", &format!("{rules:?} in {hook}"));
    }
}

/// As Docker does it for its containers, here the client.
fn masquerade(lab: &Lab) {
    for (table, clients) in
        [("ip docker", "ip saddr 192.0.2.0/24"), ("ip6 docker", "ip6 saddr 2001:db8:1::/48")]
    {
        let head = "type nat hook postrouting priority 100;";
        sh(lab, &format!("nft 'add table {table}; add chain {table} post {{ {head} }}'"));
        sh(lab, &format!("nft 'add rule {table} post {clients} oifname != clients0 masquerade'"));
    }
}

#[test]
fn masquerading_of_the_clients_is_named_and_its_cure_keeps_their_address() {
    let lab = Lab::new();
    masquerade(&lab);
    let sheer = Sheer::on(&lab).tcp("7").option("--connect-timeout", "1s").start();
    let servers = servers(&lab);
    assert_fails(&lab, &servers, "masqueraded");
    cures(&lab, "nat").iter().for_each(|cure| sh(&lab, cure));
    assert_works(&lab, &servers, "with doctor's rules");
    sheer.stop_beside_others();
}

/// The kernel asks for no new translation, since it knows the tuple from the client.
#[test]
fn masquerading_leaves_connections_alone_that_keep_the_clients_port() {
    let lab = Lab::new();
    masquerade(&lab);
    assert_works_with(&lab, "client-port", "masqueraded");
}

/// A classic program as a filter under clsact that answers every packet with this number.
fn filter(lab: &Lab, answer: u32) {
    for device in lab.uplinks() {
        sh(lab, &format!("tc qdisc add dev {device} clsact"));
        let program = format!("da bytecode '1,6 0 0 {answer},'");
        sh(lab, &format!("tc filter add dev {device} ingress pref 10 bpf {program}"));
    }
}

/// TC_ACT_UNSPEC: the filters behind have their say.
const GO_ON: u32 = u32::MAX;
/// TC_ACT_OK: they have not.
const ACCEPT: u32 = 0;

#[test]
fn behind_a_filter_that_lets_packets_go_on_sheer_works() {
    let lab = Lab::new();
    filter(&lab, GO_ON);
    let sheer = Sheer::on(&lab).tcp("7").option("--attach", "clsact").start();
    assert_works(&lab, &servers(&lab), "behind a filter");
    assert!(complaints(&lab, "tc-in-front").len() >= 2);
    assert_eq!(sheer.stop_beside_others().len(), 2);
}

#[test]
fn a_filter_that_accepts_packets_in_front_of_sheer_is_named_and_its_cure_works() {
    let lab = Lab::new();
    filter(&lab, ACCEPT);
    let sheer = Sheer::on(&lab).tcp("7").source("proxy").option("--attach", "clsact").start();
    let servers = servers(&lab);
    let ask = || {
        for (_, server) in &servers {
            assert_eq!(echoed(lab.client().connect(server.address()), BYTES), Ok(BYTES));
        }
    };
    ask();
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0, "Sheer sees nothing");
    for found in complaints(&lab, "tc-in-front") {
        let cure = found["cure"].as_str().unwrap();
        let delete = cure.split("; ").find(|part| part.starts_with("tc filter del")).unwrap();
        sh(&lab, delete.trim_end_matches(", if nobody needs it"));
    }
    ask();
    for (family, server) in &servers {
        assert_eq!(server.peer_of_last(), lab.server().gateway(*family), "{family}: by the proxy");
    }
    assert_eq!(sheer.stop_beside_others().len(), 2);
}

/// Where there is TCX, Sheer goes in front of all filters; without, the cure is that of the filter in front.
#[test]
fn in_front_of_a_filter_that_accepts_packets_sheer_works() {
    let lab = Lab::new();
    filter(&lab, ACCEPT);
    let sheer = Sheer::on(&lab).tcp("7").start();
    if sheer.json("status")["interfaces"][0]["attached"] == "tcx" {
        assert_works(&lab, &servers(&lab), "in front of a filter");
        assert!(complaints(&lab, "tc-behind").len() >= 2);
    } else {
        skip("in front of a filter that accepts packets Sheer works", "this kernel lacks TCX");
    }
    sheer.stop_beside_others();
}

#[test]
fn behind_a_program_that_lets_packets_go_on_sheer_works_and_it_is_named() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    let programs: Result<Vec<_>, _> =
        lab.uplinks().iter().map(|device| InFront::of(lab.middle(), device)).collect();
    match programs {
        Ok(programs) => {
            assert_works(&lab, &servers(&lab), "behind a program");
            let found = complaints(&lab, "tc-in-front");
            let named = |found: &Value| found["what"].as_str().unwrap().contains(programs[0].name());
            assert!(found.len() == programs.len() && found.iter().all(named), "{found:?}");
        }
        Err(error) => {
            skip("behind a program that lets packets go on Sheer works", &format!("no TCX: {error}"));
        }
    }
    sheer.stop_beside_others();
}
