//! The kernel programs by themselves: a packet in, a verdict, a mark and the counters out (BPF_PROG_TEST_RUN).
//!
//! The kernel does not let `bpf_sk_assign` work in a test run, so that a new connection with a listener ends in
//! that helper's failure here; that it works is what the other scenarios show.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use aya::programs::{TestRun as _, TestRunOptions};
use sheer::{
    config::{Service, WhenDown},
    dataplane::{Dataplane, object::program},
    flow::{ConnectionId, ConnectionTuples, Moved},
    socket::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr, bind_listeners},
};
use sheer_common::{
    abi::Settings,
    fragment::{MAX_FRAGMENTS, MAX_HELD, MAX_HELD_EACH, MAX_HELD_LEN},
    verdict::{Counters, HelperFailure, Verdict},
};
use sheer_tests::{
    Frame, MARK, Namespace, PATIENCE, Tag, bring_into_force, cut, fragment, load_programs, wait_until,
};
use socket2::SockRef;

const CLIENT: &str = "198.51.100.7:40000";
const SERVER: &str = "203.0.113.9:80";
const CLIENT6: &str = "[2001:db8:1::7]:40000";
const SERVER6: &str = "[2001:db8:2::9]:80";

/// Answers of a program (include/uapi/linux/pkt_cls.h).
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;

/// The programs, loaded in a namespace of their own.
struct Bench {
    dataplane: Dataplane,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answer: u32,
    mark: u32,
    verdict: Option<Verdict>,
    failure: Option<HelperFailure>,
}

impl Outcome {
    fn passed(verdict: Verdict) -> Self {
        Self { answer: UNSPEC, mark: 0, verdict: Some(verdict), failure: None }
    }

    fn steered(verdict: Verdict) -> Self {
        Self { answer: UNSPEC, mark: MARK, verdict: Some(verdict), failure: None }
    }
}

fn bench<T: Send>(when_down: WhenDown, story: impl FnOnce(&mut Bench) -> T + Send) -> T {
    Namespace::new("programs").run(|| {
        let own: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()];
        let mut dataplane = load_programs(&own.into());
        bring_into_force(&mut dataplane, &[service(when_down)], (&[], &[]), 1);
        story(&mut Bench { dataplane })
    })
}

fn service(when_down: WhenDown) -> Service {
    Service { ports: Some("80,8000-8099".parse().unwrap()), when_down, ..Service::any("test") }
}

impl Bench {
    fn ethernet(&mut self, frame: &Frame) -> Outcome {
        self.run(program::ETHER, &frame.bytes())
    }

    fn packet(&mut self, packet: &[u8]) -> Outcome {
        self.run(program::ETHER, &framed(packet))
    }

    fn run(&mut self, name: &'static str, packet: &[u8]) -> Outcome {
        let before = self.dataplane.counters().unwrap();
        let mut context = [0; 192];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_out = Some(&mut context);
        let answer = self.dataplane.classifier(name).unwrap().test_run(options).unwrap().return_value;
        // The third field of struct __sk_buff (include/uapi/linux/bpf.h).
        let mark = u32::from_ne_bytes(context[8..12].try_into().unwrap());
        let after = self.dataplane.counters().unwrap();
        Outcome {
            answer,
            mark,
            verdict: the_one_raised(Verdict::ALL, &before, &after, Verdict::of),
            failure: the_one_raised(HelperFailure::ALL, &before, &after, HelperFailure::of),
        }
    }
}

/// A packet behind an Ethernet header.
fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[0x02; 12][..], &ethertype, packet].concat()
}

