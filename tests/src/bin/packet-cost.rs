//! What a packet costs in the kernel programs, by BPF_PROG_TEST_RUN: nanoseconds, as JSON on standard output.
//!
//! Part of `cargo xtask bench`. A test run repeats one packet, so that everything it touches is in the caches; what
//! grows with the number of rules shows all the same, because every rule that is looked at costs instructions.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has to stop")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use aya::programs::{TestRun as _, TestRunOptions};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use sheer::{
    config::{Action, Prefixes, Protocol, Service, WhenDown},
    dataplane::{Dataplane, PolicyMaps, object::program},
    flow::{ConnectionId, ConnectionTuples, Moved},
    policy::{Policy, ServiceIds},
    socket::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr, bind_listeners},
};
use sheer_common::abi::{LAYOUT, Settings};
use sheer_tests::{Frame, Namespace};

const MARK: u32 = 0x2040;
const REPEAT: u32 = 400_000;
const ROUNDS: usize = 7;
const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8:1::7]:40000"];

fn main() {
    let many: usize = std::env::args().nth(1).map_or(1_000_000, |n| n.parse().unwrap());
    let sizes = [(10, 20), (4096, many)];
    let costs: Vec<Value> = sizes
        .into_iter()
        .map(|(services, prefixes)| Namespace::new("cost").run(|| measure(services, prefixes)))
        .collect();
    println!("{}", serde_json::to_string_pretty(&costs).unwrap());
}

/// One policy: every service has ports of its own and as many prefixes as the others; the last one is hit.
fn measure(services: usize, prefixes: usize) -> Value {
    let mut bench = Bench::load();
    let (services, hit) = policy(services, prefixes);
    let loading = Instant::now();
    let policy = bench.bring_into_force(&services, 1);
    let loaded = loading.elapsed();
    let reloading = Instant::now();
    bench.bring_into_force(&services, 2);
    let reloaded = reloading.elapsed();
    let tables = policy.tables();
    let mut found = json!({
        "services": services.len(),
        "prefixes": prefixes,
        "classes": tables.classes.len(),
        "kernel_bytes": tables.rows.len() * 64 + tables.classes.len() * 520 + services.len() * 72,
        "load_s": loaded.as_secs_f64(),
        "reload_s": reloaded.as_secs_f64(),
    });
    // To a port that some service takes, at an address that none does.
    let [nowhere, nowhere6] =
        ["192.0.2.1:1005", "[2001:db8:ffff::1]:1005"].map(|a| a.parse::<SocketAddr>().unwrap());
    let [client, client6]: [SocketAddr; 2] = CLIENT.map(|a| a.parse().unwrap());
    let mut cost = |name: &str, frame: &Frame| {
        found[name] = bench.cost(program::ETHER, &frame.bytes()).into();
    };
    cost("new_no_service", &Frame::syn(client, nowhere));
    cost("new_no_service_v6", &Frame::syn(client6, nowhere6));
    cost("new_passed", &Frame::syn(client, hit.passed[0]));
    cost("new_passed_v6", &Frame::syn(client6, hit.passed[1]));
    cost("new_proxied", &Frame::syn(client, hit.proxied[0]));
    cost("new_proxied_v6", &Frame::syn(client6, hit.proxied[1]));
    cost("crossing", &Frame::data(client, nowhere));
    cost("crossing_v6", &Frame::data(client6, nowhere6));
    cost("datagram", &Frame::syn(client, nowhere).udp());
    for (n, (name, from)) in [("established", client), ("established_v6", client6)].into_iter().enumerate() {
        bench.enter(n as u64, from, hit.proxied[n]);
        found[name] = bench.cost(program::ETHER, &Frame::data(from, hit.proxied[n]).bytes()).into();
    }
    found["empty"] = bench.cost(program::EMPTY, &Frame::data(client, nowhere).bytes()).into();
    found
}

/// Destinations that are hit, of both families.
struct Hit {
    proxied: [SocketAddr; 2],
    passed: [SocketAddr; 2],
}

fn policy(count: usize, prefixes: usize) -> (Vec<Service>, Hit) {
    let mut random = fastrand::Rng::with_seed(7);
    let port = |n: usize| 1000 + (n % 60_000) as u16;
    let mut last = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
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
                } else {
                    let net = Ipv6Net::new(v6, *random.choice(&[40, 48, 48, 56, 64, 128]).unwrap()).unwrap();
                    destinations.push(IpNet::V6(net.trunc()));
                    last.1 = v6;
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
    (services, Hit { proxied: hit(port), passed: hit(999) })
}

fn service(number: usize, action: Action) -> Service {
    Service {
        name: format!("service-{number}"),
        protocol: Protocol::Tcp,
        destinations: None,
        ports: None,
        clients: None,
        interfaces: None,
        action,
        source: Default::default(),
        upstream: Default::default(),
        when_down: WhenDown::Open,
        limit: None,
    }
}

struct Bench {
    dataplane: Dataplane,
    _listeners: Vec<sheer::socket::Listeners>,
}

impl Bench {
    fn load() -> Self {
        let mut dataplane = Dataplane::load(false).unwrap();
        let own: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8:2::1".parse().unwrap()];
        dataplane.set_local_addresses(&own.into()).unwrap();
        let settings = Settings {
            layout: LAYOUT,
            mark: MARK,
            table: 8300,
            priority: 60,
            workers: 1,
            draining: 0,
            active: 0,
            blocking: 0,
        };
        dataplane.set_settings(settings).unwrap();
        let listeners = bind_listeners(1, MARK, 16).unwrap();
        dataplane.set_listeners(&listeners).unwrap();
        Self { dataplane, _listeners: listeners }
    }

    fn bring_into_force(&mut self, services: &[Service], generation: u32) -> Policy {
        let names = services.iter().map(|service| service.name.as_str());
        let (_, ids, _) = ServiceIds::default().assign(names);
        let policy = Policy::new(services, &[], generation, &ids).unwrap();
        let maps = PolicyMaps::make(&policy).unwrap();
        self.dataplane.bring_into_force(&policy, &maps, &[]).unwrap();
        policy
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

    /// Nanoseconds for one run: the median of several averages.
    fn cost(&mut self, name: &'static str, packet: &[u8]) -> u64 {
        let mut rounds: Vec<u64> = (0..ROUNDS)
            .map(|_| {
                let mut options = TestRunOptions::new();
                options.data_in = Some(packet);
                options.repeat = REPEAT;
                let run = self.dataplane.classifier(name).unwrap().test_run(options).unwrap();
                u64::try_from(run.duration.as_nanos()).unwrap()
            })
            .collect();
        rounds.sort_unstable();
        rounds[ROUNDS / 2]
    }
}
