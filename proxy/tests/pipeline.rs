//! The whole pipeline from listener to access record, on loopback and without privileges: the listeners are plain
//! ones, and all connections go to one server, whomever they ask for.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{policies, service};
use sheer::clients::NoClientTable;
use sheer::config::{Existing, ProxyConfig, Service, Timeouts};
use sheer::drain::DrainStage;
use sheer::flow::{ConnectionTuples, FlowTable, Moved, NoFlowTable, WORTH_ENTERING};
use sheer::policy::Policy;
use sheer::proxy::Proxy;
use sheer::reason::CloseReason;
use sheer::record::{AccessLog, RecordFormat};
use sheer::service::Policies;
use sheer::socket::transparent::{ListenOptions, Listeners};
use sheer::socket::{SourceMode, UpstreamAddr};
use sheer::stats::StatsSnapshot;
use sheer::upstream::Destination;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Bounds a test that hangs; none that passes waits for it.
const HANG: Duration = Duration::from_secs(20);

/// What a test may change.
struct Setup {
    config: ProxyConfig,
    service: Service,
}

struct Bed {
    proxy: Proxy,
    /// Where clients connect.
    front: SocketAddr,
    server: TcpListener,
    log: PathBuf,
    runtime: Runtime,
    policies: watch::Sender<Arc<Policies>>,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new(change: impl FnOnce(&mut Setup)) -> Self {
        Self::with_table(change, Box::new(NoFlowTable))
    }

    fn with_table(change: impl FnOnce(&mut Setup), table: Box<dyn FlowTable + Send>) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("access.log");
        let config = ProxyConfig { access_log: AccessLog::File(log.clone()), ..ProxyConfig::default() };
        let mut setup = Setup { config, service: service(server.local_addr().unwrap()) };
        change(&mut setup);
        let listeners = Listeners::bind(ListenOptions { transparent: false, mark: 0, backlog: 128 }).unwrap();
        let front = listeners.v4.local_addr().unwrap();
        let policies = policies(setup.service);
        let config = Arc::new(setup.config);
        let proxy =
            Proxy::start(config, policies.subscribe(), vec![listeners], vec![table], Box::new(NoClientTable))
                .unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { proxy, front, server, log, runtime, policies, _dir: dir }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.front).unwrap();
        client.set_read_timeout(Some(HANG)).unwrap();
        client
    }

    fn serve(&self) -> TcpStream {
        let stream = self.server.accept().unwrap().0;
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream
    }

    /// A connection that carries bytes both ways already.
    fn talking(&self) -> (TcpStream, TcpStream) {
        let (mut client, mut server) = (self.client(), self.serve());
        let mut one = [0];
        client.write_all(b"?").unwrap();
        server.read_exact(&mut one).unwrap();
        server.write_all(b"!").unwrap();
        client.read_exact(&mut one).unwrap();
        (client, server)
    }

    /// Waits until no connection is live, ends the proxy, and returns its counters and records.
    fn end(mut self) -> (StatsSnapshot, Vec<String>) {
        self.runtime.block_on(async {
            self.proxy.wait_idle().await;
            self.proxy.drain();
            self.proxy.finished().await.unwrap();
        });
        let stats = self.proxy.stats();
        self.proxy.join().unwrap();
        let records = fs::read_to_string(&self.log).unwrap();
        (stats, records.lines().map(str::to_owned).collect())
    }

    /// As [`Bed::end`], for a single connection that ended for this reason.
    #[track_caller]
    fn ends_with(self, reason: CloseReason) -> String {
        let (stats, mut records) = self.end();
        let record = records.pop().expect("a record was written");
        assert!(record.contains(&format!(" reason={reason} by={}", reason.blame().label())), "{record}");
        assert_eq!(stats.closed(reason), 1, "{stats:?}");
        assert_eq!((stats.accepted, stats.live), (1, 0));
        assert!(records.is_empty());
        record
    }
}

