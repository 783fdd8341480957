//! `sheer explain`: what becomes of a packet, and why.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::SocketAddr;

use serde_json::{Value, json};
use sheer_tests::{Family, Feature, Lab, PATIENCE, Server, Sheer, missing, wait_until};

fn asked(from: impl ToString, to: impl ToString) -> [String; 4] {
    ["--from".into(), from.to_string(), "--to".into(), to.to_string()]
}

/// What is printed, and the code that the command ends with.
fn explain(sheer: &Sheer<'_>, arguments: &[String]) -> (String, Option<i32>) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = sheer.control("explain", &arguments);
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code())
}

/// The answer for people.
fn told(sheer: &Sheer<'_>, arguments: &[String]) -> String {
    let (text, code) = explain(sheer, arguments);
    assert_eq!(code, Some(0), "{text}");
    text
}

fn answer(sheer: &Sheer<'_>, arguments: &[String]) -> Value {
    let text = told(sheer, &[arguments, &["--json".to_owned()]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

fn assert_says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

fn at(lab: &Lab, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(lab.server().ip(family), port)
}

#[test]
fn a_packet_that_is_taken_is_followed_to_the_listener() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80,8000-8099").option("--workers", "1").start();
    for family in Family::BOTH {
        let (client, server) = (lab.client().ip(family), at(&lab, family, 8080));
        let text = told(&sheer, &asked(client, server));
        let tuple = format!(
            "tcp {} > {server}, a SYN, in by clients0 (the way back to the client)",
            SocketAddr::new(client, 40000)
        );
        let foreign = format!("{} is not this host's own", server.ip());
        assert_says(
            &text,
            &[
                &tuple,
                "clients0 is listed, attached by ",
                &foreign,
                "1 tcp  yes: any destination, port 8000-8099, any client → proxy",
                "none has this tuple",
                "steer_new: given to the listener of worker 0",
                "rule ",
                "local default dev lo, so it is delivered here",
            ],
        );
        assert!(!text.contains("FAULT"), "{text}");
    }
    sheer.stop();
}

#[test]
fn asking_changes_nothing() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let before = sheer.json("status");
    let hits = sheer.json("services");
    for port in [80, 81] {
        told(&sheer, &asked(lab.client().v4(), at(&lab, Family::V4, port)));
    }
    let after = sheer.json("status");
    // Others rise by themselves: hosts look for their neighbours and routers.
    for counter in ["steer_new", "steer_socket", "pass_no_service", "pass_down"] {
        assert_eq!(before["verdicts"][counter], after["verdicts"][counter], "{counter}");
    }
    assert_eq!(before["failures"], after["failures"]);
    assert_eq!(hits, sheer.json("services"));
    assert_eq!(sheer.stop().len(), 0);
}

#[test]
fn a_port_that_nobody_takes_is_forwarded() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80,443").start();
    for family in Family::BOTH {
        let text = told(&sheer, &asked(lab.client().ip(family), at(&lab, family, 22)));
        assert_says(
            &text,
            &[
                "1 tcp  no: port 22 is not among 80, 443",
                "none of 1 takes it",
                "pass_no_service: let pass",
                "as if Sheer were not there: forwarded by servers0",
            ],
        );
    }
    let datagram =
        [&asked(lab.client().v4(), at(&lab, Family::V4, 80))[..], &["--proto".into(), "udp".into()]];
    assert_says(
        &told(&sheer, &datagram.concat()),
        &["an empty datagram", "no: it takes tcp", "pass_no_service"],
    );
    sheer.stop();
}

#[test]
fn this_hosts_own_address_is_left_alone() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let own = SocketAddr::new(lab.client().gateway(family), 80);
        let answer = answer(&sheer, &asked(lab.client().ip(family), own));
        assert_eq!(answer["destination"], "own");
        assert_eq!(answer["verdict"], "pass_local");
        assert_eq!(answer["next"]["onward"]["onward"], "here", "{answer}");
    }
    let link_local = told(&sheer, &asked(lab.client().v4(), "169.254.1.1:80"));
    assert_says(&link_local, &["169.254.1.1 is in 169.254.0.0/16", "169.254.1.1 is not named", "pass_local"]);
    sheer.stop();
}

#[test]
fn an_interface_that_is_not_listed_is_said_to_be_unseen() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").interfaces(&["servers0"]).start();
    let question = asked(lab.client().v4(), at(&lab, Family::V4, 80));
    let text = told(&sheer, &question);
    assert_says(
        &text,
        &[
            "clients0 is not listed",
            "yes: any destination, port 80",
            "Sheer does not see the packet: forwarded by servers0",
        ],
    );
    let chosen = answer(&sheer, &[&question[..], &["-i".into(), "servers0".into()]].concat());
    assert_eq!(chosen["interface"]["chosen"], "asked");
    assert_eq!(chosen["interface"]["seen"]["seen"], "here");
    let (misspelt, code) = explain(&sheer, &[&question[..], &["-i".into(), "clients1".into()]].concat());
    assert_eq!(code, Some(1));
    assert_says(&misspelt, &["no interface is called \"clients1\"", "did you mean clients0?"]);
    sheer.stop();
}

