//! What the connections of one worker share, and the worker's own chores: the tick, the drain.
//!
//! Nothing here is locked: a worker is one thread, and all its connections live and die on it.

use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::clients::Clients;
use crate::clock::{Deadlines, Ticker, Ticks};
use crate::config::ProxyConfig;
use crate::drain::DrainStage;
use crate::flow::{ConnectionId, FlowTable};
use crate::limit::Gate;
use crate::reason::{Blame, CloseReason};
use crate::record::RecordSink;
use crate::relay::{Bench, PipePool};
use crate::route::Neighbours;
use crate::service::{Policies, Served, Services};
use crate::socket::{ClientAddr, OriginalDst, SourceError, UpstreamAddr, UsedUp};
use crate::stats::WorkerStats;

/// At most one warning of a kind per worker in this time.
pub(crate) const WARN_EVERY: Duration = Duration::from_secs(10);

/// A worker's timeouts in its own ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Ticks,
    pub(crate) idle: Ticks,
    pub(crate) half_close: Ticks,
}

pub(crate) struct Worker {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) limits: Limits,
    pub(crate) table: RefCell<Box<dyn FlowTable + Send>>,
    pub(crate) bench: RefCell<Bench>,
    pub(crate) deadlines: RefCell<Deadlines>,
    pub(crate) sink: RefCell<RecordSink>,
    pub(crate) clients: Arc<Clients>,
    /// Of all workers.
    pub(crate) listeners: Arc<[SocketAddr]>,
    pub(crate) used_up: RefCell<UsedUp>,
    pub(crate) neighbours: RefCell<Neighbours>,
    services: RefCell<Services>,
    stage: Cell<DrainStage>,
    /// Accept loops and sessions that have not ended.
    users: Cell<usize>,
    unused: Notify,
    acceptors: RefCell<Vec<Waker>>,
    next_id: Cell<u64>,
    workers: u64,
    warnings: RefCell<Warnings>,
}

/// What all workers have in common.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) clients: Arc<Clients>,
    /// Addresses of the listeners of all of them.
    pub(crate) listeners: Arc<[SocketAddr]>,
    /// Of each.
    pub(crate) pipes: usize,
}

/// What each worker has for itself.
pub(crate) struct Own {
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) table: Box<dyn FlowTable + Send>,
    pub(crate) sink: RecordSink,
}

struct Warnings {
    flow_table: Throttle,
    start: Throttle,
    neighbours: Throttle,
}

impl Worker {
    pub(crate) fn new(
        (index, workers): (usize, usize),
        shared: Shared,
        own: Own,
        services: Services,
    ) -> Self {
        let Shared { config, gate, clients, listeners, pipes } = shared;
        let Own { stats, table, sink } = own;
        let timeouts = config.timeouts;
        Self {
            limits: Limits {
                connect: timeouts.connect.into(),
                idle: timeouts.idle.into(),
                half_close: timeouts.half_close.into(),
            },
            bench: RefCell::new(Bench::new(PipePool::new(pipes))),
            config,
            stats,
            gate,
            table: RefCell::new(table),
            deadlines: RefCell::default(),
            sink: RefCell::new(sink),
            clients,
            listeners,
            used_up: RefCell::default(),
            neighbours: RefCell::default(),
            services: RefCell::new(services),
            stage: Cell::default(),
            users: Cell::new(0),
            unused: Notify::new(),
            acceptors: RefCell::default(),
            next_id: Cell::new(index as u64 + 1),
            workers: workers as u64,
            warnings: RefCell::new(Warnings {
                flow_table: Throttle::new(WARN_EVERY),
                start: Throttle::new(WARN_EVERY),
                neighbours: Throttle::new(WARN_EVERY),
            }),
        }
    }

    /// Unique over all workers of a process: they take turns.
    pub(crate) fn next_id(&self) -> ConnectionId {
        let id = self.next_id.get();
        self.next_id.set(id + self.workers);
        ConnectionId(id)
    }

    pub(crate) fn stage(&self) -> DrainStage {
        self.stage.get()
    }

    /// The service that took a connection, and the number of the interface that it came in by, where that is known.
    pub(crate) fn service_of(
        &self,
        client: ClientAddr,
        original: OriginalDst,
    ) -> Option<(Rc<Served>, Option<NonZeroU32>)> {
        let services = self.services.borrow();
        let opening =
            if services.need_opening() { self.table.borrow_mut().opening(client, original) } else { None };
        let interface = opening.and_then(|opening| NonZeroU32::new(opening.interface));
        services.of(client, original, opening).map(|served| (Rc::clone(served), interface))
    }

    /// Whether this is the address of a listener of ours.
    pub(crate) fn is_listener(&self, to: UpstreamAddr) -> bool {
        to.ip().is_loopback() && self.listeners.contains(&to.socket_addr())
    }

