//! Ports that run out: another port where the mode allows it, then a clear refusal; never another address, never a hang.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use sheer_tests::{
    Dial, Family, Host, Lab, Namespace, PATIENCE, Server, Sheer, ping, read, reset, wait_until,
};
use socket2::SockRef;

/// How long a refusal may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Ports of the middle in the small scenarios.
const FEW: usize = 20;

/// Leaves the middle [`FEW`] ports, which IPv6 shares. To be called when the listeners have theirs already.
fn narrow(lab: &Lab) {
    let last = 40_000 + FEW - 1;
    lab.middle().sysctl("net.ipv4.ip_local_port_range", &format!("40000 {last}"));
}

/// A connection that the server answers; or the error with which it is refused, which has to be quick.
fn try_one(client: &Namespace, dial: Dial) -> io::Result<TcpStream> {
    let start = Instant::now();
    let tried = client.dial(dial).and_then(|mut stream| ping(&mut stream).map(|()| stream));
    if tried.is_err() {
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
    tried
}

fn assert_refused(tried: io::Result<TcpStream>) {
    assert_eq!(tried.expect_err("it was served").kind(), ErrorKind::ConnectionReset);
}

fn steps(sheer: &Sheer<'_>) -> [u64; 4] {
    let status = sheer.json("status");
    ["port", "address", "proxy", "refused"]
        .map(|step| status["connections"]["source_steps"][step].as_u64().unwrap())
}

fn with_reason<'a>(records: &'a [Value], reason: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["reason"] == reason).collect()
}

#[test]
fn with_source_client_a_client_whose_ports_are_used_up_is_refused_and_nobody_else() {
    for family in Family::BOTH {
        let lab = Lab::builder().clients(2).servers(2).build();
        let mut sheer = Sheer::on(&lab).tcp("7").start();
        narrow(&lab);
        let server = Server::echo(lab.server(), family, 7);
        let dial = Dial::to(server.address());
        let mut held: Vec<_> = (0..FEW).map(|_| try_one(lab.client(), dial).unwrap()).collect();
        for _ in 0..3 {
            assert_refused(try_one(lab.client(), dial));
        }
        sheer.process().wait_for_stderr("what is used up", |line| {
            line.contains("net.ipv4.ip_local_port_range")
                && line.contains(&lab.client().ip(family).to_string())
        });
        // Another client has ports of its own, and so have connections to another server.
        try_one(&lab.clients()[1], dial).unwrap();
        let other = Server::echo(&lab.servers()[1], family, 7);
        try_one(lab.client(), Dial::to(other.address())).unwrap();
        assert_eq!(steps(&sheer), [0, FEW as u64 + 2, 0, 3], "{family}");
        let clients = [lab.client().ip(family), lab.clients()[1].ip(family)];
        assert!(server.connections().iter().all(|c| clients.contains(&c.peer.ip())), "{family}");
        // A reset leaves nothing behind: its port is free again.
        reset(held.pop().unwrap());
        held.push(wait_until("a port is free again", PATIENCE, || try_one(lab.client(), dial).ok()));
        drop(held);
        let records = sheer.stop();
        let refused = with_reason(&records, "source_exhausted");
        assert!(refused.len() >= 3, "{records:?}");
        for record in refused {
            assert_eq!(
                (&record["source_step"], &record["by"]),
                (&"refused".into(), &"proxy".into()),
                "{record}"
            );
            assert!(record["source"].is_null(), "{record}");
        }
    }
}

#[test]
fn with_source_client_port_the_port_gives_way_first_and_then_the_connection() {
    for (family, net) in [(Family::V4, "203.0.113."), (Family::V6, "2001:db8:99::")] {
        let lab = Lab::new();
        let upstream = SocketAddr::new(lab.server().ip(family), 7);
        let sheer = Sheer::on(&lab)
            .config(&format!(
                "[[service]]\nname = \"all\"\nport = 7\nsource = \"client-port\"\nupstream = \"{upstream}\""
            ))
            .start();
        narrow(&lab);
        let server = Server::echo(lab.server(), family, 7);
        // One port of the client, many whom it asks for: only one of its connections to the server can have that port.
        let from = SocketAddr::new(lab.client().ip(family), 50_000);
        let ask = |n: usize| {
            let whom: IpAddr = format!("{net}{}", n + 1).parse().unwrap();
            try_one(lab.client(), Dial::to(SocketAddr::new(whom, 7)).from(from))
        };
        let held: Vec<_> = (0..=FEW).map(|n| ask(n).unwrap()).collect();
        assert_refused(ask(FEW + 1));
        assert_eq!(steps(&sheer), [1, FEW as u64, 0, 1], "{family}");
        let seen: Vec<_> = server.connections().iter().map(|c| c.peer).collect();
        assert_eq!(seen[0], from, "{family}");
        assert!(seen.iter().all(|peer| peer.ip() == from.ip()), "{family}: {seen:?}");
        drop(held);
        let records = sheer.stop();
        let changed: Vec<_> = records.iter().filter(|r| r["source_port_changed"] == true).collect();
        assert!(changed.iter().all(|r| r["source_step"] == "address"), "{changed:?}");
        assert_eq!((changed.len(), with_reason(&records, "source_exhausted").len()), (FEW, 1));
    }
}