/// The one counter of `all` that rose, by one.
fn the_one_raised<K: Copy + std::fmt::Debug>(
    all: &[K],
    before: &Counters,
    after: &Counters,
    of: impl Fn(K, &Counters) -> u64,
) -> Option<K> {
    let raised: Vec<K> = all.iter().copied().filter(|&k| of(k, after) != of(k, before)).collect();
    let total: u64 = raised.iter().map(|&k| of(k, after) - of(k, before)).sum();
    assert!(raised.len() <= 1 && total <= 1, "more than one counter rose: {raised:?}");
    raised.first().copied()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A SYN from the client to the server, of both families.
fn syns() -> [Frame; 2] {
    [Frame::syn(addr(CLIENT), addr(SERVER)), Frame::syn(addr(CLIENT6), addr(SERVER6))]
}

#[test]
fn a_new_connection_with_no_proxy_behind_passes_or_is_dropped_as_its_service_says() {
    bench(WhenDown::Open, |b| {
        for syn in syns() {
            assert_eq!(b.ethernet(&syn), Outcome::passed(Verdict::PassDown));
        }
    });
    bench(WhenDown::Closed, |b| {
        for syn in syns() {
            let dropped = Outcome { answer: SHOT, mark: 0, verdict: Some(Verdict::DropDown), failure: None };
            assert_eq!(b.ethernet(&syn), dropped);
        }
    });
}

#[test]
fn a_new_connection_goes_to_the_listener_while_there_is_one_and_the_proxy_is_not_leaving() {
    bench(WhenDown::Open, |b| {
        let listeners = bind_listeners(1, MARK, 16).unwrap();
        b.dataplane.set_listeners(&listeners).unwrap();
        for syn in syns() {
            assert_eq!(b.ethernet(&syn).failure, Some(HelperFailure::SkAssign), "assigning was tried");
        }
        let settings = b.dataplane.settings().unwrap();
        b.dataplane.set_settings(Settings { draining: 1, ..settings }).unwrap();
        for syn in syns() {
            assert_eq!(b.ethernet(&syn), Outcome::passed(Verdict::PassDown));
        }
        b.dataplane.set_settings(settings).unwrap();
        drop(listeners);
        for syn in syns() {
            assert_eq!(
                b.ethernet(&syn),
                Outcome::passed(Verdict::PassDown),
                "a closed listener leaves its slot"
            );
        }
    });
}

#[test]
fn packets_of_a_known_connection_are_marked_and_counted() {
    bench(WhenDown::Open, |b| {
        let mut table = b.dataplane.flow_tables(1).unwrap().remove(0);
        for (client, server) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
            let (client, server) = (addr(client), addr(server));
            let data = Frame::data(client, server);
            assert_eq!(b.ethernet(&data), Outcome::passed(Verdict::PassNoSocket));
            let flow = ConnectionTuples {
                id: ConnectionId(7),
                client: ClientAddr::new(client),
                original: OriginalDst::new(server),
                source: SourceAddr::new(SocketAddr::new(client.ip(), 40001)),
                upstream: UpstreamAddr::new(server),
                service: 0,
            };
            table.insert(&flow, Moved::default()).unwrap();
            assert_eq!(b.ethernet(&data), Outcome::steered(Verdict::SteerFlow));
            assert_eq!(b.ethernet(&data.clone().tagged(&[Tag::VLAN])), Outcome::steered(Verdict::SteerFlow));
            assert_eq!(
                b.ethernet(&data.clone().tagged(&[Tag::QINQ, Tag::VLAN])),
                Outcome::steered(Verdict::SteerFlow)
            );
            assert_eq!(b.ethernet(&data.clone().with_options()), Outcome::steered(Verdict::SteerFlow));
            assert_eq!(b.run(program::IP, &data.ip()), Outcome::steered(Verdict::SteerFlow));
            let other_way = Frame::data(server, client);
            assert_eq!(b.ethernet(&other_way), Outcome::passed(Verdict::PassNoSocket));
            let answer = Frame::data(server, SocketAddr::new(client.ip(), 40001));
            assert_eq!(b.ethernet(&answer), Outcome::steered(Verdict::SteerFlow));
            table.remove(&flow, true);
            assert_eq!(b.ethernet(&answer), Outcome::passed(Verdict::PassNoSocket));
            assert_eq!(b.ethernet(&data), Outcome::passed(Verdict::PassNoSocket));
        }
    });
}

