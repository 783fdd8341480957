//! Dying, coming back, leaving: what becomes of traffic, and that nothing is left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sheer_tests::{Capture, Dial, Family, Lab, PATIENCE, Server, Sheer, read, reasons, reset, wait_until};

fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"ping");
    Ok(())
}

/// Lets the threads of a scope end also when the scope panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killed_with_when_down_open_new_connections_reach_the_real_server_at_once() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").source("proxy").option("--when-down", "open").start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.server().gateway(family), "while the proxy runs");
    }
    sheer.kill();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let quickly = Dial::to(server.address()).within(Duration::from_millis(900));
        let stream = lab.client().dial(quickly).expect("without a retransmitted SYN");
        assert_eq!(server.last(), stream.local_addr().unwrap(), "{family}: nobody stands between them");
    }
    sheer.cleanup();
}

#[test]
fn killed_with_when_down_open_a_client_comes_again_from_a_port_that_the_proxy_knew() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("7").option("--when-down", "open").start();
    // Resets at the end, so that the kernel keeps nothing of the old connections but the entries of the dead proxy.
    let serve = |mut stream: TcpStream| {
        let mut buffer = [0; 64];
        while let count @ 1.. = read(&mut stream, &mut buffer)? {
            stream.write_all(&buffer[..count])?;
        }
        reset(stream);
        Ok(())
    };
    let servers = Family::BOTH.map(|family| Server::start(lab.server(), family, 7, serve));
    let live = servers.each_ref().map(|server| {
        let mut stream = lab.client().connect(server.address());
        ping(&mut stream).unwrap();
        (stream.local_addr().unwrap(), server.last(), stream)
    });
    sheer.kill();
    let ports = live.map(|(clients, proxys, stream)| {
        assert_ne!(clients, proxys, "without a port of its own the proxy was not in between");
        reset(stream);
        [clients, proxys]
    });
    wait_until("nothing of the old connections is left", PATIENCE, || {
        lab.middle().sh("ss -Htan").is_empty().then_some(())
    });
    for (server, ports) in servers.iter().zip(ports) {
        for from in ports {
            let dial = Dial::to(server.address()).from(from).within(Duration::from_millis(900));
            let mut stream = lab.client().dial(dial).unwrap_or_else(|e| panic!("{from}: {e}"));
            ping(&mut stream).unwrap_or_else(|e| panic!("{from}: {e}"));
            assert_eq!(server.last(), from, "nobody stands between them");
        }
    }
    sheer.cleanup();
}

#[test]
fn killed_with_when_down_closed_nothing_gets_through_until_it_is_back() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").source("proxy").option("--when-down", "closed").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let to = server.address();
    sheer.kill();
    let behind = Capture::start(lab.server());
    let before = Capture::start(lab.middle());
    let (sheer, answer) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| lab.client().ask(to));
        // The second one is sent a second after the first: by then any answer would have come.
        wait_until("the client sends its SYN again", PATIENCE, || {
            (before.count(|p| p.opens && p.destination == to) >= 2).then_some(())
        });
        assert!(!asking.is_finished(), "somebody answered while the proxy was dead");
        assert_eq!(behind.count(|p| p.opens), 0, "a SYN reached the server past the proxy");
        (sheer.restart(), asking.join().unwrap())
    });
    let proxy = lab.server().gateway(Family::V4);
    assert!(
        answer.starts_with(&format!("you are {proxy}:")),
        "after the restart it goes by the proxy: {answer}"
    );
    assert_eq!(server.count(), 1);
    sheer.stop();
}

#[test]
fn a_restart_takes_over_the_links_and_lets_nothing_slip_by() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("proxy").option("--when-down", "closed").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let to = server.address();
    let links = |sheer: &Sheer<'_>| lab.uplinks().iter().map(|name| sheer.link_of(name)).collect::<Vec<_>>();
    let before = links(&sheer);
    let by_tcx = sheer.json("status")["interfaces"][0]["attached"] == "tcx";
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let sheer = std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                lab.client().run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let dial = Dial::to(to).within(Duration::from_millis(100));
                        let asked =
                            sheer_tests::connect(dial).and_then(|mut s| s.read_to_string(&mut String::new()));
                        served.fetch_add(usize::from(asked.is_ok_and(|n| n > 0)), Ordering::Relaxed);
                    }
                });
            });
        }
        let more = |what: &str| {
            let now = served.load(Ordering::Relaxed);
            wait_until(what, PATIENCE, || (served.load(Ordering::Relaxed) > now + 50).then_some(()));
        };
        more("connections are served before the kill");
        let mut sheer = sheer;
        for _ in 0..3 {
            sheer.kill();
            sheer = sheer.restart();
            more("connections are served after the restart");
        }
        sheer
    });
    let proxy = lab.server().gateway(Family::V4);
    let slipped: Vec<SocketAddr> =
        server.connections().iter().map(|c| c.peer).filter(|peer| peer.ip() != proxy).collect();
    assert_eq!(slipped, Vec::<SocketAddr>::new(), "connections that went past the proxy");
    assert_eq!(before, links(&sheer), "the links were made anew");
    assert!(!by_tcx || before.iter().all(Option::is_some), "the links are not pinned");
    sheer.stop();
}

