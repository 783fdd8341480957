//! Fragments: all of a datagram take the way of the first, in whatever order they come.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};

use sheer_tests::{
    Arrival, Capture, Cutter, Dial, Family, Frame, Lab, PATIENCE, Pattern, Sender, Server, Sheer, cut,
    fill_checksum, ping, wait_until,
};

const BYTES: u64 = 300_000;
/// A segment of 1,460 bytes in three pieces.
const PIECE: usize = 512;
/// The header of a SYN, which has options, in two pieces.
const SMALL: usize = 24;

#[test]
fn segments_in_fragments_reach_the_proxy_in_any_order_from_both_sides() {
    for family in Family::BOTH {
        for arrival in Arrival::ALL {
            let lab = Lab::new();
            let (client, host) = (lab.client(), lab.server());
            let sheer = Sheer::on(&lab).tcp("80").start();
            let server = Server::echo(host, family, 80);
            let _up = Cutter::on(client, host.ip(family), PIECE, arrival);
            let _down = Cutter::on(host, client.ip(family), PIECE, arrival);
            let stream = client.connect(server.address());
            let pattern = Pattern::new(3);
            let back = std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    pattern.send(&mut &stream, BYTES).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                let back = pattern.receive(&mut &stream).map_err(|e| e.to_string());
                sending.join().unwrap();
                back
            });
            assert_eq!(back, Ok(BYTES), "{family}, {arrival:?}");
            assert_eq!(server.peer_of_last(), client.ip(family));
            assert_followed(&sheer, arrival);
            assert_eq!(sheer.stop().len(), 1);
        }
    }
}

/// Fragments were steered, and none went another way.
#[track_caller]
fn assert_followed(sheer: &Sheer<'_>, arrival: Arrival) {
    assert!(sheer.verdicts("steer_fragment") > 0, "{arrival:?}");
    assert_eq!(sheer.verdicts("hold_fragment") > 0, arrival != Arrival::InOrder, "{arrival:?}");
    for other in ["pass_fragment", "drop_fragment"] {
        assert_eq!(sheer.verdicts(other), 0, "{other}, {arrival:?}");
    }
    let status = sheer.json("status");
    for failure in ["failed_fragment_insert", "failed_fragment_hold", "failed_fragment_release"] {
        assert_eq!(status["failures"][failure], 0, "{failure}, {arrival:?}");
    }
}

#[test]
fn a_connection_whose_every_segment_is_in_fragments_is_opened_and_closed() {
    for family in Family::BOTH {
        for arrival in Arrival::ALL {
            let lab = Lab::new();
            let (client, host) = (lab.client(), lab.server());
            let sheer = Sheer::on(&lab).tcp("80").start();
            let server = Server::hello(host, family, 80);
            let _up = Cutter::on(client, host.ip(family), SMALL, arrival);
            let _down = Cutter::on(host, client.ip(family), SMALL, arrival);
            let answer = client.ask(server.address());
            assert!(answer.contains(&client.ip(family).to_string()), "{answer}");
            assert!(sheer.verdicts("lookup_listener") > 0, "{family}, {arrival:?}");
            assert_eq!(sheer.record()["reason"], "server_closed", "{family}, {arrival:?}");
            assert_followed(&sheer, arrival);
            sheer.stop();
        }
    }
}

#[test]
fn what_no_service_takes_passes_in_any_order() {
    for family in Family::BOTH {
        for arrival in Arrival::ALL {
            let lab = Lab::new();
            let (client, host) = (lab.client(), lab.server());
            let sheer = Sheer::on(&lab).tcp("80").start();
            let server = Server::hello(host, family, 81);
            let _up = Cutter::on(client, host.ip(family), SMALL, arrival);
            let answer = client.ask(server.address());
            assert!(answer.contains(&client.ip(family).to_string()), "{answer}");
            assert!(sheer.verdicts("pass_fragment") > 0);
            assert_eq!(sheer.verdicts("steer_fragment"), 0);
            assert_eq!(sheer.verdicts("hold_fragment") > 0, arrival != Arrival::InOrder, "{arrival:?}");
            // Nobody asks for UDP: its fragments wait for nothing.
            let held = sheer.verdicts("hold_fragment");
            let inbox = Inbox::new(&lab, family, 5300);
            inbox.send(&lab, b'u', arrival);
            inbox.expect(b"u");
            assert_eq!(sheer.verdicts("hold_fragment"), held);
            assert_eq!(sheer.stop(), Vec::<serde_json::Value>::new());
        }
    }
}