/// A socket of somebody else's may have the tuple: another proxy's, which speaks from foreign addresses as well.
#[test]
fn a_packet_is_taken_only_for_a_socket_of_this_proxys() {
    bench(WhenDown::Open, |b| {
        let listeners = bind_listeners(1, MARK, 16).unwrap();
        b.dataplane.set_listeners(&listeners).unwrap();
        for server in [SERVER, SERVER6].map(addr) {
            let added =
                Command::new("ip").args(["addr", "add", &server.ip().to_string(), "dev", "lo"]).status();
            assert!(added.unwrap().success());
            // An IPv6 address can be bound a moment later, and its route comes another moment later.
            let listener = wait_until("it can be bound", PATIENCE, || TcpListener::bind(server).ok());
            let _client = wait_until("a connection stands", PATIENCE, || TcpStream::connect(server).ok());
            let (socket, client) = listener.accept().unwrap();
            let [data, syn] = [Frame::data(client, server), Frame::syn(client, server)];
            assert_eq!(b.ethernet(&data), Outcome::passed(Verdict::PassForeignSocket));
            assert_eq!(b.ethernet(&syn).failure, Some(HelperFailure::SkAssign), "a new connection");
            SockRef::from(&socket).set_mark(MARK + 1).unwrap();
            assert_eq!(b.ethernet(&data), Outcome::passed(Verdict::PassForeignSocket), "another one's mark");
            SockRef::from(&socket).set_mark(MARK).unwrap();
            assert_eq!(b.ethernet(&data), Outcome::steered(Verdict::SteerSocket));
            assert_eq!(b.ethernet(&syn), Outcome::steered(Verdict::SteerSocket), "the stack knows better");
        }
    });
}

#[test]
fn what_no_service_takes_and_what_is_this_hosts_own_is_let_alone() {
    bench(WhenDown::Closed, |b| {
        let passes = |b: &mut Bench, to: &str, verdict| {
            let from = if to.starts_with('[') { CLIENT6 } else { CLIENT };
            assert_eq!(b.ethernet(&Frame::syn(addr(from), addr(to))), Outcome::passed(verdict), "{to}");
        };
        for to in ["203.0.113.9:81", "203.0.113.9:7999", "203.0.113.9:8100", "[2001:db8:2::9]:443"] {
            passes(b, to, Verdict::PassNoService);
        }
        for to in ["203.0.113.1:80", "[2001:db8:2::1]:80", "127.0.0.1:80", "224.0.0.5:80", "0.0.0.0:80"] {
            passes(b, to, Verdict::PassLocal);
        }
        for to in ["169.254.1.1:80", "[fe80::1]:80", "[ff02::1]:80", "[::1]:80"] {
            passes(b, to, Verdict::PassLocal);
        }
        let dropped = b.ethernet(&Frame::syn(addr(CLIENT), addr("203.0.113.9:8099")));
        assert_eq!(dropped.verdict, Some(Verdict::DropDown), "the end of a range of ports");
    });
}

#[test]
fn frames_that_are_not_tcp_segments_are_let_pass_by_their_kind() {
    bench(WhenDown::Closed, |b| {
        let [v4, v6] = syns();
        let three_tags = [Tag::QINQ, Tag::QINQ, Tag::VLAN];
        assert_eq!(b.ethernet(&v4.clone().tagged(&three_tags)), Outcome::passed(Verdict::PassNotIp));
        for syn in [&v4, &v6] {
            assert_eq!(b.ethernet(&syn.clone().sctp()), Outcome::passed(Verdict::PassOtherProtocol));
            assert_eq!(b.ethernet(&syn.clone().udp()), Outcome::passed(Verdict::PassNoService));
            assert_eq!(b.ethernet(&syn.clone().sctp().fragment()).answer, UNSPEC);
            let whole = syn.bytes();
            // The kernel runs no test on a packet without a whole IP header; the parser's unit tests cut there too.
            let tcp_at = whole.len() - 20;
            for len in [tcp_at, tcp_at + 1, tcp_at + 13] {
                assert_eq!(
                    b.run(program::ETHER, &whole[..len]),
                    Outcome::passed(Verdict::PassMalformed),
                    "{len}"
                );
            }
        }
        assert_eq!(b.run(program::IP, &[0x55; 40]), Outcome::passed(Verdict::PassNotIp));
        assert_eq!(b.run(program::ETHER, &[0xff; 60]), Outcome::passed(Verdict::PassNotIp));
    });
}

#[test]
fn tags_options_and_extension_headers_hide_no_new_connection() {
    bench(WhenDown::Closed, |b| {
        for syn in syns() {
            let disguises = [
                syn.clone().tagged(&[Tag::VLAN]),
                syn.clone().with_options(),
                syn.clone().with_options().tagged(&[Tag::QINQ, Tag::VLAN]),
            ];
            for frame in disguises {
                assert_eq!(b.ethernet(&frame).verdict, Some(Verdict::DropDown), "{frame:?}");
            }
            assert_eq!(b.run(program::IP, &syn.ip()).verdict, Some(Verdict::DropDown));
        }
    });
}