fn is_reset(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

fn reset(stream: TcpStream) {
    sheer::socket::stream::reset(&stream);
    drop(stream);
}

fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_connection_leaves_one_record() {
    let bed = Bed::new(|_| {});
    let (mut client, mut server) = bed.talking();
    let (from, source) = (client.local_addr().unwrap(), server.peer_addr().unwrap());
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&server), b"request");
    server.write_all(b"response").unwrap();
    drop(server);
    assert_eq!(rest(&client), b"response");
    let (front, upstream) = (bed.front, bed.server.local_addr().unwrap());
    let record = bed.ends_with(CloseReason::ClientClosed);
    let expected = format!(
        "client={from} original={front} source={source} source_step=proxy upstream={upstream} bytes_up=8 bytes_down=9 "
    );
    assert!(record.contains(&expected), "{record}");
}

#[test]
fn records_are_json_when_asked_for() {
    let bed = Bed::new(|setup| setup.config.access_format = RecordFormat::Json);
    drop(bed.talking());
    let (_, records) = bed.end();
    let record: serde_json::Value = serde_json::from_str(&records[0]).unwrap();
    assert_eq!(record["bytes_up"], 1);
    assert_eq!(record["path"], "copied");
}

#[test]
fn the_server_sees_the_clients_address() {
    let bed = Bed::new(|setup| setup.service.source = SourceMode::Client);
    let from: IpAddr = "127.0.0.77".parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&bed.front.into()).unwrap();
    assert_eq!(bed.server.accept().unwrap().1.ip(), from);
}

#[test]
fn a_refusal_is_passed_on_as_a_reset() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bed = Bed::new(|setup| setup.service.upstream = Destination::Fixed(UpstreamAddr::new(nobody)));
    assert!(is_reset(&bed.client()));
    bed.ends_with(CloseReason::Refused);
}

#[test]
fn a_fixed_source_of_the_other_family_is_refused() {
    let bed = Bed::new(|setup| setup.service.source = SourceMode::Fixed("2001:db8::1".parse().unwrap()));
    assert!(is_reset(&bed.client()));
    let record = bed.ends_with(CloseReason::SourceUnusable);
    assert!(record.contains(" source=- "), "{record}");
}

#[test]
fn a_silent_server_is_a_connect_timeout() {
    // A listener whose queue is full answers no SYN.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::new("127.0.0.1".parse().unwrap(), 0).into()).unwrap();
    silent.listen(0).unwrap();
    let addr = silent.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(addr).unwrap();
    let bed = Bed::new(|setup| {
        setup.service.upstream = Destination::Fixed(UpstreamAddr::new(addr));
        setup.config.timeouts.connect = Duration::from_millis(100);
    });
    assert!(is_reset(&bed.client()));
    bed.ends_with(CloseReason::ConnectTimeout);
}

#[test]
fn a_client_that_leaves_while_connecting_is_noticed() {
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::new("127.0.0.1".parse().unwrap(), 0).into()).unwrap();
    silent.listen(0).unwrap();
    let addr = silent.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(addr).unwrap();
    let bed = Bed::new(|setup| setup.service.upstream = Destination::Fixed(UpstreamAddr::new(addr)));
    reset(bed.client());
    wait_for(&bed, |stats| stats.accepted == 1);
    bed.ends_with(CloseReason::ClientReset);
}

#[test]
fn an_idle_connection_is_reset_on_both_sides() {
    let bed = Bed::new(|setup| setup.config.timeouts.idle = Duration::from_millis(50));
    let (client, server) = bed.talking();
    assert!(is_reset(&client) && is_reset(&server));
    bed.ends_with(CloseReason::IdleTimeout);
}

#[test]
fn a_half_closed_connection_has_a_timeout_of_its_own() {
    let bed = Bed::new(|setup| {
        setup.config.timeouts = Timeouts { half_close: Duration::from_millis(50), ..Timeouts::default() };
    });
    let (client, server) = bed.talking();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&client), b"");
    assert!(is_reset(&server));
    bed.ends_with(CloseReason::HalfCloseTimeout);
}

