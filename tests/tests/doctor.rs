//! `sheer doctor`: what it finds on a host, that its cures cure, and what `--fix` does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use sheer_tests::{
    Dial, Examined, Family, Feature, Lab, Process, Server, Sheer, binary, doctor, missing, wait_until,
};

#[test]
fn a_good_host_is_fine_and_every_interface_was_looked_at() {
    let lab = Lab::new();
    let examined = doctor(&lab, &[]);
    assert_eq!(examined.complaints(), <[&str; 0]>::default(), "{:#}", examined.report);
    let seen: Vec<&str> =
        examined.with("interface").iter().map(|finding| finding["object"].as_str().unwrap()).collect();
    for uplink in lab.uplinks() {
        assert!(seen.contains(&uplink.as_str()), "{uplink} is not in {seen:?}");
    }
    // Only the machine itself may have made it a warning.
    assert_eq!(examined.code, i32::from(examined.report["verdict"] == "warnings"));
}

#[test]
fn people_read_a_line_for_each_finding_and_a_summary() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.ip_forward", "0");
    let output = lab.middle().command(&binary().to_string_lossy()).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("[warning] net.ipv4.ip_forward"), "{text}");
    assert!(text.contains("cure: sysctl -w net.ipv4.ip_forward=1"), "{text}");
    assert!(text.contains("[fine]    lo "), "{text}");
    assert!(text.lines().last().unwrap().contains("nothing that stops Sheer"), "{text}");
}

#[test]
fn forwarding_that_is_off_is_told_and_not_switched_on_unasked() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.ip_forward", "0");
    let (_, cure) = doctor(&lab, &["--fix"]).only("ip-forward", "warning");
    assert!(cure.starts_with("sysctl -w net.ipv4.ip_forward=1"), "{cure}");
    assert_eq!(lab.middle().sh("sysctl -n net.ipv4.ip_forward").trim(), "0");
    lab.middle().sysctl("net.ipv4.ip_forward", "1");
    lab.middle().sysctl("net.ipv6.conf.all.forwarding", "0");
    doctor(&lab, &[]).only("ip6-forward", "warning");
}

#[test]
fn a_loopback_that_is_down_cannot_work_and_is_brought_up() {
    let lab = Lab::new();
    lab.middle().sh("ip link set lo down");
    let (_, cure) = doctor(&lab, &[]).only("loopback", "cannot-work");
    assert_eq!(cure, "ip link set lo up");
    let fixed = doctor(&lab, &["--fix"]);
    assert_eq!(fixed.fixed("loopback"), "was down, and is up now");
    assert_eq!(fixed.complaints(), <[&str; 0]>::default());
    assert!(lab.middle().sh("ip link show lo").contains("UP"));
    assert_eq!(doctor(&lab, &[]).finding("loopback")["severity"], "fine");
}

#[test]
fn queues_that_are_short_are_made_longer_and_it_is_said_what_they_were() {
    let lab = Lab::new();
    lab.middle().sysctl("net.core.somaxconn", "128");
    lab.middle().sysctl("net.ipv4.tcp_syncookies", "0");
    lab.middle().sysctl("net.ipv4.tcp_max_syn_backlog", "256");
    assert_eq!(doctor(&lab, &[]).complaints(), ["somaxconn", "syn-backlog"]);
    let fixed = doctor(&lab, &["--fix"]);
    assert!(fixed.fixed("somaxconn").starts_with("was 128, is 4096 now"));
    assert!(fixed.fixed("syn-backlog").starts_with("was 256, is 4096 now"));
    assert_eq!(fixed.complaints(), <[&str; 0]>::default());
    assert_eq!(lab.middle().sh("sysctl -n net.core.somaxconn").trim(), "4096");
}

#[test]
fn a_misspelt_interface_is_answered_with_the_one_that_was_meant() {
    let lab = Lab::new();
    let (text, cure) =
        doctor(&lab, &["-i", "client0", "-i", "servers0"]).only("no-such-interface", "cannot-work");
    assert!(text.starts_with("client0: "), "{text}");
    assert_eq!(cure, "did you mean clients0?");
}

#[test]
fn an_interface_that_is_down_or_has_nobody_at_the_other_end_is_told() {
    let lab = Lab::new();
    lab.client().sh("ip link set eth0 down");
    let examined = doctor(&lab, &["-i", "clients0"]);
    examined.only("no-carrier", "warning");
    lab.middle().sh("ip link set clients0 down");
    let (_, cure) = doctor(&lab, &["-i", "clients0"]).only("interface-down", "warning");
    assert_eq!(cure, "ip link set clients0 up");
}