#[test]
fn without_settings_every_packet_passes() {
    bench(WhenDown::Closed, |b| {
        let settings = b.dataplane.settings().unwrap();
        b.dataplane.set_settings(Settings { mark: 0, ..settings }).unwrap();
        let [syn, _] = syns();
        let outcome = b.ethernet(&syn);
        assert_eq!((outcome.answer, outcome.failure), (UNSPEC, Some(HelperFailure::MapLookup)));
    });
}

/// SYNs of both families with data, to be cut.
fn long_syns() -> [Vec<u8>; 2] {
    syns().map(|syn| syn.with_payload(100).ip())
}

#[test]
fn fragments_fare_as_the_first() {
    bench(WhenDown::Closed, |b| {
        let drop = |verdict| Outcome { answer: SHOT, mark: 0, verdict: Some(verdict), failure: None };
        for syn in long_syns() {
            let pieces = cut(&syn, 64, 1);
            assert_eq!(b.packet(&pieces[0]), drop(Verdict::DropDown));
            assert_eq!(b.packet(&pieces[1]), drop(Verdict::DropFragment));
            // It was the last one: nothing is remembered any more.
            assert_eq!(b.packet(&pieces[1]), drop(Verdict::HoldFragment));
            let other = cut(&syn, 64, 2);
            assert_eq!(b.packet(&other[1]), drop(Verdict::HoldFragment));
            assert_eq!(b.packet(&other[0]), drop(Verdict::DropDown));
            let later = fragment(&syn, &[0; 64], 64, true, 2);
            assert_eq!(b.packet(&later), drop(Verdict::DropFragment));
        }
    });
}

#[test]
fn a_fragment_that_would_write_over_the_flags_of_a_segment_is_dropped() {
    bench(WhenDown::Open, |b| {
        for syn in long_syns() {
            assert_eq!(b.packet(&cut(&syn, 64, 1)[0]).verdict, Some(Verdict::PassDown));
            for (offset, verdict) in
                [(8, Verdict::DropFragment), (16, Verdict::DropFragment), (24, Verdict::PassFragment)]
            {
                assert_eq!(b.packet(&fragment(&syn, &[2; 8], offset, true, 1)).verdict, Some(verdict));
            }
        }
    });
}

#[test]
fn a_first_fragment_that_others_wait_for_goes_on_as_it_came() {
    bench(WhenDown::Open, |b| {
        for (id, syn) in (1..).zip(long_syns()) {
            let pieces = cut(&syn, 24, id);
            for later in pieces[1..].iter().rev() {
                assert_eq!(b.packet(later).verdict, Some(Verdict::HoldFragment));
            }
            let mut out = vec![0; 2048];
            let mut options = TestRunOptions::new();
            let frame = framed(&pieces[0]);
            options.data_in = Some(&frame);
            options.data_out = Some(&mut out);
            let ran = b.dataplane.classifier(program::ETHER).unwrap().test_run(options).unwrap();
            assert_eq!((ran.return_value, &out[..ran.data_size_out as usize]), (UNSPEC, &frame[..]));
            assert_eq!(HelperFailure::FragmentRelease.of(&b.dataplane.counters().unwrap()), 0);
        }
    });
}

#[test]
fn where_no_more_datagrams_can_be_remembered_when_down_decides_for_new_connections() {
    for (when_down, verdict, answer) in
        [(WhenDown::Open, Verdict::PassFragment, UNSPEC), (WhenDown::Closed, Verdict::DropFragment, SHOT)]
    {
        bench(when_down, |b| {
            let listeners = bind_listeners(1, MARK, 16).unwrap();
            b.dataplane.set_listeners(&listeners).unwrap();
            let [syn, _] = long_syns();
            let stranger = Frame::data(addr(CLIENT), addr("203.0.113.9:81")).ip();
            assert_eq!(b.packet(&cut(&syn, 64, 0)[0]), Outcome::steered(Verdict::SteerNew));
            for id in 1..MAX_FRAGMENTS as u32 {
                assert_eq!(b.packet(&cut(&stranger, 64, id)[0]).failure, None, "{id}");
            }
            let more = MAX_FRAGMENTS as u32;
            let before = b.dataplane.counters().unwrap();
            let run = |b: &mut Bench, packet: &[u8]| {
                let mut options = TestRunOptions::new();
                let frame = framed(packet);
                options.data_in = Some(&frame);
                b.dataplane.classifier(program::ETHER).unwrap().test_run(options).unwrap().return_value
            };
            assert_eq!(run(b, &cut(&syn, 64, more)[0]), answer);
            assert_eq!(run(b, &cut(&stranger, 64, more)[0]), UNSPEC, "what passes by itself still does");
            let after = b.dataplane.counters().unwrap();
            assert_eq!(verdict.of(&after) - verdict.of(&before), 1);
            assert_eq!(HelperFailure::FragmentInsert.of(&after), 2);
            // Of one behind the first no service is known: the dataplane's word counts.
            let settings = b.dataplane.settings().unwrap();
            for closed in [0, 1] {
                b.dataplane.set_settings(Settings { closed, ..settings }).unwrap();
                let later = b.packet(&cut(&syn, 64, more)[1]);
                assert_eq!(later.failure, Some(HelperFailure::FragmentInsert));
                assert_eq!(later.answer, if closed == 0 { UNSPEC } else { SHOT });
            }
            // Those that were there before are followed all the same.
            let known = fragment(&syn, &[0; 64], 64, true, 0);
            assert_eq!(b.packet(&known), Outcome::steered(Verdict::SteerFragment));
        });
    }
}

