//! What one side does, the other sees: ends, resets, refusals, silence.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use sheer_tests::{
    Capture, Dial, Ended, Family, Lab, PATIENCE, Pattern, Server, Sheer, read, reasons, reset, wait_until,
};

#[test]
fn when_the_client_ends_its_half_the_server_can_go_on() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::start(lab.server(), family, 80, |mut stream| {
            let mut question = String::new();
            stream.read_to_string(&mut question)?;
            write!(stream, "you asked: {question}")
        });
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"why?").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), server.ended()), ("you asked: why?", Ended::Well), "{family}");
    }
    assert_eq!(reasons(&sheer.stop()), ["client_closed"; 2]);
}

#[test]
fn when_the_server_ends_its_half_the_client_can_go_on() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let (told, heard) = mpsc::channel();
        let server = Server::start(lab.server(), family, 80, move |mut stream| {
            stream.write_all(b"last words")?;
            stream.shutdown(Shutdown::Write)?;
            let mut more = String::new();
            stream.read_to_string(&mut more)?;
            told.send(more).map_err(std::io::Error::other)
        });
        let mut stream = lab.client().connect(server.address());
        let mut words = String::new();
        stream.read_to_string(&mut words).unwrap();
        assert_eq!(words, "last words", "{family}");
        stream.write_all(b"I am still here").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "I am still here", "{family}");
    }
    assert_eq!(reasons(&sheer.stop()), ["server_closed"; 2]);
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
        assert_eq!(server.ended(), Ended::Reset, "{family}");
    }
    assert_eq!(reasons(&sheer.stop()), ["client_reset"; 2]);
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::start(lab.server(), family, 80, |mut stream| {
            stream.read_exact(&mut [0])?;
            reset(stream);
            Ok(())
        });
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"x").unwrap();
        let error = read(&mut stream, &mut [0]).expect_err("a reset is no end of file");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family}");
    }
    assert_eq!(reasons(&sheer.stop()), ["server_reset"; 2]);
}

#[test]
fn a_refused_connection_reaches_the_client_as_a_reset() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let nobody = SocketAddr::new(lab.server().ip(family), 80);
        let refused = lab.client().dial(Dial::to(nobody)).and_then(|mut stream| read(&mut stream, &mut [0]));
        let kind = refused.expect_err("nobody listens there").kind();
        assert!(
            matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused),
            "{family}: {kind}"
        );
    }
    assert_eq!(reasons(&sheer.stop()), ["refused"; 2]);
}

#[test]
fn an_unreachable_server_ends_the_connection_after_the_connect_timeout() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").option("--connect-timeout", "500ms").start();
    // A route that swallows: nothing ever answers, as behind a firewall that drops.
    lab.server().configure("route add blackhole 203.0.113.0/24\n");
    lab.middle().configure(&format!("route add 203.0.113.0/24 via {}\n", lab.server().v4()));
    let start = Instant::now();
    let mut stream = lab.client().connect("203.0.113.1:80".parse().unwrap());
    let error = read(&mut stream, &mut [0]).expect_err("there is no server");
    let took = start.elapsed();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(took >= Duration::from_millis(450), "gave up after {took:?} already");
    assert_eq!(reasons(&sheer.stop()), ["connect_timeout"]);
}

#[test]
fn a_slow_client_holds_the_server_back_and_loses_nothing() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    let sent = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&sent);
    let server = Server::start(lab.server(), Family::V4, 80, move |stream| {
        send_counted(stream, &counting).map_err(std::io::Error::other)
    });
    let dial = Dial::to(server.address()).receive_buffer(16 * 1024);
    let mut stream = lab.client().dial(dial).unwrap();
    assert_held_back(&sent, &mut sheer);
    assert_eq!(Pattern::new(5).receive(&mut stream).map_err(|e| e.to_string()), Ok(SLOWLY));
    drop(stream);
    sheer.stop();
}

#[test]
fn a_slow_server_holds_the_client_back_and_loses_nothing() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    let (go, gone) = mpsc::channel::<()>();
    let (told, heard) = mpsc::channel();
    let gate = Mutex::new(gone);
    let server = Server::start(lab.server(), Family::V4, 80, move |mut stream| {
        gate.lock().unwrap().recv_timeout(PATIENCE).map_err(std::io::Error::other)?;
        let received = Pattern::new(5).receive(&mut stream).map_err(|e| e.to_string());
        told.send(received).map_err(std::io::Error::other)
    });
    let stream = lab.client().connect(server.address());
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_counted(stream, &sent));
        assert_held_back(&sent, &mut sheer);
        go.send(()).unwrap();
        assert_eq!(sender.join().unwrap(), Ok(()));
    });
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), Ok(SLOWLY));
    sheer.stop();
}