#[test]
fn who_asks_for_the_listener_itself_is_a_loop() {
    let bed = Bed::new(|setup| setup.service.upstream = Destination::Original);
    assert!(is_reset(&bed.client()));
    bed.ends_with(CloseReason::Loop);
}

#[test]
fn at_the_limit_a_connection_waits_for_its_turn() {
    let bed = Bed::new(|setup| setup.config.max_connections = 1);
    let first = bed.talking();
    let mut second = bed.client();
    second.write_all(b"waiting").unwrap();
    wait_for(&bed, |stats| stats.accept_paused == 1);
    assert_eq!(bed.proxy.live(), 1);
    drop(first);
    let mut bytes = [0; 7];
    bed.serve().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"waiting");
    drop(second);
    assert_eq!(bed.end().0.accepted, 2);
}

/// Waits for the counters to say so.
#[track_caller]
fn wait_for(bed: &Bed, condition: impl Fn(&StatsSnapshot) -> bool) {
    let deadline = std::time::Instant::now() + HANG;
    while !condition(&bed.proxy.stats()) {
        assert!(std::time::Instant::now() < deadline, "never came: {:?}", bed.proxy.stats());
        std::thread::yield_now();
    }
}

#[test]
fn a_drain_accepts_nothing_new_and_lets_the_live_finish() {
    let mut bed = Bed::new(|_| {});
    let (client, mut server) = bed.talking();
    bed.proxy.drain();
    let refused = loop {
        // Connections that came before the listener closed are still served.
        match TcpStream::connect(bed.front) {
            Ok(early) => reset(early),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    server.write_all(b"the end").unwrap();
    drop(server);
    assert_eq!(rest(&client), b"the end");
    drop(client);
    bed.runtime.block_on(bed.proxy.finished()).unwrap();
    assert_eq!(bed.proxy.stage(), DrainStage::Draining);
    assert!(bed.end().0.closed(CloseReason::ServerClosed) >= 1);
}

#[test]
fn force_resets_what_is_left() {
    let mut bed = Bed::new(|_| {});
    let (client, server) = bed.talking();
    bed.proxy.drain();
    bed.proxy.force();
    assert!(is_reset(&client) && is_reset(&server));
    bed.runtime.block_on(bed.proxy.finished()).unwrap();
    bed.ends_with(CloseReason::Drained);
}

/// A policy that gives nothing to the proxy takes the place of the bed's.
fn take_service_away(bed: &Bed, existing: Existing) {
    bed.policies.send_modify(|policies| {
        let empty = Arc::new(Policy::new(&[], &[], 2, &[]).unwrap());
        let previous = Some(std::mem::replace(&mut Arc::make_mut(policies).current, empty));
        let next = Arc::make_mut(policies);
        next.previous = previous;
        next.reviews += u64::from(existing == Existing::Reset);
    });
}

#[test]
fn connections_outlive_their_service_unless_they_shall_be_reset() {
    let bed = Bed::new(|_| {});
    let (mut client, mut server) = bed.talking();
    take_service_away(&bed, Existing::Keep);
    // Accepted after the change, begun before it as far as anybody knows.
    let late = bed.talking();
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    take_service_away(&bed, Existing::Reset);
    assert!(is_reset(&client) && is_reset(&server));
    assert!(is_reset(&late.0) && is_reset(&late.1));
    let (stats, records) = bed.end();
    assert_eq!(stats.closed(CloseReason::PolicyChanged), 2, "{stats:?}");
    assert!(records.iter().all(|record| record.contains(" service=test ")), "{records:?}");
}

#[test]
fn a_connection_that_no_service_takes_is_reset() {
    let bed = Bed::new(|_| {});
    for _ in 0..2 {
        take_service_away(&bed, Existing::Keep);
    }
    // The worker hears of it by and by; until then it takes connections, which must not stay.
    wait_for(&bed, |stats| {
        reset(bed.client());
        stats.closed(CloseReason::Loop) > 0
    });
    let client = bed.client();
    assert!(is_reset(&client));
    assert!(bed.end().0.closed(CloseReason::Loop) > 1, "to the listener itself");
}

#[test]
fn a_client_has_no_more_connections_than_the_service_allows() {
    let bed = Bed::new(|setup| {
        setup.service.limit = Some(sheer::config::Limit {
            new_per_second: None,
            burst: 1.try_into().unwrap(),
            concurrent: 1.try_into().ok(),
            block: None,
            per: Default::default(),
        });
    });
    let first = bed.talking();
    assert!(is_reset(&bed.client()));
    drop(first);
    wait_for(&bed, |stats| stats.live == 0);
    drop(bed.talking());
    let (stats, _) = bed.end();
    assert_eq!(stats.closed(CloseReason::ClientLimit), 1, "{stats:?}");
}

#[derive(Debug, PartialEq)]
enum Call {
    Entered(ConnectionTuples, Moved),
    Gone(ConnectionTuples),
}

struct Spy(Sender<Call>);

impl FlowTable for Spy {
    fn insert(&mut self, flow: &ConnectionTuples, moved: Moved) -> io::Result<()> {
        self.0.send(Call::Entered(*flow, moved)).map_err(io::Error::other)?;
        Err(io::Error::other("full"))
    }

    fn remove(&mut self, flow: &ConnectionTuples, _: bool) {
        let _ = self.0.send(Call::Gone(*flow));
    }
}

#[test]
fn the_flow_table_hears_of_a_connection_that_lasts_and_its_failure_stops_nothing() {
    let (sender, calls): (_, Receiver<Call>) = channel();
    let bed = Bed::with_table(|_| {}, Box::new(Spy(sender)));
    let (client, server) = bed.talking();
    let Call::Entered(flow, moved) = calls.recv_timeout(HANG).unwrap() else { panic!("gone before it came") };
    let (from, source) = (client.local_addr().unwrap(), server.peer_addr().unwrap());
    assert_eq!((flow.client.socket_addr(), flow.source.socket_addr()), (from, source));
    assert_eq!(moved, Moved { up: 1, down: 1 });
    drop((client, server));
    assert_eq!(calls.recv_timeout(HANG).unwrap(), Call::Gone(flow));
    assert_eq!(bed.end().0.flow_table_failed, 1);
}

#[test]
fn the_flow_table_hears_of_a_connection_that_moves_much_before_it_lasts() {
    let (sender, calls): (_, Receiver<Call>) = channel();
    let bed = Bed::with_table(|_| {}, Box::new(Spy(sender)));
    let (mut client, mut server) = bed.talking();
    let much = vec![7; WORTH_ENTERING as usize];
    let writer = std::thread::spawn(move || client.write_all(&much).unwrap());
    let mut received = vec![0; WORTH_ENTERING as usize];
    server.read_exact(&mut received).unwrap();
    writer.join().unwrap();
    assert!(matches!(calls.recv_timeout(HANG).unwrap(), Call::Entered(..)));
    drop(server);
    bed.end();
}

#[derive(Default)]
struct Faulty {
    told: Arc<Mutex<u32>>,
}

impl FlowTable for Faulty {
    fn insert(&mut self, _: &ConnectionTuples, _: Moved) -> io::Result<()> {
        *self.told.lock().unwrap() += 1;
        panic!("a fault in a session");
    }

    fn remove(&mut self, _: &ConnectionTuples, _: bool) {}
}

#[test]
fn a_panic_of_a_session_ends_that_session_only() {
    let told = Arc::default();
    let bed = Bed::with_table(|_| {}, Box::new(Faulty { told: Arc::clone(&told) }));
    let first = bed.talking();
    wait_for(&bed, |stats| stats.panics == 1);
    let second = bed.talking();
    wait_for(&bed, |stats| stats.panics == 2);
    drop((first, second));
    assert_eq!(*told.lock().unwrap(), 2);
    assert_eq!(bed.end().0.live, 0);
}