#[test]
fn few_ports_to_connect_from_are_told() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.ip_local_port_range", "40000 41999");
    let (text, _) = doctor(&lab, &[]).only("local-ports", "warning");
    assert!(text.contains("only 2000 connections"), "{text}");
}

#[test]
fn without_early_demux_it_is_told_to_be_slower_and_works() {
    let lab = Lab::new();
    for name in ["ip_early_demux", "tcp_early_demux"] {
        lab.middle().sysctl(&format!("net.ipv4.{name}"), "0");
    }
    doctor(&lab, &[]).only("early-demux", "warning");
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn a_filter_of_somebody_else_is_named_and_sheers_own_programs_are_not() {
    // Where there is no TCX, `auto` is clsact.
    let auto = if Feature::Tcx.is_there() { "tc-behind" } else { "tc-in-front" };
    let lab = Lab::new();
    lab.middle().sh("tc qdisc add dev clients0 clsact");
    let mut filter = lab.middle().command("tc");
    filter.args("filter add dev clients0 ingress pref 10 bpf bytecode".split(' '));
    // A program that returns 0 at once: nothing matches.
    assert!(filter.args(["1,6 0 0 0,", "flowid", "1:1"]).status().unwrap().success());
    for attach in ["auto", "clsact"] {
        let sheer = Sheer::on(&lab).tcp("80").option("--attach", attach).start();
        let expected = if attach == "auto" { auto } else { "tc-in-front" };
        let (text, cure) = doctor(&lab, &[]).only(expected, "warning");
        assert!(text.contains("clients0: has the bpf filter with pref 10"), "{text}");
        assert!(cure.contains("tc filter del dev clients0 ingress pref 10"), "{cure}");
        sheer.stop_beside_others();
    }
}

#[test]
fn a_rule_of_somebody_else_that_is_asked_first_is_named_and_its_cure_brings_connections_back() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("proxy").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.middle().configure("route add 198.51.100.0/30 dev servers0 table 100\nrule add pref 10 lookup 100\n");
    let dial = Dial::to(server.address()).within(Duration::from_millis(500));
    assert_eq!(
        lab.client().dial(dial).unwrap_err().kind(),
        ErrorKind::TimedOut,
        "the kernel drops what it cannot forward"
    );
    let (text, cure) = doctor(&lab, &[]).only("rule-in-front", "warning");
    assert!(text.contains("IPv4 rule with preference 10: from all lookup 100"), "{text}");
    assert!(cure.contains("ip rule del pref 10"), "{cure}");
    // Asked later, and others that meet no packet of ours.
    lab.middle().configure(
        "rule del pref 10\nrule add pref 100 lookup 100\n\
         rule add pref 10 fwmark 0x200/0xf00 lookup 100\nrule add pref 11 iif lo lookup 100\n",
    );
    assert_eq!(doctor(&lab, &[]).complaints(), <[&str; 0]>::default());
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "the proxy's own address");
    sheer.stop_beside_others();
}

#[test]
fn a_table_of_somebody_else_cannot_work() {
    let lab = Lab::new();
    lab.middle().sh("ip -6 route add default dev servers0 table 8300");
    let (text, cure) = doctor(&lab, &[]).only("table-in-use", "cannot-work");
    assert!(text.starts_with("table 8300: holds an IPv6 route"), "{text}");
    assert!(cure.ends_with("ip -6 route flush table 8300"), "{cure}");
}

#[test]
fn a_dead_instance_is_named_with_its_interfaces_and_a_running_one_is_no_complaint() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    let name = format!("instance {}", sheer.instance());
    let about = |examined: &Examined, id: &str| {
        examined.with(id).into_iter().find(|finding| finding["object"] == name.as_str()).cloned()
    };
    let running = doctor(&lab, &[]);
    let mentioned = about(&running, "other-instance").expect("a running instance is mentioned");
    assert!(mentioned["why"].as_str().unwrap().starts_with("on clients0 and servers0 too"), "{mentioned}");
    assert_eq!(running.complaints(), <[&str; 0]>::default());
    assert_eq!(about(&running, "leftover"), None);

    sheer.kill();
    let dead = doctor(&lab, &[]);
    let left = about(&dead, "leftover").expect("a dead instance is named");
    assert!(left["what"].as_str().unwrap().ends_with("still stand on clients0 and servers0"), "{left}");
    let cure = format!("sheer cleanup --instance {}", sheer.instance());
    assert!(left["cure"].as_str().unwrap().starts_with(&cure), "{left}");
    assert_eq!(dead.code, 1);

    sheer.cleanup();
    assert_eq!(about(&doctor(&lab, &[]), "leftover"), None);
}

