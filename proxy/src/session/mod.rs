//! The chain of one connection, each stage made from the one before:
//!
//! ```text
//! Accepted ──▶ Session ──▶ Connecting ──▶ Relay ──▶ Relayed ──▶ AccessRecord
//!                             flow table:  in if it lasts, out
//! ```
//!
//! Only this module knows the whole chain. A stage that fails goes straight to `Relayed`, with no bytes and the
//! reason, so that every accepted connection leaves exactly one record.

#![allow(
    clippy::result_large_err,
    reason = "a stage moves on by value, also to the end; a box would be one per connection"
)]

mod subnet;
mod task;

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sheer_common::limit::ClientKey;

use crate::clients::Held;
use crate::config::SameSubnet;
use crate::flow::{ConnectionId, ConnectionTuples, Moved};
use crate::limit::Permit;
use crate::policy::{self, Service};
use crate::reason::CloseReason;
use crate::record::AccessRecord;
use crate::relay::{Path, Relay, RelayOutcome};
use crate::service::Served;
use crate::socket::{
    self, ClientAddr, OriginalDst, SourceAddr, SourceError, SourceMode, SourceStep, Stream, UpstreamAddr,
};
use crate::upstream::{self, Destination, Route};
use crate::worker::Worker;

/// What is known of a connection, carried from stage to stage.
#[derive(Debug)]
struct Case {
    id: ConnectionId,
    client: ClientAddr,
    original: OriginalDst,
    service: Option<Rc<Served>>,
    /// By which it came in, as the kernel numbers it, where that is known.
    interface: Option<NonZeroU32>,
    /// Among the client's connections, where the service limits them; boxed, because few do.
    held: Option<Box<Held>>,
    since: Instant,
    source: Option<SourceAddr>,
    upstream: Option<UpstreamAddr>,
    source_step: Option<SourceStep>,
    source_port_changed: bool,
    /// What was done because client and server are neighbours.
    same_subnet: Option<SameSubnet>,
    /// It stands in the flow table.
    entered: bool,
    _permit: Permit,
}

/// A client's connection, nothing done with it yet.
#[derive(Debug)]
pub(crate) struct Accepted {
    case: Case,
    /// The client asked for the listener itself.
    to_listener: bool,
    fd: OwnedFd,
}

/// It is known where the connection goes on to.
struct Session {
    case: Case,
    client: OwnedFd,
    route: Route,
    to: UpstreamAddr,
}

/// The server has been called.
struct Connecting {
    case: Case,
    client: Stream,
    server: Stream,
}

/// All is over but the record.
struct Relayed {
    case: Case,
    outcome: RelayOutcome,
}

/// Takes a connection through the chain, in a task of its own from the moment that the server is called.
pub(crate) fn start(worker: &Rc<Worker>, accepted: Accepted) {
    worker.stats.accepted.add(1);
    let opened = accepted.open(worker).and_then(|session| session.mind_neighbours(worker));
    match opened.and_then(|session| session.call(worker)) {
        Ok(connecting) => task::spawn(worker, connecting),
        Err(relayed) => relayed.record(worker),
    }
}

impl Accepted {
    pub(crate) fn new(
        id: ConnectionId,
        client: ClientAddr,
        original: OriginalDst,
        to_listener: bool,
        fd: OwnedFd,
        permit: Permit,
    ) -> Self {
        let case = Case {
            id,
            client,
            original,
            service: None,
            interface: None,
            held: None,
            since: Instant::now(),
            source: None,
            upstream: None,
            source_step: None,
            source_port_changed: false,
            same_subnet: None,
            entered: false,
            _permit: permit,
        };
        Self { case, to_listener, fd }
    }

    fn open(self, worker: &Worker) -> Result<Session, Relayed> {
        let Self { mut case, to_listener, fd } = self;
        let Some((served, interface)) = worker.service_of(case.client, case.original) else {
            let reason = if to_listener { CloseReason::Loop } else { CloseReason::NoService };
            return Err(case.refuse(fd, reason));
        };
        let Service { source, upstream, limit, id, .. } = served.service;
        served.stats.accepted.add(1);
        (case.service, case.interface) = (Some(served), interface);
        let to = upstream.of(case.original);
        // Else it would be accepted here again, and again.
        if (to_listener && upstream == Destination::Original) || worker.is_listener(to) {
            return Err(case.refuse(fd, CloseReason::Loop));
        }
        if limit.concurrent != 0 {
            let (family, address) = policy::address(case.client.ip());
            let client = ClientKey::new(id, family, &address, limit.prefix(family));
            case.held = worker.clients.enter(client, limit.concurrent).map(Box::new);
            if case.held.is_none() {
                return Err(case.refuse(fd, CloseReason::ClientLimit));
            }
        }
        let to_itself =
            to.socket_addr() == case.original.socket_addr() && worker.services().own().contains(&to.ip());
        let route = Route { source, mark: worker.config.mark, to_itself };
        Ok(Session { case: Case { upstream: Some(to), ..case }, client: fd, route, to })
    }
}

