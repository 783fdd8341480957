//! The relay between real sockets: the test is client and server at once, and polls the relay itself.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use super::pipe::MAX_PIPES;
use super::*;

/// Bounds a test that hangs; none that passes waits for it.
const HANG: Duration = Duration::from_secs(10);
/// A chain that took nothing for so long is full.
const FULL: Duration = Duration::from_millis(150);

fn runtime() -> LocalRuntime {
    Builder::new_current_thread().enable_io().build_local(LocalOptions::default()).unwrap()
}

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let outer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let inner = listener.accept().unwrap().0;
    inner.set_nonblocking(true).unwrap();
    inner.set_nodelay(true).unwrap();
    SockRef::from(&inner).set_out_of_band_inline(true).unwrap();
    outer.set_read_timeout(Some(HANG)).unwrap();
    outer.set_write_timeout(Some(HANG)).unwrap();
    (outer, inner.into())
}

/// Relays on this thread while `peers` plays client and server on another.
fn relay_with<T: Send + 'static>(
    max_pipes: usize,
    peers: impl FnOnce(TcpStream, TcpStream) -> T + Send + 'static,
) -> (RelayOutcome, T, Bench) {
    relay_after(|_| {}, max_pipes, peers)
}

/// As [`relay_with`], with something sent by the client before the relay starts.
fn relay_after<T: Send + 'static>(
    early: impl FnOnce(&mut TcpStream),
    max_pipes: usize,
    peers: impl FnOnce(TcpStream, TcpStream) -> T + Send + 'static,
) -> (RelayOutcome, T, Bench) {
    let (mut client, client_side) = pair();
    let (server, server_side) = pair();
    early(&mut client);
    let peers = thread::spawn(move || peers(client, server));
    let mut bench = Bench::new(PipePool::new(max_pipes));
    let outcome = runtime().block_on(async {
        let mut relay =
            Relay::new(Stream::register(client_side).unwrap(), Stream::register(server_side).unwrap());
        let reason = std::future::poll_fn(|cx| relay.poll(cx, &mut bench)).await;
        let outcome = relay.outcome(reason);
        relay.close(reason, &mut bench.pipes);
        outcome
    });
    let seen = peers.join().expect("the peers saw what they expected");
    assert_eq!(bench.pipes.in_use(), 0, "a pipe was not given back");
    (outcome, seen, bench)
}

fn reset(stream: TcpStream) {
    crate::socket::stream::reset(&stream);
    drop(stream);
}

fn read_all(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect()
}

#[test]
fn both_ways_and_the_clients_end_first() {
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, mut server| {
        client.write_all(b"ping").unwrap();
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ping");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
        // Half-closed: the server's direction still works.
        server.write_all(b"late answer").unwrap();
        drop(server);
        assert_eq!(read_all(&client).unwrap(), b"late answer");
    });
    let expected =
        RelayOutcome { bytes_up: 4, bytes_down: 11, path: Path::Copied, reason: CloseReason::ClientClosed };
    assert_eq!(outcome, expected);
}

#[test]
fn the_servers_end_first() {
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, mut server| {
        server.write_all(b"banner").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client).unwrap(), b"banner");
        client.write_all(b"still here").unwrap();
        drop(client);
        assert_eq!(read_all(&server).unwrap(), b"still here");
    });
    assert_eq!((outcome.bytes_up, outcome.reason), (10, CloseReason::ServerClosed));
}

#[test]
fn a_reset_of_the_client_resets_the_server() {
    let (outcome, ..) = relay_with(MAX_PIPES, |client, server| {
        reset(client);
        assert_eq!(read_all(&server).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
    assert_eq!(outcome.reason, CloseReason::ClientReset);
}

#[test]
fn a_reset_of_the_server_resets_the_client_after_the_data_before() {
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, mut server| {
        server.write_all(b"last words").unwrap();
        let mut buffer = [0; 10];
        client.read_exact(&mut buffer).unwrap();
        reset(server);
        assert_eq!(client.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
    assert_eq!((outcome.bytes_down, outcome.reason), (10, CloseReason::ServerReset));
}

#[test]
fn a_reset_after_a_half_close_is_passed_on_though_nobody_sends() {
    let (outcome, ..) = relay_with(MAX_PIPES, |client, mut server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        reset(client);
        // The server is in CLOSE_WAIT, where an RST reads as the end but fails a write.
        let error = loop {
            if let Err(error) = server.write(b"x") {
                break error;
            }
        };
        assert!(
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
            "{error}"
        );
    });
    assert_eq!(outcome.reason, CloseReason::ClientReset);
}

#[test]
fn a_reset_is_passed_on_past_a_stuck_reader() {
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, server| {
        fill(&mut client);
        reset(client);
        // It never reads; the RST still comes through.
        let gone = wait_for_error(&server);
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionReset);
    });
    assert_eq!(outcome.reason, CloseReason::ClientReset);
}

/// Writes until the whole chain takes nothing more.
fn fill(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(FULL)).unwrap();
    while stream.write(&[7; 64 * 1024]).is_ok() {}
    stream.set_write_timeout(Some(HANG)).unwrap();
}

/// The error that a stream gets though nobody reads from it.
fn wait_for_error(stream: &TcpStream) -> io::Error {
    let deadline = Instant::now() + HANG;
    loop {
        if let Some(error) = stream.take_error().unwrap() {
            return error;
        }
        assert!(Instant::now() < deadline, "no reset came");
        thread::yield_now();
    }
}

#[test]
fn data_before_fin_is_never_lost() {
    for round in 0..50u8 {
        let size = 1 + usize::from(round) * 4099;
        let (outcome, ..) = relay_with(MAX_PIPES, move |mut client, server| {
            let sent = pattern(size, round);
            let copy = sent.clone();
            let reader = thread::spawn(move || read_all(&server).unwrap());
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert!(reader.join().unwrap() == copy);
            assert_eq!(read_all(&client).unwrap(), b"");
        });
        assert_eq!((outcome.bytes_up, outcome.reason), (size as u64, CloseReason::ClientClosed));
    }
}

fn send_with_urgent(stream: &mut TcpStream) {
    stream.write_all(b"before").unwrap();
    SockRef::from(&*stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"after").unwrap();
}

#[test]
fn an_urgent_byte_arrives_in_its_place_and_holds_nothing_back() {
    let (outcome, ..) = relay_after(send_with_urgent, MAX_PIPES, |client, mut server| {
        let mut bytes = [0; 12];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"before!after");
        drop(client);
    });
    assert_eq!(outcome.bytes_up, 12);
}

