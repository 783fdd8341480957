//! Settings of the host that transparent proxies often ask to be changed: every combination works, and none is changed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::collections::BTreeSet;

use sheer_tests::{Family, Lab, Namespace, Server, Sheer};

/// One combination.
#[derive(Debug, Clone, Copy)]
struct Settings {
    rp_filter: u8,
    src_valid_mark: u8,
    ip_forward: u8,
    /// And that of what the kernel itself answers with.
    fwmark_accept: u8,
}

impl Settings {
    fn all(ip_forward: u8) -> impl Iterator<Item = Self> {
        (0..12).map(move |n| Self {
            rp_filter: n / 4,
            src_valid_mark: n / 2 % 2,
            ip_forward,
            fwmark_accept: n % 2,
        })
    }

    fn apply(self, namespace: &Namespace, interfaces: &[String]) {
        let set = |name: &str, value: u8| namespace.sysctl(name, &value.to_string());
        set("net.ipv4.ip_forward", self.ip_forward);
        set("net.ipv6.conf.all.forwarding", self.ip_forward);
        set("net.ipv4.tcp_fwmark_accept", self.fwmark_accept);
        set("net.ipv4.fwmark_reflect", self.fwmark_accept);
        set("net.ipv6.fwmark_reflect", self.fwmark_accept);
        let everywhere = ["all", "default", "lo"].into_iter().chain(interfaces.iter().map(String::as_str));
        for name in everywhere {
            set(&format!("net.ipv4.conf.{name}.rp_filter"), self.rp_filter);
            set(&format!("net.ipv4.conf.{name}.src_valid_mark"), self.src_valid_mark);
            set(&format!("net.ipv4.conf.{name}.forwarding"), self.ip_forward);
            set(&format!("net.ipv6.conf.{name}.forwarding"), self.ip_forward);
        }
    }
}

#[test]
fn on_a_router_every_combination_of_settings_works() {
    every_combination(1);
}

#[test]
fn on_a_host_that_does_not_forward_every_combination_of_settings_works() {
    every_combination(0);
}

/// Set before the start, which is also when the host is examined.
fn every_combination(ip_forward: u8) {
    let lab = Lab::new();
    let servers = Family::BOTH.map(|family| (family, Server::hello(lab.server(), family, 80)));
    let mut expected = 0;
    for settings in Settings::all(ip_forward) {
        settings.apply(lab.middle(), &lab.uplinks());
        let sheer = Sheer::on(&lab).tcp("80").start();
        for (family, server) in &servers {
            let from = lab.client().ip(*family);
            let mut stream = lab.client().dial_from(from, server.address()).unwrap_or_else(|e| {
                panic!("{family}, {settings:?}: {e}");
            });
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
            assert_eq!(server.peer_of_last(), from, "{family}, {settings:?}: {answer}");
        }
        expected += servers.len();
        assert_eq!(sheer.stop().len(), servers.len(), "{settings:?}");
    }
    let asked: usize = servers.iter().map(|(_, server)| server.count()).sum();
    assert_eq!((asked, expected), (24, 24));
}

/// Also while it runs, since somebody may change it then.
#[test]
fn settings_may_change_while_sheer_runs() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let servers = Family::BOTH.map(|family| (family, Server::hello(lab.server(), family, 80)));
    for settings in [1, 0].into_iter().flat_map(Settings::all) {
        settings.apply(lab.middle(), &lab.uplinks());
        for (family, server) in &servers {
            lab.client().ask(server.address());
            assert_eq!(server.peer_of_last(), lab.client().ip(*family), "{family}, {settings:?}");
        }
    }
    assert_eq!(sheer.stop().len(), 48);
}

#[test]
fn sheer_changes_no_sysctl() {
    let lab = Lab::new();
    // Counters among them that change by themselves.
    let varying = ["nf_conntrack_count", "fs.", "random", "stable_secret", "ip_local_reserved"];
    let settings = || -> BTreeSet<String> {
        let text = lab.middle().sh("sysctl -a --pattern ^net\\.");
        text.lines().filter(|line| !varying.iter().any(|v| line.contains(v))).map(str::to_owned).collect()
    };
    let before = settings();
    let sheer = Sheer::on(&lab).tcp("80").start();
    assert_eq!(settings(), before);
    sheer.stop();
    assert_eq!(settings(), before);
}
