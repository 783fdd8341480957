//! Whether the servers of pinged services can be reached: tried by a TCP connection, as long as somebody pings.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpSocket,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{report, rules::Rules};
use crate::{
    config::{Config, Service},
    dataplane::{Dataplane, pinged::Asked},
    socket::OriginalDst,
    upstream::Destination,
};

/// How often a server is tried.
const EVERY: Duration = Duration::from_secs(1);
/// How long a server has time to answer; shorter than the time between two tries.
const PATIENCE: Duration = Duration::from_millis(900);
/// For how long an answer holds: one try may fail without anybody noticing.
const HOLDS: Duration = Duration::from_millis(2500);
/// An address that was not pinged for so long is not tried any more.
const ASKING: Duration = Duration::from_secs(30);
/// Tries under way at the same time.
const AT_ONCE: usize = 64;

/// Tries the servers of pinged services until it is aborted.
pub(super) async fn answer(rules: Rc<Rules>, dataplane: Rc<RefCell<Dataplane>>, mark: u32) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let config = rules.config();
        if !config.services.iter().any(|service| service.answer_ping) {
            continue;
        }
        let asked = match dataplane.borrow_mut().pinged() {
            Ok(asked) => asked,
            Err(e) => {
                log::error!("{e}");
                continue;
            }
        };
        let mut tries = JoinSet::new();
        let recent = asked.into_iter().filter(|asked| asked.ago < ASKING);
        for (asked, server) in recent.filter_map(|asked| Some((asked, server(&rules, &config, &asked)?))) {
            while tries.len() >= AT_ONCE {
                note(&mut tries, &dataplane).await;
            }
            tries.spawn_local(async move { (asked, is_reachable(server, mark).await) });
        }
        while !tries.is_empty() {
            note(&mut tries, &dataplane).await;
        }
    }
}

async fn note(tries: &mut JoinSet<(Asked, bool)>, dataplane: &RefCell<Dataplane>) {
    if let Some(Ok((asked, reachable))) = tries.join_next().await {
        let lasts = if reachable { HOLDS } else { Duration::ZERO };
        report(dataplane.borrow_mut().answer_pings(asked.service, asked.address, lasts));
    }
}

/// Who answers for a pinged address: none where the service is gone, or has no port by which to try.
fn server(rules: &Rules, config: &Config, asked: &Asked) -> Option<SocketAddr> {
    let policy = rules.policy();
    let mut services = config.services.iter().zip(policy.services());
    let (service, _) = services.find(|(_, live)| live.id == asked.service)?;
    let original = OriginalDst::new(SocketAddr::new(asked.address, port(service)?));
    Some(service.upstream.of(original).socket_addr())
}

fn port(service: &Service) -> Option<u16> {
    match service.upstream {
        Destination::Fixed(upstream) => Some(upstream.port()),
        Destination::Original | Destination::Host(_) => {
            service.ports.as_ref()?.ranges().next().map(|range| *range.start())
        }
    }
}

/// Whether a connection from this host's own address succeeds; it is closed at once.
async fn is_reachable(server: SocketAddr, mark: u32) -> bool {
    let socket = || -> std::io::Result<TcpSocket> {
        let socket =
            Socket::new(Domain::for_address(server), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_mark(mark)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    match socket() {
        Ok(socket) => matches!(timeout(PATIENCE, socket.connect(server)).await, Ok(Ok(_))),
        Err(e) => {
            log::warn!("cannot try whether {server} can be reached: {e}");
            false
        }
    }
}
