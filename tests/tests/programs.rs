//! The kernel programs by themselves: a packet in, a verdict, a mark and the counters out (BPF_PROG_TEST_RUN).
//!
//! The kernel does not let `bpf_sk_assign` work in a test run, so that a new connection with a listener ends in
//! that helper's failure here; that it works is what the other scenarios show.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr};

use aya::programs::{TestRun as _, TestRunOptions};
use sheer::{
    config::{Service, WhenDown},
    dataplane::{Dataplane, object::program},
    flow::{ConnectionId, ConnectionTuples, Moved},
    socket::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr, bind_listeners},
};
use sheer_common::{
    abi::Settings,
    verdict::{Counters, HelperFailure, Verdict},
};
use sheer_tests::{Frame, MARK, Namespace, Tag, bring_into_force, load_programs};

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
            assert_eq!(b.ethernet(&syn.clone().fragment()), Outcome::passed(Verdict::PassFragment));
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