/// What is sent to one that does not read, at first.
const SLOWLY: u64 = 256 << 20;

fn send_counted(stream: std::net::TcpStream, sent: &AtomicU64) -> Result<(), String> {
    Pattern::new(5).send(&mut Counted { stream, sent }, SLOWLY).map_err(|e| e.to_string())
}

/// Nobody reads: the sender must come to a stop, and nothing may pile up in between.
fn assert_held_back(sent: &AtomicU64, sheer: &mut Sheer<'_>) {
    let stalled = stalled_at(sent);
    assert!(stalled < 64 << 20, "nobody read, and yet {stalled} bytes could be sent");
    let resident = resident_bytes(sheer.process().pid());
    assert!(resident < 128 << 20, "sheer holds {resident} bytes for one connection that stands still");
}

/// Waits until nothing more can be sent, and gives how much was.
fn stalled_at(sent: &AtomicU64) -> u64 {
    let mut last = (u64::MAX, Instant::now());
    wait_until("the sender is held back", PATIENCE, || {
        let now = sent.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(300)).then_some(now)
    })
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

struct Counted<'a> {
    stream: std::net::TcpStream,
    sent: &'a AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Small pieces, because a blocked write(2) does not say how much it has taken already.
        let count = self.stream.write(&bytes[..bytes.len().min(16 * 1024)])?;
        self.sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn a_silent_connection_ends_after_the_idle_timeout() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").option("--idle-timeout", "1s").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let start = Instant::now();
    let end = read(&mut stream, &mut [0]);
    let took = start.elapsed();
    let ended = matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
    assert!(ended, "{end:?}");
    assert!(took >= Duration::from_millis(900), "ended after {took:?} already");
    wait_until("the server sees the end too", PATIENCE, || server.connections()[0].ended);
    assert_eq!(reasons(&sheer.stop()), ["idle_timeout"]);
}

#[test]
fn packets_with_ip_options_are_intercepted_like_others() {
    // Record Route with room for three addresses; four NOPs.
    for options in ["x070f0400000000000000000000000000", "x01010101"] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").start();
        let server = Server::hello(lab.server(), Family::V4, 80);
        let capture = Capture::start(lab.middle());
        let output = lab
            .client()
            .command("socat")
            .args(["-u", &format!("TCP4:{},ip-options={options}", server.address()), "STDOUT"])
            .output()
            .expect("cannot run socat (package socat)");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(answer.starts_with(&format!("you are {}:", lab.client().v4())), "{options}: {answer:?}");
        wait_until("a SYN with options was on the wire", PATIENCE, || {
            (capture.count(|p| p.opens && p.ip_options > 0) > 0).then_some(())
        });
        assert_eq!(sheer.stop().len(), 1, "{options}");
    }
}

#[test]
fn data_right_before_the_end_is_never_lost() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::start(lab.server(), Family::V4, 80, |mut stream| {
        Pattern::new(9).send(&mut stream, 3_000_001).map_err(|e| std::io::Error::other(e.to_string()))
    });
    for _ in 0..20 {
        let mut stream = lab.client().connect(server.address());
        assert_eq!(Pattern::new(9).receive(&mut stream).map_err(|e| e.to_string()), Ok(3_000_001));
    }
    sheer.stop();
}

/// What a server says that has seen enough of an upload.
const ENOUGH: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const UPLOADS: usize = 100;

#[test]
fn an_answer_that_comes_in_the_middle_of_an_upload_arrives_although_a_reset_follows() {
    let lab = Lab::new();
    let server = Server::start(lab.server(), Family::V4, 80, |mut stream| {
        read(&mut stream, &mut [0; 1024])?;
        // What is left unread makes the end a reset.
        stream.write_all(ENOUGH.as_bytes())
    });
    let answered = || (0..UPLOADS).filter(|_| upload(&lab, server.address()) == ENOUGH).count();
    let directly = answered();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let proxied = answered();
    println!("of {UPLOADS} uploads were answered: {directly} directly, {proxied} through the proxy");
    assert!(proxied + 5 >= directly, "{proxied} answers came, {directly} without the proxy");
    assert_eq!(sheer.stop().len(), UPLOADS);
}

/// Sends until the server will have no more, and gives what it had to say.
fn upload(lab: &Lab, to: SocketAddr) -> String {
    let mut stream = lab.client().connect(to);
    let body = vec![b'x'; 64 * 1024];
    while stream.write_all(&body).is_ok() {}
    let mut answer = Vec::new();
    // A reset may stand at the end of it.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}
