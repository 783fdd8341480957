//! What `sheer doctor` says about the ways of packets: other tc programs in front, the check of sources, its own
//! options.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::ErrorKind;
use std::time::Duration;

use sheer_tests::{Dial, Family, Lab, Server, Sheer, binary, doctor};

#[test]
fn a_filter_in_front_that_accepts_ends_the_way_of_packets_and_is_named() {
    let lab = Lab::new();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let sheer = Sheer::on(&lab).tcp("80").source("proxy").option("--attach", "clsact").start();
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "the proxy's own address");
    let mut filter = lab.middle().command("tc");
    filter.args("filter add dev clients0 ingress pref 10 bpf bytecode".split(' '));
    // Matches everything and has no action: TC_ACT_OK, behind which nobody is asked.
    assert!(filter.args(["1,6 0 0 4294967295,", "flowid", "1:1"]).status().unwrap().success());
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.client().v4(), "Sheer never saw it");
    let (text, cure) = doctor(&lab, &[]).only("tc-in-front", "warning");
    assert!(text.starts_with("clients0: has the bpf filter with pref 10 on its ingress"), "{text}");
    assert!(cure.contains("tc filter del dev clients0 ingress pref 10"), "{cure}");
    lab.middle().sh("tc filter del dev clients0 ingress pref 10");
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4));
    assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default());
    sheer.stop();
}

#[test]
fn a_strict_check_of_sources_is_named_where_clients_come_by_other_ways() {
    let lab = Lab::builder().clients(2).build();
    let server = Server::hello(lab.server(), Family::V4, 80);
    // It comes by clients0, and the routes to it lead to clients1.
    let roaming = "203.0.113.7".parse().unwrap();
    lab.client().configure("addr add 203.0.113.7/32 dev eth0\n");
    lab.middle().configure("route add 203.0.113.7/32 via 192.0.2.6\n");
    let config = "[[service]]\nname = \"web\"\nport = 80\nreply = \"same-way\"\n";
    let sheer = Sheer::on(&lab).config(config).start();
    let file = sheer.config_file().display().to_string();
    lab.client().dial_from(roaming, server.address()).unwrap();
    assert_eq!(doctor(&lab, &["-c", &file]).complaints(), <[&str; 0]>::default());

    lab.middle().sysctl("net.ipv4.conf.clients0.rp_filter", "1");
    let from = std::net::SocketAddr::new(roaming, 0);
    let dial = Dial::to(server.address()).from(from).within(Duration::from_millis(500));
    assert_eq!(lab.client().dial(dial).unwrap_err().kind(), ErrorKind::TimedOut, "the check lets it in");
    lab.client().ask(server.address());
    let (text, cure) = doctor(&lab, &["-c", &file]).only("reverse-path", "warning");
    assert!(text.contains("strict on clients0"), "{text}");
    // Without such a service it is only mentioned.
    assert_eq!(doctor(&lab, &[]).finding("reverse-path")["severity"], "fine");
    lab.middle().sh(&cure);
    lab.client().dial_from(roaming, server.address()).unwrap();
    assert_eq!(doctor(&lab, &["-c", &file]).complaints(), <[&str; 0]>::default());
    sheer.stop();
}

#[test]
fn the_mark_in_a_cure_is_that_of_the_instance_that_is_named() {
    let lab = Lab::new();
    lab.middle().sh("nft add table inet strict");
    lab.middle().sh("nft add chain inet strict out { type filter hook output priority 0 ; policy drop ; }");
    let first = Sheer::on(&lab).tcp("80").start();
    let second = Sheer::on(&lab).tcp("81").option("--mark", "0x5348").start();
    for (sheer, mark) in [(&first, "0x2040"), (&second, "0x5348")] {
        let (_, cure) = doctor(&lab, &["--instance", sheer.instance()]).only("firewall-output", "warning");
        assert_eq!(cure, format!("nft insert rule inet strict out meta mark {mark} accept"));
    }
    second.stop_beside_others();
    first.stop();
}

#[test]
fn a_config_with_mistakes_is_wrong_use() {
    let lab = Lab::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[dataplane]\ninterfaces = []\n").unwrap();
    let mut command = lab.middle().command(&binary().to_string_lossy());
    let output = command.args(["doctor", "-c"]).arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("interfaces"), "{said}");
}