#[test]
fn a_port_of_a_bridge_is_told_to_name_the_bridge() {
    if missing(Feature::Bridge, "a port of a bridge is told to name the bridge") {
        return;
    }
    let lab = Lab::new();
    lab.middle().configure("link add br0 type bridge\nlink set clients0 master br0\nlink set br0 up\n");
    let (text, cure) = doctor(&lab, &["-i", "clients0"]).only("member", "warning");
    assert!(text.starts_with("clients0: belongs to the bridge br0"), "{text}");
    assert!(cure.contains("-i br0"), "{cure}");
    // Where none is named, the bridge stands for its ports.
    let all = doctor(&lab, &[]);
    let seen: Vec<&Value> = all.with("interface").iter().map(|finding| &finding["object"]).collect();
    assert!(
        seen.iter().any(|name| *name == "br0") && !seen.iter().any(|name| *name == "clients0"),
        "{seen:?}"
    );
}

#[test]
fn an_interface_that_cannot_be_read_cannot_work() {
    if missing(Feature::Tun, "an interface that cannot be read cannot work") {
        return;
    }
    let lab = Lab::new();
    // A tun device that says that it is of ARPHRD_IEEE80211 (TUNSETLINK of linux/if_tun.h).
    let mut command = lab.middle().command("socat");
    command.args(["TUN,tun-name=odd,ioctl-int=0x400454cd:801", "PIPE"]);
    let mut socat = Process::start("socat (package socat)", command);
    wait_until("the device is there", sheer_tests::PATIENCE, || {
        assert!(socat.is_running(), "{}", socat.stderr().join("\n"));
        let output = lab.middle().command("ip").args(["link", "show", "odd"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("link/ieee802.11").then_some(())
    });
    let examined = doctor(&lab, &["-i", "odd", "-i", "servers0"]);
    assert_eq!(examined.code, 2);
    let finding = examined.finding("link-layer");
    assert_eq!(
        (finding["severity"].as_str(), finding["object"].as_str()),
        (Some("cannot-work"), Some("odd"))
    );
}

#[test]
fn without_privileges_it_says_which_and_does_not_fail() {
    let lab = Lab::new();
    let mut command = lab.middle().command("setpriv");
    command.args(["--bounding-set=-all", &binary().to_string_lossy(), "doctor", "--json"]);
    let examined = Examined::of(command);
    assert_eq!(examined.code, 2);
    let what = examined.finding("privileges")["what"].as_str().unwrap().to_owned();
    for name in ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"] {
        assert!(what.contains(name), "{what}");
    }
    assert_eq!(examined.finding("bpf")["severity"], "cannot-work");
}

#[test]
fn a_bpffs_that_is_not_mounted_is_no_complaint_and_is_mounted() {
    let lab = Lab::new();
    // In a mount namespace of its own, so that nobody else misses it.
    let without_bpffs = |arguments: &str| {
        let mut command = lab.middle().command("unshare");
        let line = format!("umount /sys/fs/bpf; {} doctor --json {arguments}", binary().to_string_lossy());
        command.args(["--mount", "sh", "-c", &line]);
        Examined::of(command)
    };
    let unmounted = without_bpffs("");
    let finding = unmounted.finding("bpffs");
    assert_eq!((&finding["severity"], &finding["fixable"]), (&Value::from("fine"), &Value::from(true)));
    let fixed = without_bpffs("--fix");
    assert!(fixed.fixed("bpffs").contains("is now"));
    assert_eq!(fixed.finding("bpffs")["fixable"], false);
}

#[test]
fn a_start_logs_the_warnings_and_stops_at_what_cannot_work() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.ip_forward", "0");
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    let logged = sheer.process().stderr();
    let warning = logged.iter().find(|line| line.contains("net.ipv4.ip_forward: is 0"));
    assert!(warning.is_some_and(|line| line.contains("Cure: sysctl -w net.ipv4.ip_forward=1")), "{logged:?}");
    sheer.stop();

    lab.middle().sh("ip link set lo down");
    let builder = Sheer::on(&lab).tcp("80");
    let complaint = builder.start_in_vain();
    assert!(complaint.contains("lo: is down") && complaint.contains("ip link set lo up"), "{complaint}");
    builder.assert_nothing_left();
}