    /// The services as they are now.
    pub(crate) fn services(&self) -> Ref<'_, Services> {
        self.services.borrow()
    }

    /// Whether the services as they are now give a connection to the proxy.
    pub(crate) fn keeps(
        &self,
        client: ClientAddr,
        original: OriginalDst,
        interface: Option<NonZeroU32>,
    ) -> bool {
        self.services.borrow().keep(client, original, interface)
    }

    fn adopt(&self, policies: Arc<Policies>) {
        let reviews = policies.reviews;
        let before = self.services.replace(Services::new(policies, &self.stats));
        if reviews != before.reviews() {
            self.deadlines.borrow_mut().review();
        }
    }

    /// Calls the flow table; a failure is counted and told, and the connection goes on.
    pub(crate) fn note_flow(&self, call: impl FnOnce(&mut dyn FlowTable) -> io::Result<()>) {
        if let Err(error) = call(&mut **self.table.borrow_mut()) {
            self.stats.flow_table_failed.add(1);
            if self.warnings.borrow_mut().flow_table.permits() {
                log::warn!(
                    "a connection is missing from the kernel's flow table: {error}; its packets take the slower way"
                );
            }
        }
    }

    /// Tells, once in a while, of a connection that could not even be started by this host's own doing.
    pub(crate) fn warn_of_start(&self, reason: CloseReason, error: &SourceError) {
        if reason.blame() == Blame::Proxy && self.warnings.borrow_mut().start.permits() {
            log::warn!("{error}");
        }
    }

    /// Tells, once in a while, that it is not known which hosts are neighbours.
    pub(crate) fn warn_of_neighbours(&self, error: &io::Error) {
        if self.warnings.borrow_mut().neighbours.permits() {
            log::warn!(
                "asking the kernel by which link an address is reached failed: {error}; a server that is its client's \
                 neighbour goes unnoticed, and the connection hangs"
            );
        }
    }

    /// Keeps the worker from ending while it lives.
    pub(crate) fn user(self: &Rc<Self>) -> User {
        self.users.set(self.users.get() + 1);
        User(Rc::clone(self))
    }

    /// Has an accept loop polled again when the stage changes, and on each tick.
    pub(crate) fn call_acceptor(&self, waker: &Waker) {
        let mut acceptors = self.acceptors.borrow_mut();
        if !acceptors.iter().any(|known| known.will_wake(waker)) {
            acceptors.push(waker.clone());
        }
    }

    fn wake_acceptors(&self) {
        self.acceptors.borrow_mut().drain(..).for_each(Waker::wake);
    }

    fn enter(&self, stage: DrainStage) {
        if stage <= self.stage.get() {
            return;
        }
        self.stage.set(stage);
        self.wake_acceptors();
        if stage == DrainStage::Forced {
            self.deadlines.borrow_mut().force();
        }
    }

    /// Runs the tick, follows `stages` until the worker is drained, and `policies` for as long as they come.
    pub(crate) async fn run_chores(
        &self,
        mut stages: watch::Receiver<DrainStage>,
        mut policies: watch::Receiver<Arc<Policies>>,
    ) -> io::Result<()> {
        let ticker = Ticker::start()?;
        let mut policies_come = true;
        while self.stage() == DrainStage::Running || self.users.get() > 0 {
            tokio::select! {
                ticked = ticker.tick() => {
                    ticked?;
                    self.deadlines.borrow_mut().tick();
                    self.used_up.borrow_mut().forget();
                    self.neighbours.borrow_mut().forget();
                    self.sink.borrow_mut().flush();
                    self.bench.borrow_mut().pipes.retry();
                    self.wake_acceptors();
                }
                changed = stages.changed() => {
                    // A proxy that was dropped without a drain leaves nobody to ask: stop at once.
                    let stage = changed.map_or(DrainStage::Forced, |()| *stages.borrow_and_update());
                    self.enter(stage);
                    if stage == DrainStage::Forced {
                        while self.users.get() > 0 {
                            self.unused.notified().await;
                        }
                    }
                }
                changed = policies.changed(), if policies_come => {
                    policies_come = changed.is_ok();
                    let policies = Arc::clone(&policies.borrow_and_update());
                    if policies_come {
                        self.adopt(policies);
                    }
                }
                () = self.unused.notified() => {}
            }
        }
        self.sink.borrow_mut().flush();
        Ok(())
    }
}

/// See [`Worker::user`].
pub(crate) struct User(Rc<Worker>);

impl std::ops::Deref for User {
    type Target = Rc<Worker>;

    fn deref(&self) -> &Rc<Worker> {
        &self.0
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let users = self.0.users.get() - 1;
        self.0.users.set(users);
        if users == 0 {
            self.0.unused.notify_one();
        }
    }
}

/// Lets something through once in a while.
#[derive(Debug)]
pub(crate) struct Throttle {
    every: Duration,
    last: Option<Instant>,
}

impl Throttle {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, last: None }
    }

    pub(crate) fn permits(&mut self) -> bool {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < self.every) {
            return false;
        }
        self.last = Some(now);
        true
    }
}