#[test]
fn with_source_proxy_it_is_this_hosts_own_ports_that_run_out() {
    let lab = Lab::builder().clients(2).build();
    let mut sheer = Sheer::on(&lab).tcp("7").source("proxy").start();
    narrow(&lab);
    let server = Server::echo(lab.server(), Family::V4, 7);
    let dial = Dial::to(server.address());
    let held: Vec<_> = (0..FEW).map(|n| try_one(&lab.clients()[n % 2], dial).unwrap()).collect();
    assert_refused(try_one(lab.client(), dial));
    sheer
        .process()
        .wait_for_stderr("whose ports are used up", |line| line.contains("this host's own address"));
    assert_eq!(steps(&sheer), [0, 0, FEW as u64, 1]);
    drop(held);
    sheer.stop();
}

/// How many connections the big scenario makes.
const MANY: usize = 60_000;
/// Client threads.
const HANDS: usize = 8;

/// What became of all connections.
#[derive(Debug, Default)]
struct Tally {
    served: AtomicUsize,
    refused: AtomicUsize,
    /// Anything else, in words.
    else_: Mutex<Vec<String>>,
    slowest_refusal: Mutex<Duration>,
}

/// Greets everybody with a byte, and closes when the client has.
struct Greeter {
    listener: TcpListener,
    seen: Arc<AtomicUsize>,
    /// Of these, who came from another address than the client's.
    strange: Arc<AtomicUsize>,
}

impl Greeter {
    fn start(host: &Host, address: SocketAddr, client: IpAddr) -> Self {
        let listener = host.run(|| TcpListener::bind(address).unwrap());
        let greeter = Self { listener, seen: Arc::default(), strange: Arc::default() };
        let (seen, strange) = (Arc::clone(&greeter.seen), Arc::clone(&greeter.strange));
        let listener = greeter.listener.try_clone().unwrap();
        host.spawn("greeter", move || {
            let mut open = VecDeque::new();
            while let Ok((mut stream, peer)) = listener.accept() {
                seen.fetch_add(1, Ordering::Relaxed);
                strange.fetch_add(usize::from(peer.ip() != client), Ordering::Relaxed);
                let _ = stream.write_all(b".");
                open.push_back(stream);
                // By then each hand has gone on to others.
                if open.len() > 100 * HANDS {
                    let _ = open.pop_front().unwrap().read(&mut [0]);
                }
            }
        });
        greeter
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        // Ends accept(2), and with it the thread and what it holds open.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

fn one_of_many(to: SocketAddr, tally: &Tally) {
    let start = Instant::now();
    let asked = sheer_tests::connect(Dial::to(to)).and_then(|mut stream| read(&mut stream, &mut [0]));
    match asked.map_err(|e| e.kind()) {
        Ok(1) => drop(tally.served.fetch_add(1, Ordering::Relaxed)),
        Err(ErrorKind::ConnectionReset) => {
            tally.refused.fetch_add(1, Ordering::Relaxed);
            let mut slowest = tally.slowest_refusal.lock().unwrap();
            *slowest = slowest.max(start.elapsed());
        }
        other => tally.else_.lock().unwrap().push(format!("{other:?} after {:?}", start.elapsed())),
    }
}

/// Connections that have ended keep their ports for a minute, as open ones do: the same end is reached without 120,000
/// descriptors.
#[test]
fn sixty_thousand_connections_of_one_client_end_in_clear_refusals() {
    let lab = Lab::new();
    lab.client().sysctl("net.ipv4.ip_local_port_range", "1024 65535");
    for host in [&**lab.client(), lab.middle()] {
        host.sysctl("net.ipv4.tcp_max_tw_buckets", "262144");
        host.sysctl("net.ipv4.tcp_tw_reuse", "0");
    }
    let service = "[[service]]\nname = \"all\"\nport = 7\n[proxy]\naccess_log = \"off\"\n";
    let mut sheer = Sheer::on(&lab).config(service).start();
    let to = SocketAddr::new(lab.server().v4(), 7);
    let greeter = Greeter::start(lab.server(), to, lab.client().v4());
    let tally = Arc::new(Tally::default());
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let hands: Vec<_> = (0..HANDS)
        .map(|_| {
            let (tally, next) = (Arc::clone(&tally), Arc::clone(&next));
            lab.client().spawn("hand", move || {
                while next.fetch_add(1, Ordering::Relaxed) < MANY {
                    one_of_many(to, &tally);
                }
            })
        })
        .collect();
    hands.into_iter().for_each(|hand| hand.join().unwrap());
    let took = start.elapsed();
    let (served, refused) = (tally.served.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed));
    let slowest = *tally.slowest_refusal.lock().unwrap();
    eprintln!("{served} served, {refused} refused in {took:?}, the slowest of these in {slowest:?}");
    assert_eq!(*tally.else_.lock().unwrap(), Vec::<String>::new());
    assert_eq!(served + refused, MANY);
    // The usual range, 32768 to 60999, without the few that listeners have.
    let ports = 60_999 - 32_768 + 1;
    assert!((ports - 16..ports + ports / 10).contains(&served), "{served} were served");
    assert_eq!(greeter.seen.load(Ordering::Relaxed), served);
    assert_eq!(greeter.strange.load(Ordering::Relaxed), 0, "the server saw somebody else than the client");
    assert!(slowest < AT_ONCE);
    let [port, address, proxy, no] = steps(&sheer).map(|n| usize::try_from(n).unwrap());
    assert_eq!((port, address, proxy, no), (0, served, 0, refused));
    assert_eq!(sheer.json("status")["connections"]["closed"]["source_exhausted"], refused);
    let told = sheer.process().stderr().iter().filter(|l| l.contains("net.ipv4.ip_local_port_range")).count();
    assert!((1..=40).contains(&told), "told {told} times of {refused}");
    drop(greeter);
    sheer.stop();
}