#[test]
fn an_urgent_byte_gets_past_splice() {
    const BULK: usize = 4 * 1024 * 1024;
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, mut server| {
        let writer = thread::spawn(move || {
            client.write_all(&pattern(BULK, 5)).unwrap();
            send_with_urgent(&mut client);
            client
        });
        let mut bytes = vec![0; BULK + 12];
        server.read_exact(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"before!after"));
        drop(writer.join().unwrap());
    });
    assert_eq!(outcome.bytes_up, BULK as u64 + 12);
}

/// Both ways at once, and every byte compared.
fn bulk(max_pipes: usize) -> (RelayOutcome, Bench) {
    const SIZE: usize = 12 * 1024 * 1024;
    let (outcome, (), bench) = relay_with(max_pipes, |client, server| {
        let writers = [(&client, 1), (&server, 2)].map(|(stream, seed)| {
            let mut stream = stream.try_clone().unwrap();
            thread::spawn(move || {
                stream.write_all(&pattern(SIZE, seed)).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            })
        });
        let readers = [(server, 1), (client, 2)]
            .map(|(stream, seed)| thread::spawn(move || read_all(&stream).unwrap() == pattern(SIZE, seed)));
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()), "bytes changed on their way");
    });
    assert_eq!((outcome.bytes_up, outcome.bytes_down), (SIZE as u64, SIZE as u64));
    (outcome, bench)
}

#[test]
fn bulk_goes_through_pipes_unchanged() {
    assert_eq!(bulk(MAX_PIPES).0.path, Path::Spliced);
}

#[test]
fn without_pipes_bulk_is_copied() {
    let (outcome, bench) = bulk(0);
    assert_eq!(outcome.path, Path::Copied);
    assert!(bench.pipes.refused() > 0);
}

#[test]
fn with_one_pipe_for_two_directions_both_arrive() {
    bulk(1);
}

#[test]
fn a_slow_reader_pushes_back() {
    let (outcome, pushed, _) = relay_with(MAX_PIPES, |mut client, server| {
        fill(&mut client);
        let pushed = queued(&client);
        client.shutdown(Shutdown::Write).unwrap();
        let received = read_all(&server).unwrap().len();
        drop(client);
        (pushed, received)
    });
    let (unsent, received) = pushed;
    assert!(unsent > 0, "the client was never made to wait");
    assert_eq!(outcome.bytes_up, received as u64);
}

/// Bytes in the socket's send queue.
fn queued(stream: &TcpStream) -> usize {
    let path = "/proc/self/net/tcp";
    let port = format!(":{:04X} ", stream.local_addr().unwrap().port());
    let table = std::fs::read_to_string(path).unwrap();
    let line = table
        .lines()
        .find(|line| line.split_once(": ").is_some_and(|(_, rest)| rest[8..].starts_with(&port)));
    let queues = line.unwrap().split_whitespace().nth(4).unwrap();
    usize::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

#[test]
fn messages_after_bulk_are_copied_again() {
    let (outcome, ..) = relay_with(MAX_PIPES, |mut client, mut server| {
        let size = 8 * 1024 * 1024;
        let reader = server.try_clone().unwrap();
        let writer = thread::spawn(move || {
            client.write_all(&pattern(size, 3)).unwrap();
            client
        });
        let mut taken = vec![0; size];
        (&reader).read_exact(&mut taken).unwrap();
        let mut client = writer.join().unwrap();
        assert!(taken == pattern(size, 3));
        for number in 0..100u8 {
            client.write_all(&[number]).unwrap();
            let mut one = [0];
            server.read_exact(&mut one).unwrap();
            assert_eq!(one[0], number);
        }
    });
    assert_eq!(outcome.path, Path::Spliced);
}
