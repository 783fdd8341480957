//! TCP where it is hard: SYN cookies, ports that come again, services that arrive while a connection passes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sheer_tests::{
    Dial, Family, Lab, Namespace, PATIENCE, Pattern, Server, Sheer, ping, stretched, wait_until,
};

/// A SYN that is lost costs a second; this is far less, and far more than a connect takes.
const SLOW: Duration = Duration::from_millis(50);
const CONNECTIONS: usize = 1000;
/// A machine that is busy may hold a thread up for so long. And where the client ends first, any Linux server loses a SYN now
/// and then, one of some 5,000: when it waits, with the last ACK before it, for a socket that is in somebody's hands.
const ATTEMPTS: usize = 5;

/// Connections are timed by one test at a time.
static TIMED: Mutex<()> = Mutex::new(());

/// A counter of /proc/net/netstat.
fn tcp_ext(namespace: &Namespace, name: &str) -> u64 {
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split_whitespace().position(|n| n == name).expect("no such counter");
    values.split_whitespace().nth(position).unwrap().parse().unwrap()
}

/// Cookies for every connection: the third packet of the handshake finds no half-open socket.
#[test]
fn with_syn_cookies_a_thousand_of_a_thousand_connections_succeed() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.tcp_syncookies", "2");
    let sheer = Sheer::on(&lab).tcp("7").start();
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let server = Server::echo(lab.server(), family, 7);
        lab.client().run(|| {
            for number in 0..CONNECTIONS {
                let exchange = || ping(&mut sheer_tests::connect(Dial::to(server.address()))?);
                exchange().unwrap_or_else(|e| panic!("{family}, connection {number}: {e}"));
            }
        });
        assert_eq!(server.count(), CONNECTIONS, "{family}");
        assert!(server.connections().iter().all(|c| c.peer.ip() == lab.client().ip(family)), "{family}");
        let by_cookie = tcp_ext(lab.middle(), "SyncookiesRecv");
        assert_eq!(by_cookie, (CONNECTIONS * (round + 1)) as u64, "{family}: handshakes by cookie");
    }
    assert_eq!(tcp_ext(lab.middle(), "SyncookiesFailed"), 0);
    assert_eq!(sheer.stop().len(), 2 * CONNECTIONS);
}

/// Who keeps the connection in TIME_WAIT towards its peer.
#[derive(Debug, Clone, Copy)]
enum First {
    /// The proxy, towards the client, and the server, towards the proxy.
    Server,
    /// The proxy, towards the server. The client would keep it too, and come again only a second later: it is made to forget.
    Client,
    /// Now this one, now that one.
    Both,
}

#[test]
fn a_port_that_is_used_a_thousand_times_is_never_slow_over_ipv4() {
    one_port(Family::V4, "client");
}

#[test]
fn a_port_that_is_used_a_thousand_times_is_never_slow_over_ipv6() {
    one_port(Family::V6, "client");
}

#[test]
fn a_port_that_is_used_a_thousand_times_and_kept_is_never_slow_over_ipv4() {
    one_port(Family::V4, "client-port");
}

#[test]
fn a_port_that_is_used_a_thousand_times_and_kept_is_never_slow_over_ipv6() {
    one_port(Family::V6, "client-port");
}

fn one_port(family: Family, source: &str) {
    let _alone = TIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new();
    lab.client().sysctl("net.ipv4.tcp_max_tw_buckets", "0");
    let sheer = Sheer::on(&lab).tcp("7,80").source(source).start();
    let (hello, echo) = (Server::hello(lab.server(), family, 80), Server::echo(lab.server(), family, 7));
    let mut made = 0;
    for (first, port) in [(First::Server, 30001), (First::Client, 30002), (First::Both, 30003)] {
        let from = SocketAddr::new(lab.client().ip(family), port);
        let what = format!("{family}, source = {source}, {first:?} first");
        let mut attempt = || {
            let (connections, slowest) =
                lab.client().run(|| again_and_again(first, from, [hello.address(), echo.address()]));
            made += connections;
            println!("{what}: {connections} connections, the slowest took {slowest:?}");
            slowest < stretched(SLOW)
        };
        assert!((0..ATTEMPTS).any(|_| attempt()), "{what}: a connect is slow each time");
    }
    assert_eq!(hello.count() + echo.count(), made, "the servers saw each connection once");
    // One in some thousands is lost in the backlog of a socket that somebody holds just then: by plain routing too.
    let again = tcp_ext(lab.middle(), "TCPSynRetrans");
    assert!(again <= 2, "the proxy sent a SYN again {again} times");
    // A SYN on TIME_WAIT that is only marked finds its listener too, but some 10 ms later.
    let (marked, found) = (sheer.verdicts("steer_time_wait"), sheer.verdicts("lookup_listener"));
    assert!(marked > CONNECTIONS as u64 && found >= marked, "{found} listeners named for {marked} SYNs");
    let records = sheer.stop();
    assert_eq!(records.len(), made);
    let changed = records.iter().filter(|record| record["source_port_changed"] == true).count();
    println!("{family}, source = {source}: {changed} of {made} with another port towards the server");
}

