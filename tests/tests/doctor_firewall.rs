//! What `sheer doctor` says about firewalls, NAT and connection tracking; every cure is tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read};
use std::time::Duration;

use sheer_tests::{Dial, Family, Lab, Server, Sheer, doctor};

#[test]
fn a_firewall_that_drops_by_default_is_named_and_its_cure_lets_connections_in() {
    let lab = Lab::new();
    lab.middle().sh("nft add table inet strict");
    lab.middle().sh("nft add chain inet strict in { type filter hook input priority 0 ; policy drop ; }");
    // So that IPv6 neighbours are found.
    lab.middle().sh("nft add rule inet strict in meta l4proto ipv6-icmp accept");
    let sheer = Sheer::on(&lab).tcp("80").start();
    let servers = Family::BOTH.map(|family| Server::hello(lab.server(), family, 80));
    for server in &servers {
        let dial = Dial::to(server.address()).within(Duration::from_millis(500));
        assert_eq!(lab.client().dial(dial).unwrap_err().kind(), ErrorKind::TimedOut, "the firewall drops");
    }
    let (_, cure) = doctor(&lab, &[]).only("firewall-input", "warning");
    // As a user would.
    lab.middle().sh(&cure);
    for server in &servers {
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family_of(server)));
    }
    sheer.stop();
}

fn family_of(server: &Server) -> Family {
    if server.address().is_ipv4() { Family::V4 } else { Family::V6 }
}

#[test]
fn masquerading_is_named_and_its_cure_keeps_the_clients_address() {
    let lab = Lab::new();
    lab.middle().sh("nft add table inet home");
    lab.middle().sh("nft add chain inet home out { type nat hook postrouting priority 100 ; }");
    lab.middle().sh("nft add rule inet home out oifname servers0 masquerade");
    let sheer = Sheer::on(&lab).tcp("80").option("--connect-timeout", "200ms").start();
    let servers = Family::BOTH.map(|family| Server::hello(lab.server(), family, 80));
    for server in &servers {
        // The proxy takes the connection, and never hears from the server.
        let mut stream = lab.client().connect(server.address());
        let mut answer = String::new();
        assert!(stream.read_to_string(&mut answer).is_err(), "masquerading does no harm: {answer}");
    }
    let examined = doctor(&lab, &[]);
    let nat = examined.finding("nat");
    assert_eq!((nat["severity"].as_str(), nat["object"].as_str()), (Some("warning"), Some("inet home out")));
    lab.middle().sh(nat["cure"].as_str().unwrap());
    for server in &servers {
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family_of(server)));
    }
    sheer.stop();
}

/// Lines for `nft -f`.
fn nft(lab: &Lab, rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    lab.middle().sh(&format!("nft -f {}", file.path().display()));
}

/// Whether an IPv4 client gets through.
fn works(lab: &Lab, server: &Server) -> bool {
    let dial = Dial::to(server.address()).within(Duration::from_millis(500));
    lab.client().dial(dial).is_ok_and(|mut stream| stream.read_to_string(&mut String::new()).is_ok())
}

#[test]
fn a_chain_at_any_hook_that_drops_in_the_end_is_named_once_and_its_cure_cures() {
    for (hook, id, end) in [
        ("prerouting priority raw", "firewall-input", "drop"),
        ("prerouting priority 0", "firewall-input", "drop"),
        ("input priority 0", "firewall-input", "meta l4proto tcp reject with tcp reset\n reject"),
        ("output priority 0", "firewall-output", "drop"),
        ("postrouting priority 0", "firewall-output", "drop"),
    ] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").start();
        let server = Server::hello(lab.server(), Family::V4, 80);
        // As firewalld and most guides end a chain, in one that is jumped to.
        nft(
            &lab,
            &format!(
                "table inet strict {{\n chain end {{\n {end}\n }}\n chain c {{\n type filter hook {hook}\n iifname lo accept\n \
                 tcp dport 22 accept\n jump end\n }}\n }}\n"
            ),
        );
        assert!(!works(&lab, &server), "{hook}: the firewall does not drop");
        let (text, cure) = doctor(&lab, &[]).only(id, "warning");
        assert!(text.starts_with("inet strict c: ends with a rule that drops"), "{text}");
        lab.middle().sh(&cure);
        assert!(works(&lab, &server), "{hook}: `{cure}` does not help");
        assert_eq!(server.peer_of_last(), lab.client().v4());
        // It is seen that it has been cured.
        assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default(), "{hook}");
        sheer.stop();
    }
}

#[test]
fn rules_against_foreign_destinations_are_named() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let named_and_cured = |rule: &str| {
        assert!(!works(&lab, &server), "{rule}: does no harm");
        let (_, cure) = doctor(&lab, &[]).only("firewall-input", "warning");
        lab.middle().sh(cure.split(" (").next().unwrap());
        assert!(works(&lab, &server), "{rule}: `{cure}` does not help");
        assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default(), "{rule}");
        lab.middle().sh("nft flush ruleset");
        cure
    };
    for rule in
        ["fib daddr type != local drop", "fib daddr . iif type != { local, broadcast, multicast } drop"]
    {
        nft(
            &lab,
            &format!(
                "table inet strict {{\n chain c {{\n type filter hook prerouting priority 0\n {rule}\n }}\n }}\n"
            ),
        );
        named_and_cured(rule);
    }
    lab.middle().sh("iptables -A INPUT -m addrtype ! --dst-type LOCAL -j DROP");
    named_and_cured("addrtype");
    // As ufw has it.
    for rule in [
        "-N ufw-before-input",
        "-N ufw-not-local",
        "-A INPUT -j ufw-before-input",
        "-A INPUT -p tcp --dport 80 -j ACCEPT",
        "-A ufw-before-input -j ufw-not-local",
        "-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN",
        "-A ufw-not-local -j DROP",
    ] {
        lab.middle().sh(&format!("iptables {rule}"));
    }
    let cure = named_and_cured("ufw");
    assert!(cure.contains("/etc/ufw/before.rules"), "{cure}");
    sheer.stop();
}

