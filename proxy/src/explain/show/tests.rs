use super::*;
use crate::{
    explain::{
        answer::{Concurrent, Packet, Rate},
        reasons::Services,
        reference,
        tests::{config, from, ports, prefixes, service},
    },
    route::AddressSet,
};

fn web() -> crate::config::Service {
    crate::config::Service {
        destinations: prefixes("203.0.113.0/24"),
        clients: prefixes("198.51.100.0/24"),
        ..ports("web", "80,443")
    }
}

/// What three services make of a connection to port 443.
fn answer() -> Answer {
    let packet = Packet {
        protocol: Protocol::Tcp,
        from: "198.51.100.10:40000".parse().unwrap(),
        to: "203.0.113.10:443".parse().unwrap(),
    };
    let asked = reference::Packet {
        protocol: packet.protocol,
        from: packet.from.ip(),
        to: packet.to,
        interface: Some("eth0"),
    };
    let config = config(&[ports("ssh", "22"), from("lan", "10.0.0.0/8 192.168.0.0/16"), web()]);
    let own = AddressSet::new();
    let found = reference::first_match(&config.services, &own, &asked);
    Answer {
        packet,
        interface: Interface {
            name: "eth0".into(),
            chosen: Chosen::WayBack,
            seen: Seen::Here { by: "tcx".into() },
            frames: Frames::Ethernet,
        },
        destination: Destination::of(packet.to.ip(), &own),
        services: Services::of(&config, &own, &asked, found),
        socket: Socket::None,
        limit: None,
        blocked_by_hand: None,
        verdict: Verdict::SteerNew,
        worker: Some(0),
        draining: false,
        next: steered(Delivery::Here { table: 8300 }),
        disagreements: vec![],
    }
}

fn steered(delivery: Delivery) -> Next {
    let interface = "eth0".to_owned();
    Next::PolicyRoute { route: PolicyRoute { mark: 0x2040, priority: 60, interface, table: 8300 }, delivery }
}

/// The line, or lines, of a step.
fn step_of(answer: &Answer, label: &str) -> String {
    let text = answer.to_string();
    let lines = text.lines().skip_while(|line| !line.starts_with(label));
    let mut own: Vec<&str> = Vec::new();
    for line in lines {
        if !own.is_empty() && !line.starts_with(' ') {
            break;
        }
        own.push(line.get(LABEL..).unwrap_or_default());
    }
    own.join("\n")
}

#[test]
fn a_steered_packet_is_told_line_by_line() {
    let expected = "\
packet       tcp 198.51.100.10:40000 > 203.0.113.10:443, a SYN, in by eth0 (the way back to the client)
interface    eth0 is listed, attached by tcx
destination  203.0.113.10 is not this host's own
services     1 ssh  no: port 443 is not among 22
             2 lan  no: client 198.51.100.10 is in none of 10.0.0.0/8, 192.168.0.0/16
             3 web  yes: destination 203.0.113.0/24, port 443, client 198.51.100.0/24 → proxy (when down: open)
socket       none has this tuple
verdict      steer_new: given to the listener of worker 0
route        marked 0x2040; rule 60 for eth0 leads to table 8300: local default dev lo, so it is delivered here
";
    assert_eq!(answer().to_string(), expected);
}

#[test]
fn what_is_broken_behind_the_programs_is_told_with_its_cure() {
    let onward = Onward::There { interface: "eth1".into(), gateway: Some("192.0.2.1".parse().unwrap()) };
    let route = |delivery| step_of(&Answer { next: steered(delivery), ..answer() }, "route");
    let no_rule = route(Delivery::NoRule { onward: onward.clone() });
    assert!(
        no_rule.starts_with("marked 0x2040; rule 60 for eth0 is missing: somebody removed it"),
        "{no_rule}"
    );
    assert!(no_rule.contains("(forwarded by eth1 to 192.0.2.1); restart the instance, or: ip rule add"));
    let no_route = route(Delivery::NoRoute { onward: onward.clone() });
    assert!(no_route.ends_with("ip route add local default dev lo table 8300 protocol 83"), "{no_route}");
    let astray = route(Delivery::Astray { onward: Onward::Nowhere { why: "no route".into() } });
    assert!(astray.contains("and yet the kernel sends it nowhere (no route): a rule before it"), "{astray}");
    let own = route(Delivery::Here { table: 255 });
    assert!(own.contains("table 255 has the address as this host's own"), "{own}");
}

#[test]
fn what_does_not_reach_the_proxy_is_told_with_its_reason() {
    let verdict = |verdict, draining| step_of(&Answer { verdict, draining, ..answer() }, "verdict");
    assert_eq!(
        verdict(Verdict::PassDown, true),
        "pass_down: let pass: the proxy is leaving, and when_down of web is open"
    );
    assert_eq!(
        verdict(Verdict::DropDown, false),
        "drop_down: dropped: no listener is there, and when_down of web is closed"
    );
    assert_eq!(verdict(Verdict::PassService, false), "pass_service: let pass: web says so");
    assert_eq!(verdict(Verdict::PassMalformed, false), "pass_malformed: let pass");
}

#[test]
fn an_account_shows_what_is_left() {
    let blocked = Some(Blocked { remaining_s: 41.2, since_s: 18.8, refused: 7 });
    let rate = Rate { per_second: 100, burst: 200, left: 197, admitted: 3, refused: 0 };
    let account = Account {
        client: "198.51.100.0/24".parse().unwrap(),
        rate: Some(rate),
        concurrent: Some(Concurrent { held: 3, allowed: 10 }),
        blocked,
    };
    let told = step_of(&Answer { limit: Some(account), blocked_by_hand: blocked, ..answer() }, "limit");
    assert_eq!(
        told,
        "198.51.100.0/24: 197 of 200 at once are left, 100 a second in the long run; 3 of 10 connections; blocked, \
         for 42s more, 7 refused since\n198.51.100.10 is blocked by hand, for 42s more, 7 refused since"
    );
}

#[test]
fn services_that_are_not_told_are_counted() {
    let mut all: Vec<_> = (0..400).map(|n| from(&n.to_string(), "10.0.0.0/8")).collect();
    all.extend((0..12).map(|_| ports("ssh", "22")));
    all.push(service("rest"));
    let Packet { protocol, from, to } = answer().packet;
    let asked = reference::Packet { protocol, from: from.ip(), to, interface: None };
    let services = Services::of(&config(&all), &AddressSet::new(), &asked, Some(412));
    let told = step_of(&Answer { services, ..answer() }, "services");
    let first = told.lines().next();
    assert_eq!(first, Some("… 402 earlier services missed: 2 by port, 400 by client"));
    assert_eq!(told.lines().count(), 12);
}

#[test]
fn a_contradiction_is_called_a_fault() {
    let disagreements = vec![
        Disagreement::Service { programs: Some(3), config: None },
        Disagreement::Own { programs: false },
    ];
    let told = step_of(&Answer { disagreements, ..answer() }, "FAULT");
    assert!(told.contains("the kernel programs take service 3, by the config it is none: this is a bug"));
    assert!(told.contains("the kernel programs do not have the destination as this host's own"));
}

#[test]
fn an_answer_goes_through_the_control_socket() {
    let sent = Answer { next: Next::Unseen { onward: Onward::Here { table: 255 } }, ..answer() };
    let value = serde_json::to_value(&sent).unwrap();
    assert_eq!(value["verdict"], "steer_new");
    assert_eq!(value["next"]["onward"]["table"], 255);
    let got: Answer = serde_json::from_value(value).unwrap();
    assert_eq!(got.to_string(), sent.to_string());
}