/// Connects from one port over and over, closing orderly, until a connect is slow; gives how many connections there were, and
/// the longest that a connect took.
fn again_and_again(first: First, from: SocketAddr, [hello, echo]: [SocketAddr; 2]) -> (usize, Duration) {
    let mut slowest = Duration::ZERO;
    for number in 0..CONNECTIONS {
        let server_first = match first {
            First::Server => true,
            First::Client => false,
            First::Both => number % 3 != 0,
        };
        let to = if server_first { hello } else { echo };
        let (mut stream, took) = wait_until("the port is free", PATIENCE, || once_free(from, to));
        slowest = slowest.max(took);
        let exchanged = exchange(&mut stream, server_first);
        exchanged.unwrap_or_else(|e| panic!("{from} to {to}, connection {number}: {e}"));
        if slowest >= stretched(SLOW) {
            return (number + 1, slowest);
        }
    }
    (CONNECTIONS, slowest)
}

/// None while the client itself still waits for the last ACK of the connection before.
fn once_free(from: SocketAddr, to: SocketAddr) -> Option<(TcpStream, Duration)> {
    let start = Instant::now();
    match sheer_tests::connect(Dial::to(to).from(from)) {
        Ok(stream) => Some((stream, start.elapsed())),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
        Err(error) => panic!("{from} to {to}: {error}"),
    }
}

fn exchange(stream: &mut TcpStream, server_first: bool) -> std::io::Result<()> {
    if !server_first {
        ping(stream)?;
        stream.shutdown(Shutdown::Write)?;
    }
    let rest = stream.read_to_end(&mut Vec::new())?;
    assert_eq!(rest == 0, !server_first, "{rest} bytes");
    Ok(())
}

/// Sends and compares what comes back until it is told to end.
fn bulk(mut stream: TcpStream, moved: &AtomicU64, enough: &AtomicBool) -> Result<(), String> {
    let pattern = Pattern::new(5);
    let mut writing = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let left = |offset| {
                moved.store(offset, Ordering::Relaxed);
                if enough.load(Ordering::Relaxed) { 0 } else { 64 * 1024 }
            };
            let sent = pattern.send_while(&mut writing, left).map_err(|e| e.to_string())?;
            writing.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
            Ok::<u64, String>(sent)
        });
        let received = pattern.receive(&mut stream).map_err(|e| e.to_string());
        let (sent, received) = (sending.join().unwrap()?, received?);
        if sent == received { Ok(()) } else { Err(format!("{sent} bytes sent, {received} received")) }
    })
}

/// Lets the threads of a scope end also when the scope panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Plays a story while bytes pass by routing, in both families. It is given a function that waits until more have passed, on
/// each connection; in the end they have to be the right ones.
fn while_bytes_pass<'lab>(
    lab: &'lab Lab,
    servers: &[Server; 2],
    story: impl FnOnce(&dyn Fn(&str)) -> Sheer<'lab>,
) -> Sheer<'lab> {
    let (moved, enough) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
    let more = |when: &str| {
        let before = moved.each_ref().map(|count| count.load(Ordering::Relaxed));
        wait_until(&format!("bytes flow {when}"), PATIENCE, || {
            let grown = |(now, before): (&AtomicU64, u64)| now.load(Ordering::Relaxed) > before + 1_000_000;
            moved.iter().zip(before).all(grown).then_some(())
        });
    };
    let streams = servers.each_ref().map(|server| lab.client().connect(server.address()));
    for (server, stream) in servers.iter().zip(&streams) {
        assert_eq!(server.last(), stream.local_addr().unwrap(), "nobody is in between");
    }
    std::thread::scope(|scope| {
        let end = SetOnDrop(&enough);
        let enough = &enough;
        let running = streams
            .into_iter()
            .zip(&moved)
            .map(|(stream, moved)| scope.spawn(|| bulk(stream, moved, enough)));
        let running: Vec<_> = running.collect();
        more("before Sheer is there");
        let sheer = story(&more);
        drop(end);
        let ended: Vec<_> = running.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ended, [Ok(()), Ok(())]);
        sheer
    })
}

fn assert_taken(lab: &Lab, servers: &[Server; 2]) {
    for server in servers {
        let stream = lab.client().connect(server.address());
        let client = stream.local_addr().unwrap();
        Pattern::new(6).there_and_back(stream, 1_000_000).map_err(|e| e.to_string()).unwrap();
        assert_ne!(server.last(), client, "{}: the proxy has a port of its own", server.address());
    }
}

#[test]
fn a_service_that_a_reload_brings_does_not_disturb_what_passes() {
    let lab = Lab::new();
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    let sheer = while_bytes_pass(&lab, &servers, |more| {
        let sheer = Sheer::on(&lab).config("[[service]]\nname = \"web\"\nport = 80\n").start();
        more("past Sheer");
        sheer.reload("[[service]]\nname = \"echo\"\nport = 7\n");
        more("past the service that would take them");
        sheer
    });
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0, "they passed");
    assert_taken(&lab, &servers);
    assert_eq!(sheer.stop().len(), 2);
}

#[test]
fn a_start_does_not_disturb_what_passes() {
    let lab = Lab::new();
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    let sheer = while_bytes_pass(&lab, &servers, |more| {
        let sheer = Sheer::on(&lab).tcp("7").start();
        more("past Sheer");
        sheer
    });
    assert_eq!(sheer.json("status")["connections"]["accepted"], 0, "they passed");
    assert_taken(&lab, &servers);
    assert_eq!(sheer.stop().len(), 2);
}