/// A socket of the server's that waits for datagrams of one letter.
struct Inbox {
    socket: UdpSocket,
    to: SocketAddr,
}

const DATAGRAM: usize = 3000;

impl Inbox {
    fn new(lab: &Lab, family: Family, port: u16) -> Self {
        let to = SocketAddr::new(lab.server().ip(family), port);
        let socket = lab.server().run(|| UdpSocket::bind(to).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, to }
    }

    /// Sends a datagram from the client in six fragments.
    fn send(&self, lab: &Lab, letter: u8, arrival: Arrival) {
        let from =
            SocketAddr::new(lab.client().ip(if self.to.is_ipv4() { Family::V4 } else { Family::V6 }), 4000);
        let mut packet = Frame::syn(from, self.to).datagram(&[letter; DATAGRAM]);
        fill_checksum(&mut packet);
        let mut fragments = cut(&packet, PIECE, u32::from(letter));
        arrival.arrange(&mut fragments, letter.into());
        let sender = Sender::new(lab.client(), self.to.ip());
        fragments.iter().for_each(|fragment| sender.send(fragment));
    }

    /// Waits for these, in this order.
    fn expect(&self, letters: &[u8]) {
        for letter in letters {
            let mut datagram = [0; 2 * DATAGRAM];
            let length = self.socket.recv(&mut datagram).unwrap();
            assert!(length == DATAGRAM && datagram[..length].iter().all(|b| b == letter), "{}", datagram[0]);
        }
    }

    fn is_empty(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let nothing = self.socket.recv(&mut [0; 1]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
        nothing
    }
}

const UDP: &str = r#"
[[service]]
name = "no"
protocol = "udp"
port = [5300]
action = "drop"
[[service]]
name = "yes"
protocol = "udp"
port = [5301]
action = "pass"
"#;

#[test]
fn datagrams_in_fragments_are_dropped_and_passed_whole_in_any_order() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).config(UDP).start();
        let (no, yes) = (Inbox::new(&lab, family, 5300), Inbox::new(&lab, family, 5301));
        for (letter, arrival) in [b'a', b'b', b'c'].into_iter().zip(Arrival::ALL) {
            no.send(&lab, letter, arrival);
            yes.send(&lab, letter + 16, arrival);
            yes.expect(&[letter + 16]);
        }
        assert!(no.is_empty(), "{family}");
        assert_eq!((sheer.verdicts("drop_service"), sheer.verdicts("pass_service")), (3, 3));
        assert!(sheer.verdicts("drop_fragment") >= 5 && sheer.verdicts("pass_fragment") == 15);
        // What is complete leaves nothing behind; of what is dropped, fragments that have waited do not count.
        assert!(entries(&sheer, "fragments") <= 2);
        wait_until("the maps are swept", PATIENCE, || {
            (entries(&sheer, "fragments") == 0 && entries(&sheer, "held") == 0).then_some(())
        });
        sheer.stop();
    }
}

fn entries(sheer: &Sheer<'_>, map: &str) -> usize {
    let dump: serde_json::Value = serde_json::from_str(&sheer.map(map)).unwrap();
    dump.as_array().map_or(0, Vec::len)
}

/// Where nobody is, so that no host but ours has to remember what is sent there.
fn nowhere(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, 7).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 7).into(),
    }
}

/// Sends more first fragments than the map takes, of connections that no service wants.
fn fill(lab: &Lab, family: Family, round: u32) {
    let (from, to) = (SocketAddr::new(lab.client().ip(family), 4000), SocketAddr::new(nowhere(family), 81));
    let packet = Frame::data(from, to).ip();
    let sender = Sender::new(lab.client(), to.ip());
    for id in 0..6000 {
        sender.send(&cut(&packet, 64, round * 6000 + id)[0]);
    }
}

