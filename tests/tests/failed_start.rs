//! A start that fails: what was there before stays as it was, and nothing is added to it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use sheer_tests::{
    Capture, Dial, Family, Feature, Lab, Process, Server, Sheer, SheerBuilder, missing, wait_until,
};

/// Behind the others in the order of names, so that the others are attached first.
const UNREADABLE: &str = "unreadable";

/// A device in the middle that exists, but whose frames Sheer cannot read: a tun device that says that it is of ARPHRD_IEEE80211
/// (TUNSETLINK of linux/if_tun.h). It goes with the value.
fn unreadable_device(lab: &Lab) -> Process {
    let mut command = lab.middle().command("socat");
    command.args([&format!("TUN,tun-name={UNREADABLE},ioctl-int=0x400454cd:801"), "PIPE"]);
    let mut socat = Process::start("socat (package socat)", command);
    wait_until("the device is there", sheer_tests::PATIENCE, || {
        assert!(socat.is_running(), "{}", socat.stderr().join("\n"));
        let output = lab.middle().command("ip").args(["link", "show", UNREADABLE]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("link/ieee802.11").then_some(())
    });
    socat
}

fn with_unreadable<'lab>(lab: &'lab Lab, builder: SheerBuilder<'lab>) -> SheerBuilder<'lab> {
    let mut names = lab.uplinks();
    names.push(UNREADABLE.to_owned());
    builder.interfaces(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn assert_direct(lab: &Lab) {
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let stream = lab.client().dial(Dial::to(server.address())).expect("nobody may be in the way");
        assert_eq!(server.last(), stream.local_addr().unwrap(), "{family}: nobody stands between them");
    }
}

fn assert_dropped(lab: &Lab) {
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let to: SocketAddr = server.address();
        let (before, behind) = (Capture::start(lab.middle()), Capture::start(lab.server()));
        // Long enough for a second SYN: by then any answer to the first would have come.
        let dial = Dial::to(to).within(Duration::from_millis(1500));
        let error = lab.client().dial(dial).expect_err("somebody answered while the proxy was dead");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{family}");
        assert!(before.count(|p| p.opens && p.destination == to) >= 2, "{family}: {:?}", before.packets());
        assert_eq!(behind.count(|p| p.opens), 0, "{family}: a SYN reached the server past the proxy");
    }
}

#[test]
fn a_first_start_that_fails_at_an_interface_leaves_nothing_and_traffic_goes_its_way() {
    let scenario = "a first start that fails at an interface leaves nothing";
    if missing(Feature::Tun, scenario) {
        return;
    }
    let lab = Lab::new();
    let _device = unreadable_device(&lab);
    for attach in ["auto", "clsact"] {
        let builder = Sheer::on(&lab).tcp("80").option("--when-down", "closed").option("--attach", attach);
        let builder = with_unreadable(&lab, builder);
        let complaint = builder.start_in_vain();
        assert!(complaint.contains(UNREADABLE), "{attach}: {complaint}");
        builder.assert_nothing_left();
        assert_direct(&lab);
    }
}

#[test]
fn a_first_start_without_a_control_socket_leaves_nothing_and_traffic_goes_its_way() {
    let lab = Lab::new();
    let builder = Sheer::on(&lab).tcp("80").option("--when-down", "closed");
    let in_the_way = occupy_control_socket(builder.instance());
    let complaint = builder.start_in_vain();
    assert!(complaint.contains("control socket"), "{complaint}");
    fs::remove_dir(in_the_way).unwrap();
    builder.assert_nothing_left();
    assert_direct(&lab);
}

#[test]
fn after_a_start_that_fails_at_an_interface_a_dead_closed_instance_still_drops() {
    if missing(Feature::Tun, "after a start that fails at an interface a dead closed instance still drops") {
        return;
    }
    let lab = Lab::new();
    let _device = unreadable_device(&lab);
    let mut dead = Sheer::on(&lab).tcp("80").option("--when-down", "closed").start();
    dead.kill();
    let builder = with_unreadable(&lab, Sheer::on(&lab).named(dead.instance()).tcp("80"));
    let complaint = builder.start_in_vain();
    assert!(complaint.contains(UNREADABLE), "{complaint}");
    assert_dropped(&lab);
    dead.cleanup();
    assert_direct(&lab);
}

#[test]
fn after_a_start_with_an_interface_that_is_not_there_a_dead_closed_instance_still_drops() {
    let lab = Lab::new();
    let mut dead = Sheer::on(&lab).tcp("80").option("--when-down", "closed").start();
    dead.kill();
    let builder = Sheer::on(&lab).named(dead.instance()).tcp("80");
    let complaint = builder.interfaces(&["clients0", "servers0", "servers1"]).start_in_vain();
    assert!(complaint.contains("servers1"), "{complaint}");
    assert_dropped(&lab);
    dead.cleanup();
    assert_direct(&lab);
}

#[test]
fn after_a_start_without_a_control_socket_a_dead_closed_instance_still_drops() {
    let lab = Lab::new();
    let mut dead = Sheer::on(&lab).tcp("80").option("--when-down", "closed").start();
    dead.kill();
    let in_the_way = occupy_control_socket(dead.instance());
    let complaint = Sheer::on(&lab).named(dead.instance()).tcp("80").start_in_vain();
    assert!(complaint.contains("control socket"), "{complaint}");
    fs::remove_dir(in_the_way).unwrap();
    assert_dropped(&lab);
    dead.cleanup();
    assert_direct(&lab);
}

/// Puts a directory where the control socket has to be.
fn occupy_control_socket(instance: &str) -> String {
    let path = format!("/run/sheer/{instance}.sock");
    // A killed process leaves its own there.
    let _ = fs::remove_file(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Kills an instance in one lab and starts it in another one of the same interface names; hands over both for the end.
fn moved<'lab>(old: &'lab Lab, new: &'lab Lab) -> (Sheer<'lab>, Sheer<'lab>) {
    let mut dead = Sheer::on(old).tcp("80").source("proxy").option("--when-down", "closed").start();
    dead.kill();
    let sheer = Sheer::on(new).named(dead.instance()).tcp("80").source("proxy").start();
    for family in Family::BOTH {
        let server = Server::hello(new.server(), family, 80);
        new.client().ask(server.address());
        assert_eq!(server.peer_of_last(), new.server().gateway(family), "{family}");
    }
    (dead, sheer)
}

#[test]
fn an_instance_killed_in_one_network_namespace_can_be_started_in_another_one() {
    // Filters under clsact have no pin that could be taken away from elsewhere.
    if missing(Feature::Tcx, "what a dead instance left in another network namespace goes with its pins") {
        return;
    }
    let (old, new) = (Lab::new(), Lab::new());
    let (dead, sheer) = moved(&old, &new);
    // Its programs have gone with their pins.
    assert_direct(&old);
    assert_eq!(sheer.stop().len(), 2);
    dead.vanish();
}