#[test]
fn a_restart_with_other_interfaces_and_ports_leaves_nothing_of_the_old() {
    let lab = Lab::builder().clients(2).build();
    let uplinks = lab.uplinks();
    let mut first = Sheer::on(&lab).tcp("80").start();
    first.kill();
    let fewer: Vec<&str> = uplinks.iter().map(String::as_str).filter(|name| *name != "clients1").collect();
    let second = first.restart_with(|builder| builder.tcp("81").interfaces(&fewer));
    let rules = lab.middle().sh("ip rule show");
    assert!(rules.contains("iif clients0") && !rules.contains("iif clients1"), "{rules}");
    for (port, proxied) in [(80, false), (81, true)] {
        let server = Server::hello(lab.server(), Family::V4, port);
        let stream = lab.client().connect(server.address());
        let direct = server.last() == stream.local_addr().unwrap();
        assert_eq!(direct, !proxied, "port {port}");
    }
    second.stop();
}

#[test]
fn a_restart_with_other_numbers_or_filters_takes_those_of_the_old_away() {
    let lab = Lab::new();
    let numbered = |table: u32| format!("table = {table}\n[[service]]\nname = \"web\"\nport = 80\n");
    let mut first = Sheer::on(&lab).config(&numbered(8411)).start();
    first.kill();
    let second = first.restart_with(|builder| builder.config(&numbered(8412)));
    let rules = lab.middle().sh("ip rule show");
    assert!(rules.contains("lookup 8412") && !rules.contains("lookup 8411"), "{rules}");
    second.stop();
    let mut first = Sheer::on(&lab).tcp("80").option("--attach", "clsact").start();
    first.kill();
    let second = first.restart_with(|builder| builder.interfaces(&["clients0"]));
    let filters = lab.middle().sh("tc filter show dev servers0 ingress");
    assert!(filters.is_empty(), "{filters}");
    second.stop();
}

#[test]
fn from_the_first_packet_that_is_looked_at_there_is_a_listener() {
    let lab = Lab::new();
    let server = Server::hello(lab.server(), Family::V4, 80);
    let done = AtomicBool::new(false);
    let sheer = std::thread::scope(|scope| {
        let _done = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // One that the start meets in its handshake may fail.
                let _ = lab.client().dial(Dial::to(server.address()).within(Duration::from_secs(1)));
            }
        });
        wait_until("connections pass", PATIENCE, || (server.count() > 5).then_some(()));
        let sheer = Sheer::on(&lab).tcp("80").start();
        wait_until("connections are taken", PATIENCE, || (sheer.records().len() > 5).then_some(()));
        sheer
    });
    assert_eq!(sheer.verdicts("pass_down"), 0);
    sheer.stop();
}

#[test]
fn sigterm_lets_a_slow_client_take_the_last_bytes() {
    const BYTES: usize = 30_000;
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::start(lab.server(), Family::V4, 80, |mut stream| stream.write_all(&[7; BYTES]));
    let mut stream = lab.client().dial(Dial::to(server.address()).receive_buffer(4096)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(sheer.record()["bytes_down"], BYTES, "the rest is the kernel's");
    sheer.terminate();
    wait_until("the instance says that it drains", PATIENCE, || {
        (sheer.json("status")["state"] == "draining").then_some(())
    });
    for _ in 0..5 {
        assert_eq!(sheer.json("status")["state"], "draining");
    }
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken).unwrap();
    assert_eq!(taken.len(), BYTES);
    assert!(sheer.wait().0.success());
}

#[test]
fn sigterm_lets_running_connections_finish() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("7").source("proxy").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    ping(&mut stream).unwrap();
    sheer.terminate();
    wait_until("the instance says that it drains", PATIENCE, || {
        (sheer.json("status")["state"] == "draining").then_some(())
    });
    ping(&mut stream).expect("a connection that stands may go on");
    let newcomer = lab.client().connect(server.address());
    let peer =
        wait_until("the newcomer reaches the server", PATIENCE, || server.connections().get(1).copied()).peer;
    assert_eq!(
        peer,
        newcomer.local_addr().unwrap(),
        "a newcomer goes its own way, as if the proxy were down"
    );
    assert!(sheer.process().is_running());
    drop(stream);
    let (status, records) = sheer.wait();
    assert!(status.success(), "{status}");
    assert_eq!(reasons(&records), ["client_closed"]);
}

