//! What a packet costs in the kernel programs, by BPF_PROG_TEST_RUN: nanoseconds, as JSON on standard output.
//!
//! Part of `cargo xtask bench`. Two policies stand side by side and are measured in turns, so that a change of the
//! machine's mood meets both alike. A test run repeats one packet, so that everything it touches is in the caches; what
//! grows with the number of rules shows all the same, because every rule that is looked at costs instructions. Two cases
//! have packets that differ: many destinations, and each destination only once.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has to stop")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use sheer::{
    config::{Action, Prefixes, Service},
    dataplane::{Dataplane, object::program},
    flow::{ConnectionId, ConnectionTuples, Moved},
    policy::Policy,
    socket::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr, bind_listeners},
};
use sheer_tests::{Frame, MARK, Namespace, bring_into_force, load_programs};

const REPEAT: u32 = 400_000;
/// Destinations of the case in which they differ, and how often each one comes.
const DIFFERENT: (usize, u32) = (256, 2000);
/// Destinations of the case in which none comes twice.
const ONCE: usize = 2000;
/// How often the policy is reloaded while packets are looked at.
const RELOADS: u32 = 3;
const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8:1::7]:40000"];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse::<usize>().unwrap());
    let many = arguments.next().unwrap_or(1_000_000);
    let rounds = arguments.next().unwrap_or(7);
    let found = Namespace::new("cost").run(|| measure([(10, 20), (4096, many)], rounds));
    println!("{found:#}");
}

/// Each policy: every service has ports of its own and as many prefixes as the others; the last one is hit.
fn measure(sizes: [(usize, usize); 2], rounds: usize) -> Value {
    let mut policies = Vec::new();
    let mut benches = sizes.map(|(services, prefixes)| {
        let (bench, about) = Bench::stand(services, prefixes);
        policies.push(about);
        bench
    });
    let cases: Vec<Value> = Case::ALL
        .into_iter()
        .map(|case| {
            let mut samples = [const { Vec::new() }; 2];
            for round in 0..rounds {
                for turn in 0..2 {
                    let which = (round + turn) % 2;
                    samples[which].push(benches[which].cost(case));
                }
            }
            let [few, many] = samples.map(Summary::of);
            json!({ "name": case.name(), "few": few.json(), "many": many.json() })
        })
        .collect();
    let reload = benches[1].reload();
    json!({ "rounds": rounds, "repeat": REPEAT, "policies": policies, "cases": cases, "reload": reload })
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Empty,
    Established(usize),
    Taken(usize),
    Passed(usize),
    NoService(usize),
    Crossing(usize),
    Datagram,
    Different,
    EmptyOnce,
    Once,
}

impl Case {
    /// In the order of the table.
    const ALL: [Self; 15] = [
        Self::Empty,
        Self::Established(0),
        Self::Established(1),
        Self::Taken(0),
        Self::Taken(1),
        Self::Passed(0),
        Self::Passed(1),
        Self::NoService(0),
        Self::NoService(1),
        Self::Crossing(0),
        Self::Crossing(1),
        Self::Datagram,
        Self::Different,
        Self::EmptyOnce,
        Self::Once,
    ];

    fn name(self) -> String {
        let (name, family) = match self {
            Self::Empty => ("empty", None),
            Self::Established(family) => ("established", Some(family)),
            Self::Taken(family) => ("taken", Some(family)),
            Self::Passed(family) => ("passed", Some(family)),
            Self::NoService(family) => ("no_service", Some(family)),
            Self::Crossing(family) => ("crossing", Some(family)),
            Self::Datagram => ("datagram", None),
            Self::Different => ("taken_different", None),
            Self::EmptyOnce => ("empty_once", None),
            Self::Once => ("taken_once", None),
        };
        family.map_or_else(|| name.to_owned(), |family| format!("{name}_{}", ["v4", "v6"][family]))
    }
}

struct Summary {
    median: u64,
    min: u64,
    max: u64,
}