#[test]
fn iptables_is_answered_in_its_own_words() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.middle().sh("iptables -A INPUT -m conntrack --ctstate INVALID -j DROP");
    lab.middle().sh("iptables -A INPUT -p tcp --dport 22 -j ACCEPT");
    lab.middle().sh("iptables -P INPUT DROP");
    assert!(!works(&lab, &server));
    let (_, cure) = doctor(&lab, &[]).only("firewall-input", "warning");
    assert_eq!(cure, "iptables -I INPUT -m mark --mark 0x2040 -j ACCEPT");
    lab.middle().sh(&cure);
    assert!(works(&lab, &server));
    assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default());
    sheer.stop();
}

#[test]
fn dockers_forward_policy_is_no_complaint_and_does_no_harm_and_its_masquerading_is_named() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A DOCKER-USER -j DROP",
        "-t nat -N DOCKER",
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
    ] {
        lab.middle().sh(&format!("iptables {rule}"));
    }
    assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default());
    assert!(works(&lab, &server), "what is intercepted is not forwarded");
    lab.middle().sh("iptables -t nat -A POSTROUTING -s 192.0.2.0/24 ! -o docker0 -j MASQUERADE");
    assert!(!works(&lab, &server), "masquerading does no harm");
    let (_, cure) = doctor(&lab, &[]).only("nat", "warning");
    assert_eq!(cure, "iptables -t nat -I POSTROUTING -m mark --mark 0x2040 -j ACCEPT");
    lab.middle().sh(&cure);
    assert!(works(&lab, &server));
    assert_eq!(server.peer_of_last(), lab.client().v4());
    sheer.stop();
}

/// Connects as a client on another machine would. Hosts of a lab share their kernel's secret, so that the proxy's
/// initial sequence number for the same addresses and ports is nearly that of the client; conntrack then sees nothing
/// amiss. TCP_REPAIR chooses another one (TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ of linux/tcp.h).
fn answered_from_afar(lab: &Lab, server: &Server, sequence: u32) -> bool {
    // Before the connect, whatever the name says.
    let options = [(19, 1), (20, 2), (21, sequence.cast_signed()), (19, 0)]
        .map(|(name, value)| format!("setsockopt-listen=6:{name}:i{value}"))
        .join(",");
    // Long enough that the proxy's connection to the server is up before the last of it.
    let line = format!(
        "head -c 1000000 /dev/zero | timeout 2 socat -t 2 - TCP:{},{options} | wc -c",
        server.address()
    );
    let output = lab.client().command("sh").args(["-c", &line]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim() == "1000000"
}

fn all_answered_from_afar(lab: &Lab, server: &Server) -> bool {
    // Whatever the proxy's own is, some are ahead of it and some behind.
    (0..8).all(|n| answered_from_afar(lab, server, n << 29))
}

#[test]
fn rules_that_drop_the_invalid_break_client_port_only_and_the_cure_cures() {
    for rule in ["ct state invalid drop", "ct state vmap { established : accept, invalid : drop }"] {
        let lab = Lab::new();
        nft(
            &lab,
            &format!(
                "table inet strict {{\n chain c {{\n type filter hook input priority 0\n {rule}\n }}\n }}\n"
            ),
        );
        let server = Server::echo(lab.server(), Family::V4, 80);
        let sheer = Sheer::on(&lab).tcp("80").start();
        assert!(all_answered_from_afar(&lab, &server), "{rule}: source = client");
        sheer.stop();

        let services = "[[service]]\nname = \"web\"\nport = 80\nsource = \"client-port\"\n";
        let sheer = Sheer::on(&lab).config(services).start();
        assert!(!all_answered_from_afar(&lab, &server), "{rule}: conntrack is not confused");
        let file = sheer.config_file().display().to_string();
        let (text, cure) =
            doctor(&lab, &["-c", &file, "--instance", sheer.instance()]).only("conntrack-invalid", "warning");
        assert!(text.contains("source = client-port"), "{text}");
        lab.middle().sh(&cure);
        assert!(all_answered_from_afar(&lab, &server), "{rule}: `{cure}` does not help");
        assert_eq!(doctor(&lab, &["-c", &file]).complaints(), <[&str; 0]>::default());
        sheer.stop();
    }
}

#[test]
fn with_a_config_only_what_it_needs_is_complained_about() {
    let lab = Lab::new();
    nft(
        &lab,
        "table inet strict {\n chain c {\n type filter hook input priority 0\n ct state invalid drop\n }\n\
         chain out {\n type nat hook postrouting priority 100\n oifname servers0 masquerade\n }\n }\n",
    );
    let mut found = doctor(&lab, &[]).complaints().join(" ");
    assert_eq!(found, "conntrack-invalid nat");
    for (source, expected) in [("client", "nat"), ("proxy", ""), ("client-port", "conntrack-invalid nat")] {
        let sheer = Sheer::on(&lab)
            .config(&format!("[[service]]\nname = \"web\"\nport = 80\nsource = \"{source}\"\n"))
            .start();
        let file = sheer.config_file().display().to_string();
        found = doctor(&lab, &["-c", &file]).complaints().join(" ");
        assert_eq!(found, expected, "{source}");
        sheer.stop();
    }
}