#[test]
fn sigterm_lets_a_handshake_finish_that_is_under_way() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("7").source("proxy").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    // Of what the client sends, only what has no ACK comes through: the SYN.
    lab.client().sh("tc qdisc add dev eth0 root handle 1: htb default 1");
    for class in 1..=2 {
        lab.client()
            .sh(&format!("tc class add dev eth0 parent 1: classid 1:{class} htb rate 10gbit quantum 60000"));
    }
    lab.client().sh("tc qdisc add dev eth0 parent 1:2 pfifo limit 0");
    lab.client().sh("tc filter add dev eth0 parent 1: protocol ip u32 match u8 0x10 0x10 at 33 flowid 1:2");
    let mut stream = lab.client().connect(server.address());
    wait_until("the proxy's side waits for the end of the handshake", PATIENCE, || {
        lab.middle().sh("ss -Htn state syn-recv").contains(":7 ").then_some(())
    });
    sheer.terminate();
    wait_until("the instance says that it drains", PATIENCE, || {
        (sheer.json("status")["state"] == "draining").then_some(())
    });
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0, "the handshake was over too early");
    lab.client().sh("tc qdisc del dev eth0 root");
    ping(&mut stream).expect("a handshake that is under way may end well");
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4));
    assert!(sheer.process().is_running());
    drop(stream);
    let (status, records) = sheer.wait();
    assert!(status.success(), "{status}");
    assert_eq!(reasons(&records), ["client_closed"]);
}

#[test]
fn a_second_sigterm_ends_running_connections() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("7").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    ping(&mut stream).unwrap();
    sheer.terminate();
    wait_until("the instance says that it drains", PATIENCE, || {
        (sheer.json("status")["state"] == "draining").then_some(())
    });
    ping(&mut stream).unwrap();
    assert!(sheer.process().is_running());
    sheer.terminate();
    let (status, records) = sheer.wait();
    assert!(status.success(), "{status}");
    assert_eq!(reasons(&records), ["drained"], "also a connection that was cut off has its record");
    assert!(ping(&mut stream).is_err());
}

#[test]
fn the_drain_timeout_ends_what_does_not_end_by_itself() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").option("--drain-timeout", "300ms").start();
    let server = Server::echo(lab.server(), Family::V6, 7);
    let mut stream = lab.client().connect(server.address());
    ping(&mut stream).unwrap();
    sheer.terminate();
    let (status, records) = sheer.wait();
    assert!(status.success(), "{status}");
    assert_eq!(reasons(&records), ["drained"]);
}

#[test]
fn sigint_ends_it_as_well_and_leaves_nothing() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    sheer.process().signal(rustix::process::Signal::INT);
    let (status, _) = sheer.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn drain_by_command_ends_it_and_leaves_nothing() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let output = sheer.control("drain", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (status, _) = sheer.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn cleanup_after_a_kill_leaves_nothing() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    sheer.kill();
    let rules = lab.middle().sh("ip rule show");
    assert!(rules.contains("fwmark"), "a kill leaves the rules, or this test shows nothing: {rules}");
    sheer.cleanup();
}

#[test]
fn cleanup_works_also_when_an_interface_is_gone() {
    let lab = Lab::builder().clients(2).build();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    sheer.kill();
    lab.middle().configure("link del clients1\n");
    sheer.cleanup();
}

#[test]
fn an_interface_that_goes_away_does_not_stop_the_others() {
    let lab = Lab::builder().clients(2).build();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    lab.middle().configure("link del clients1\n");
    lab.client().ask(server.address());
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn two_instances_side_by_side_do_not_disturb_each_other() {
    let lab = Lab::builder().clients(2).build();
    let one = Sheer::on(&lab).tcp("80").source("proxy").interfaces(&["clients0", "servers0"]).start();
    let two = Sheer::on(&lab).tcp("81").source("proxy").interfaces(&["clients0", "servers0"]).start();
    for (port, other) in [(80, 81), (81, 80)] {
        let server = Server::hello(lab.server(), Family::V4, port);
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "port {port}, not {other}");
    }
    assert_eq!(one.stop_beside_others().len(), 1);
    let server = Server::hello(lab.server(), Family::V4, 81);
    lab.client().ask(server.address());
    assert_eq!(server.peer_of_last(), lab.server().gateway(Family::V4), "the other one goes on");
    assert_eq!(two.stop().len(), 2);
}