impl Summary {
    fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        Self { median: samples[samples.len() / 2], min: samples[0], max: samples[samples.len() - 1] }
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// Destinations that are hit, of both families.
struct Hit {
    proxied: [SocketAddr; 2],
    passed: [SocketAddr; 2],
    /// Of every service, for the cases in which destinations differ. In no order.
    all: Vec<SocketAddr>,
}

fn policy(count: usize, prefixes: usize) -> (Vec<Service>, Hit) {
    let mut random = fastrand::Rng::with_seed(7);
    let port = |n: usize| 1000 + (n % 60_000) as u16;
    let mut last = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let mut all = Vec::new();
    let mut services: Vec<Service> = (0..count)
        .map(|n| {
            let mut destinations = Prefixes::default();
            // Lengths as routing tables have them, the longest among them; neighbours overlap now and then.
            for prefix in 0..prefixes.div_ceil(count) {
                let v4 = Ipv4Addr::from(random.u32(0x0b00_0000..0xdf00_0000));
                let v6 = Ipv6Addr::from(0x2001_0000 << 96 | random.u128(..) >> 16);
                if prefix % 2 == 0 {
                    let net =
                        Ipv4Net::new(v4, *random.choice(&[18, 20, 22, 24, 24, 24, 32]).unwrap()).unwrap();
                    destinations.push(IpNet::V4(net.trunc()));
                    last.0 = v4;
                    all.push(SocketAddr::new(v4.into(), port(n)));
                } else {
                    let net = Ipv6Net::new(v6, *random.choice(&[40, 48, 48, 56, 64, 128]).unwrap()).unwrap();
                    destinations.push(IpNet::V6(net.trunc()));
                    last.1 = v6;
                    all.push(SocketAddr::new(v6.into(), port(n)));
                }
            }
            let ports = format!("{},{}-{}", port(n), port(n) + 1, port(n) + 40);
            Service {
                destinations: Some(destinations),
                ports: ports.parse().ok(),
                ..service(n, Action::Proxy)
            }
        })
        .collect();
    let port = port(count - 1);
    let hit = |port| [SocketAddr::new(IpAddr::V4(last.0), port), SocketAddr::new(IpAddr::V6(last.1), port)];
    // Both at the end of the list: one proxies, one lets pass.
    let proxied = services.pop().unwrap();
    let passed = Service { ports: "999".parse().ok(), action: Action::Pass, ..proxied.clone() };
    services.pop();
    services.push(Service { name: "passed".into(), ..passed });
    services.push(proxied);
    // The one before the last is gone.
    all.retain(|hit| hit.port() != port - 1);
    random.shuffle(&mut all);
    (services, Hit { proxied: hit(port), passed: hit(999), all })
}

fn service(number: usize, action: Action) -> Service {
    Service { action, ..Service::any(&format!("service-{number}")) }
}

struct Bench {
    dataplane: Dataplane,
    services: Vec<Service>,
    hit: Hit,
    /// Connections of the cases in which destinations differ.
    made: usize,
    _listeners: Vec<sheer::socket::Listeners>,
}

impl Bench {
    /// Brings a policy of that size into force, twice, and says what it is and how long that took.
    fn stand(services: usize, prefixes: usize) -> (Self, Value) {
        let (services, hit) = policy(services, prefixes);
        let mut bench = Self::load(services, hit);
        let loading = Instant::now();
        let policy = bench.bring_into_force(1);
        let loaded = loading.elapsed();
        let reloading = Instant::now();
        bench.bring_into_force(2);
        let reloaded = reloading.elapsed();
        for (id, from) in [(0, client(0)), (1, client(1))] {
            bench.enter(id, from, bench.hit.proxied[id as usize]);
        }
        let tables = policy.tables();
        let about = json!({
            "services": bench.services.len(),
            "prefixes": prefixes,
            "classes": tables.classes.len(),
            "kernel_bytes": tables.rows.len() * 64 + tables.classes.len() * 520 + bench.services.len() * 72,
            "load_s": loaded.as_secs_f64(),
            "reload_s": reloaded.as_secs_f64(),
        });
        (bench, about)
    }

    fn load(services: Vec<Service>, hit: Hit) -> Self {
        let own: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()];
        let mut dataplane = load_programs(&own.into());
        let listeners = bind_listeners(1, MARK, 16).unwrap();
        dataplane.set_listeners(&listeners).unwrap();
        Self { dataplane, services, hit, made: 0, _listeners: listeners }
    }

    fn bring_into_force(&mut self, generation: u32) -> Policy {
        bring_into_force(&mut self.dataplane, &self.services, (&[], &[]), generation)
    }