impl Session {
    fn call(self, worker: &Worker) -> Result<Connecting, Relayed> {
        let Self { mut case, client, route, to } = self;
        let started = match route.start(case.client, to, &mut worker.used_up.borrow_mut()) {
            Ok(started) => started,
            Err(error) => {
                if let SourceError::Exhausted { .. } = error {
                    case.took(SourceStep::Refused, worker);
                }
                let reason = upstream::reason_of_start(&error);
                worker.warn_of_start(reason, &error);
                return Err(case.refuse(client, reason));
            }
        };
        case.source = Some(started.source);
        case.took(started.step, worker);
        if route.source == SourceMode::ClientPort && started.step != SourceStep::Port {
            case.source_port_changed = true;
            worker.stats.source_port_changed.add(1);
        }
        match (Stream::register(client), Stream::register(started.fd)) {
            (Ok(client), Ok(server)) => Ok(Connecting { case, client, server }),
            (client, server) => {
                client.into_iter().chain(server).for_each(Stream::reset);
                Err(case.ended(CloseReason::NoResources))
            }
        }
    }
}

impl Connecting {
    /// The server has answered.
    fn relay(self) -> (Case, Relay) {
        (self.case, Relay::new(self.client, self.server))
    }

    fn abandon(self, worker: &Worker, reason: CloseReason) {
        let Self { case, client, server: _server } = self;
        case.ended(reason).record(worker);
        if reason != CloseReason::ClientReset {
            client.reset();
        }
    }
}

impl Relayed {
    /// The last stage: counted, written down, out of the flow table. The sockets are closed after it, so that the
    /// entries are never a successor's, unless a reset has freed the tuples before.
    fn record(self, worker: &Worker) {
        let Self { case, outcome } = self;
        worker.stats.count_end(outcome.reason);
        if let Some(served) = &case.service {
            served.stats.ended.add(1);
        }
        if outcome.path == Path::Spliced {
            worker.stats.spliced.add(1);
        }
        let mut sink = worker.sink.borrow_mut();
        if sink.wants_records() {
            sink.put(&case.record(&outcome));
        }
        drop(sink);
        if let Some(flow) = case.tuples().filter(|_| case.entered) {
            let reset = matches!(outcome.reason, CloseReason::ClientReset | CloseReason::ServerReset);
            worker.table.borrow_mut().remove(&flow, reset);
        }
    }
}

impl Case {
    fn tuples(&self) -> Option<ConnectionTuples> {
        let Self { id, client, original, source, upstream, .. } = *self;
        let service = self.service.as_ref()?.service.id;
        Some(ConnectionTuples { id, client, original, source: source?, upstream: upstream?, service })
    }

    /// Bytes that it has moved, on the service's account.
    fn count_bytes(&self, up: u64, down: u64) {
        if let Some(served) = &self.service {
            served.stats.bytes_up.add(up);
            served.stats.bytes_down.add(down);
        }
    }

    /// Into the flow table, once.
    fn enter(&mut self, worker: &Worker, moved: Moved) {
        if !self.entered
            && let Some(flow) = self.tuples()
        {
            self.entered = true;
            worker.note_flow(|table| table.insert(&flow, moved));
        }
    }

    fn took(&mut self, step: SourceStep, worker: &Worker) {
        self.source_step = Some(step);
        worker.stats.source_steps[step as usize].add(1);
    }

    fn refuse(self, client: OwnedFd, reason: CloseReason) -> Relayed {
        socket::stream::reset(&client);
        self.ended(reason)
    }

    fn ended(self, reason: CloseReason) -> Relayed {
        let outcome = RelayOutcome { bytes_up: 0, bytes_down: 0, path: Path::Copied, reason };
        Relayed { case: self, outcome }
    }

    fn record(&self, outcome: &RelayOutcome) -> AccessRecord {
        let duration = self.since.elapsed();
        AccessRecord {
            accepted: SystemTime::now() - duration,
            id: self.id.0,
            service: self.service.as_ref().map(|served| Arc::clone(&served.service.name)),
            client: self.client,
            original: self.original,
            source: self.source,
            source_step: self.source_step,
            source_port_changed: self.source_port_changed,
            same_subnet: self.same_subnet,
            upstream: self.upstream,
            bytes_up: outcome.bytes_up,
            bytes_down: outcome.bytes_down,
            duration,
            path: outcome.path,
            reason: outcome.reason,
            by: outcome.reason.blame(),
        }
    }
}