#[test]
fn a_bridge_over_a_listed_port_is_where_its_packets_are_routed() {
    if missing(Feature::Bridge, "explain over a bridge") {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.client().gateway(Family::V4);
    lab.middle().configure(&format!(
        "link add br0 type bridge\nlink set clients0 master br0\naddr del {gateway}/30 dev clients0\n\
         addr add {gateway}/30 dev br0\nlink set br0 up\n"
    ));
    let sheer = Sheer::on(&lab).tcp("80").start();
    let question = asked(lab.client().v4(), at(&lab, Family::V4, 80));
    assert_says(
        &told(&sheer, &question),
        &["in by br0 (the way back", "br0 is over clients0, which is listed", "for br0 leads to table"],
    );
    let port = told(&sheer, &[&question[..], &["-i".into(), "clients0".into()]].concat());
    assert_says(&port, &["clients0 is listed", "for br0 leads to table", "so it is delivered here"]);
    sheer.stop();
}

#[test]
fn a_rule_or_route_that_somebody_removed_is_missed() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for (family, flag) in [(Family::V4, ""), (Family::V6, "-6 ")] {
        let question = asked(lab.client().ip(family), at(&lab, family, 80));
        let route = answer(&sheer, &question)["next"]["route"].clone();
        let (priority, table, mark) = (&route["priority"], &route["table"], route["mark"].as_u64().unwrap());
        let rule = format!("priority {priority} fwmark {mark:#x} iif clients0 lookup {table} protocol 83");
        lab.middle().sh(&format!("ip {flag}rule del {rule}"));
        let text = told(&sheer, &question);
        assert_says(
            &text,
            &[
                "rule ",
                " for clients0 is missing",
                "(forwarded by servers0)",
                &format!("ip {flag}rule add {rule}"),
            ],
        );
        lab.middle().sh(&format!("ip {flag}rule add {rule}"));
        assert_says(&told(&sheer, &question), &["so it is delivered here"]);
        let local = format!("local default dev lo table {table} protocol 83");
        lab.middle().sh(&format!("ip {flag}route del {local}"));
        assert_says(
            &told(&sheer, &question),
            &["whose route is missing", &format!("ip {flag}route add {local}")],
        );
        lab.middle().sh(&format!("ip {flag}route add {local}"));
        lab.middle().sh(&format!("ip {flag}rule add priority 1 iif clients0 lookup main"));
        assert_says(&told(&sheer, &question), &["all of it is there; and yet forwarded by servers0"]);
        lab.middle().sh(&format!("ip {flag}rule del priority 1 iif clients0 lookup main"));
    }
    sheer.stop();
}

#[test]
fn while_the_proxy_leaves_a_packet_goes_as_when_down_says() {
    for (when_down, verdict, next) in [("open", "pass_down", "routed"), ("closed", "drop_down", "dropped")] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").option("--when-down", when_down).start();
        let server = Server::echo(lab.server(), Family::V4, 80);
        let held = lab.client().connect(server.address());
        assert_eq!(server.last().ip(), lab.client().v4());
        sheer.terminate();
        let question = asked(lab.client().v4(), at(&lab, Family::V4, 80));
        let told_so = wait_until("the proxy leaves", PATIENCE, || {
            let answer = answer(&sheer, &question);
            (answer["draining"] == true).then_some(answer)
        });
        assert_eq!((&told_so["verdict"], &told_so["next"]["next"]), (&json!(verdict), &json!(next)));
        let reason = format!("the proxy is leaving, and when_down of tcp is {when_down}");
        assert_says(&told(&sheer, &question), &[&reason]);
        drop(held);
        sheer.wait();
    }
}

#[test]
fn a_connection_that_stands_has_a_socket() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::echo(lab.server(), Family::V4, 80);
    let held = lab.client().connect(server.address());
    assert_eq!(server.last().ip(), lab.client().v4());
    let answer = answer(&sheer, &asked(held.local_addr().unwrap(), server.address()));
    assert_eq!((&answer["socket"], &answer["verdict"]), (&json!("proxys"), &json!("steer_socket")));
    drop(held);
    sheer.stop();
}

#[test]
fn questions_without_sense_are_wrong_use() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let (text, code) = explain(&sheer, &asked(lab.client().v4(), at(&lab, Family::V6, 80)));
    assert_eq!(code, Some(2), "{text}");
    assert_says(&text, &["addresses of different families"]);
    let (text, code) = explain(&sheer, &asked("example.net", at(&lab, Family::V4, 80)));
    assert_eq!(code, Some(2), "{text}");
    let (text, code) = explain(&sheer, &asked("100.64.0.1", at(&lab, Family::V4, 80)));
    assert_eq!(code, Some(1), "{text}");
    assert_says(&text, &["this host has no route to 100.64.0.1", "-i"]);
    sheer.stop();
}

#[test]
fn a_dead_instance_cannot_be_asked() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    sheer.kill();
    let (text, code) = explain(&sheer, &asked(lab.client().v4(), at(&lab, Family::V4, 80)));
    assert_eq!(code, Some(1), "{text}");
    assert_says(&text, &["is not running, but its programs still stand in the kernel"]);
    sheer.cleanup();
}