    /// New connections, one run each, on another CPU: while nothing happens, and while the policy is reloaded again and
    /// again.
    fn reload(&mut self) -> Value {
        let pin = PathBuf::from(format!("/sys/fs/bpf/packet-cost-{}", std::process::id()));
        self.dataplane.classifier(program::ETHER).unwrap().pin(&pin).unwrap();
        let asked = SchedClassifier::from_pin(&pin);
        std::fs::remove_file(&pin).unwrap();
        let asked = asked.unwrap();
        let frame = Frame::syn(client(0), self.hit.proxied[0]).bytes();
        let phase = |during: &mut dyn FnMut()| {
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    let mut runs = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let mut options = TestRunOptions::new();
                        options.data_in = Some(&frame);
                        runs.push(asked.test_run(options).unwrap().duration);
                    }
                    runs
                });
                during();
                over.store(true, Ordering::Relaxed);
                slowest(asking.join().unwrap())
            })
        };
        let quiet = phase(&mut || thread::sleep(Duration::from_secs(3)));
        let mut generation = 3;
        let reloading = phase(&mut || {
            for _ in 0..RELOADS {
                self.bring_into_force(generation);
                generation += 1;
            }
        });
        json!({ "reloads": RELOADS, "quiet": quiet, "reloading": reloading })
    }

    fn enter(&mut self, id: u64, client: SocketAddr, server: SocketAddr) {
        let flow = ConnectionTuples {
            id: ConnectionId(id),
            client: ClientAddr::new(client),
            original: OriginalDst::new(server),
            source: SourceAddr::new(client),
            upstream: UpstreamAddr::new(server),
            service: 0,
        };
        self.dataplane.flow_tables(1).unwrap()[0].insert(&flow, Moved::default()).unwrap();
    }

    /// Nanoseconds for one packet.
    fn cost(&mut self, case: Case) -> u64 {
        // To a port that some service takes, at an address that none does.
        let nowhere = |family: usize| -> SocketAddr {
            ["192.0.2.1:1005", "[2001:db8:ffff::1]:1005"][family].parse().unwrap()
        };
        let frame = match case {
            Case::Empty | Case::EmptyOnce => Frame::data(client(0), nowhere(0)),
            Case::Established(family) => Frame::data(client(family), self.hit.proxied[family]),
            Case::Taken(family) => Frame::syn(client(family), self.hit.proxied[family]),
            Case::Passed(family) => Frame::syn(client(family), self.hit.passed[family]),
            Case::NoService(family) => Frame::syn(client(family), nowhere(family)),
            Case::Crossing(family) => Frame::data(client(family), nowhere(family)),
            Case::Datagram => Frame::syn(client(0), nowhere(0)).udp(),
            Case::Different => return self.over_destinations(DIFFERENT.0, DIFFERENT.1),
            Case::Once => return self.over_destinations(ONCE, 1),
        };
        match case {
            Case::Empty => self.run(program::EMPTY, &frame, REPEAT),
            Case::EmptyOnce => {
                let single: Vec<u64> = (0..ONCE).map(|_| self.run(program::EMPTY, &frame, 1)).collect();
                Summary::of(single).median
            }
            _ => self.run(program::ETHER, &frame, REPEAT),
        }
    }

    /// The median over new connections to so many destinations, each repeated. No connection comes twice.
    fn over_destinations(&mut self, count: usize, repeat: u32) -> u64 {
        let mut costs = Vec::with_capacity(count);
        for _ in 0..count {
            let number = self.made % self.hit.all.len();
            let to = self.hit.all[number];
            let mut from = client(usize::from(to.is_ipv6()));
            from.set_port(1024 + (self.made % 60_000) as u16);
            self.made += 1;
            costs.push(self.run(program::ETHER, &Frame::syn(from, to), repeat));
        }
        Summary::of(costs).median
    }

    fn run(&mut self, name: &'static str, frame: &Frame, repeat: u32) -> u64 {
        let packet = frame.bytes();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.repeat = repeat;
        let run = self.dataplane.classifier(name).unwrap().test_run(options).unwrap();
        u64::try_from(run.duration.as_nanos()).unwrap()
    }
}

fn slowest(mut runs: Vec<Duration>) -> Value {
    runs.sort_unstable();
    let nanos = |place: usize| u64::try_from(runs[place].as_nanos()).unwrap();
    let last = runs.len() - 1;
    json!({ "runs": runs.len(), "median": nanos(last / 2), "p9999": nanos(last - last / 10_000), "max": nanos(last) })
}

fn client(family: usize) -> SocketAddr {
    CLIENT[family].parse().unwrap()
}