#[test]
fn where_no_more_fragments_can_wait_when_down_decides() {
    bench(WhenDown::Open, |b| {
        let [syn, _] = long_syns();
        let later = |id, len| fragment(&syn, &vec![0; len], 64, true, id);
        let held =
            |outcome: &Outcome| outcome.verdict == Some(Verdict::HoldFragment) && outcome.failure.is_none();
        for _ in 0..MAX_HELD_EACH {
            assert!(held(&b.packet(&later(0, 64))));
        }
        let passed =
            Outcome { failure: Some(HelperFailure::FragmentHold), ..Outcome::passed(Verdict::PassFragment) };
        assert_eq!(b.packet(&later(0, 64)), passed, "too many of one datagram");
        assert_eq!(b.packet(&later(1, MAX_HELD_LEN)), passed, "too long");
        assert!(held(&b.packet(&later(1, 1480))));
        for id in 2..=MAX_HELD as u32 - MAX_HELD_EACH {
            assert!(held(&b.packet(&later(id, 64))), "{id}");
        }
        assert_eq!(b.packet(&later(5000, 64)), passed, "too many in all");
        let settings = b.dataplane.settings().unwrap();
        b.dataplane.set_settings(Settings { closed: 1, ..settings }).unwrap();
        assert_eq!(b.packet(&later(5001, 64)).verdict, Some(Verdict::DropFragment));
        // Room comes back when they have waited for too long.
        wait_until("another one of the same datagram can wait", PATIENCE, || {
            held(&b.packet(&later(0, 64))).then_some(())
        });
        wait_until("a fragment can wait again", PATIENCE, || {
            b.dataplane.sweep_fragments().unwrap();
            held(&b.packet(&later(5002, 64))).then_some(())
        });
    });
}

#[test]
fn what_was_decided_about_a_datagram_does_not_hold_for_long() {
    bench(WhenDown::Open, |b| {
        let [syn, _] = long_syns();
        assert_eq!(b.packet(&cut(&syn, 64, 1)[0]).verdict, Some(Verdict::PassDown));
        let later = fragment(&syn, &[0; 8], 64, true, 1);
        assert_eq!(b.packet(&later).verdict, Some(Verdict::PassFragment));
        wait_until("it is forgotten", PATIENCE, || {
            (b.packet(&later).verdict == Some(Verdict::HoldFragment)).then_some(())
        });
        assert_eq!(b.packet(&cut(&syn, 64, 1)[0]).verdict, Some(Verdict::PassDown));
        assert_eq!(b.packet(&later).verdict, Some(Verdict::PassFragment), "known anew");
    });
}

#[test]
fn to_be_asked_leaves_nothing_behind() {
    bench(WhenDown::Open, |b| {
        let syn = Frame::syn(addr(CLIENT), addr(SERVER)).with_payload(100);
        let pieces = cut(&syn.ip(), 64, 1);
        for piece in [&pieces[0], &pieces[1]] {
            let asked = b.run(program::EXPLAIN, &framed(piece));
            assert_eq!((asked.verdict, asked.failure), (None, None));
        }
        for place in 0..MAX_HELD_EACH {
            let later = b.packet(&pieces[1]);
            assert_eq!((later.verdict, later.failure), (Some(Verdict::HoldFragment), None), "{place}");
        }
    });
}