/// Sends a SYN in fragments while the map is full, and gives its port and how many of them passed and were dropped.
fn syn_while_full(lab: &Lab, sheer: &Sheer<'_>, family: Family, to: SocketAddr) -> (u16, [u64; 2]) {
    let client = lab.client().ip(family);
    let sender = Sender::new(lab.client(), to.ip());
    let count = || ["pass_fragment", "drop_fragment"].map(|name| sheer.verdicts(name));
    // Old entries may go before the SYN comes: the clock of the machine is not ours.
    (0..)
        .find_map(|round| {
            assert!(round < 10, "the map never gets full");
            let from = SocketAddr::new(client, 4001 + round as u16);
            let mut syn = Frame::syn(from, to).with_payload(40).ip();
            fill_checksum(&mut syn);
            let before = count();
            fill(lab, family, round);
            cut(&syn, SMALL, 7).iter().for_each(|fragment| sender.send(fragment));
            let after = count();
            let met = [after[0] - before[0], after[1] - before[1]];
            (met.iter().sum::<u64>() >= 3).then_some((from.port(), met))
        })
        .unwrap()
}

#[test]
fn while_the_map_is_full_when_down_decides_and_then_all_is_well_again() {
    for family in Family::BOTH {
        for (when_down, met) in [("open", [3, 0]), ("closed", [0, 3])] {
            let lab = Lab::new();
            lab.middle().configure(&format!("route add blackhole {}\n", nowhere(family)));
            let to = SocketAddr::new(lab.server().ip(family), 80);
            let service = "[[service]]\nname = \"web\"\nport = [80]";
            let sheer = Sheer::on(&lab).config(&format!("when_down = \"{when_down}\"\n{service}")).start();
            // Not where the map is filled from: it would not keep up.
            let capture = Capture::start(lab.server());
            let server = Server::hello(lab.server(), family, 80);
            let (port, found) = syn_while_full(&lab, &sheer, family, to);
            assert_eq!(found, met, "{family}, {when_down}");
            assert!(sheer.json("status")["failures"]["failed_fragment_insert"].as_u64().unwrap() > 0);
            let answered = || capture.count(|p| p.source == to && p.destination.port() == port && !p.resets);
            if when_down == "open" {
                wait_until("the server itself answers", PATIENCE, || (answered() > 0).then_some(()));
            }
            let _up = Cutter::on(lab.client(), to.ip(), SMALL, Arrival::Reversed);
            wait_until("the proxy takes fragments again", PATIENCE, || {
                let dial = Dial::to(to).within(std::time::Duration::from_secs(3));
                lab.client().dial(dial).ok()?;
                (sheer.verdicts("lookup_listener") > 0).then_some(())
            });
            assert_eq!(answered() > 0, when_down == "open", "{family}");
            drop(server);
            sheer.stop();
        }
    }
}

#[test]
fn a_connection_of_the_proxys_waits_until_the_map_has_room_and_never_leaks() {
    let lab = Lab::new();
    let (client, host) = (lab.client(), lab.server());
    let sheer = Sheer::on(&lab).tcp("80").start();
    lab.middle().configure(&format!("route add blackhole {}\n", nowhere(Family::V4)));
    let server = Server::echo(host, Family::V4, 80);
    let _up = Cutter::on(client, host.v4(), SMALL, Arrival::InOrder);
    let mut stream = client.connect(server.address());
    ping(&mut stream).unwrap();
    let capture = Capture::start(host);
    // Old entries may go before the segment comes: the clock of the machine is not ours.
    let mut round = 0;
    wait_until("a segment meets a full map", PATIENCE, || {
        round += 1;
        fill(&lab, Family::V4, round);
        ping(&mut stream).unwrap();
        (sheer.verdicts("drop_fragment") > 0).then_some(())
    });
    let packets = capture.packets();
    let seen: BTreeSet<_> = packets.iter().filter(|p| p.destination.port() == 80).map(|p| p.source).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [server.last()], "only the proxy's own segments");
    drop(stream);
    assert_eq!(sheer.record()["reason"], "client_closed");
    sheer.stop();
}
