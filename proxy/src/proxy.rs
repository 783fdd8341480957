//! The workers: one named thread per listener pair, each with its own runtime, from start to join.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::accept::Acceptor;
use crate::clients::{ClientTable, Clients};
use crate::config::ProxyConfig;
use crate::drain::DrainStage;
use crate::flow::FlowTable;
use crate::limit::{self, Budget, Gate};
use crate::record::{AccessLogError, RecordWriter};
use crate::service::{Policies, Services};
use crate::session;
use crate::socket::Listeners;
use crate::stats::{Stats, StatsSnapshot};
use crate::worker::{Own, Shared, Worker};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    #[error(
        "worker {worker} cannot be started: {source}; are threads or descriptors limited (ulimit -u, ulimit -n)?"
    )]
    Worker { worker: usize, source: io::Error },
    #[error("{listeners} listener pairs for {tables} flow tables: each worker needs one of both")]
    Uneven { listeners: usize, tables: usize },
}

/// A worker ended that should not have. Its connections are lost; the others' go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("worker {worker} failed: {cause}")]
pub struct WorkerFailure {
    pub worker: usize,
    pub cause: String,
}

struct Exit {
    worker: usize,
    result: Result<(), String>,
}

/// The running workers. Dropped without [`Proxy::drain`], it stops them by force.
#[derive(Debug)]
pub struct Proxy {
    stages: watch::Sender<DrainStage>,
    threads: Vec<JoinHandle<()>>,
    exits: mpsc::UnboundedReceiver<Exit>,
    running: usize,
    stats: Stats,
    gate: Arc<Gate>,
    writer: Option<RecordWriter>,
}

impl std::fmt::Debug for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exit({}, {:?})", self.worker, self.result)
    }
}

/// All that a worker's thread is born with.
struct Plan {
    index: usize,
    workers: usize,
    shared: Shared,
    own: Own,
    listeners: Listeners,
    stages: watch::Receiver<DrainStage>,
    policies: watch::Receiver<Arc<Policies>>,
}

impl Proxy {
    /// Starts one worker per listener pair and returns when each of them accepts.
    pub fn start(
        config: Arc<ProxyConfig>,
        policies: watch::Receiver<Arc<Policies>>,
        listeners: Vec<Listeners>,
        tables: Vec<Box<dyn FlowTable + Send>>,
        clients: Box<dyn ClientTable>,
    ) -> Result<Self, StartError> {
        if listeners.len() != tables.len() {
            return Err(StartError::Uneven { listeners: listeners.len(), tables: tables.len() });
        }
        let writer = RecordWriter::start(&config.access_log, config.access_format)?;
        let stats = Stats::new(listeners.len());
        let budget = budget(&config, listeners.len());
        let gate = Gate::new(budget.connections);
        let (stages, follow) = watch::channel(DrainStage::Running);
        let (report, exits) = mpsc::unbounded_channel();
        let mut proxy = Self { stages, threads: Vec::new(), exits, running: 0, stats, gate, writer: None };
        let workers = listeners.len();
        let shared = Shared {
            config,
            gate: Arc::clone(&proxy.gate),
            clients: Clients::new(clients),
            listeners: addresses(&listeners),
            pipes: budget.pipes,
        };
        for (index, (listeners, table)) in listeners.into_iter().zip(tables).enumerate() {
            let stats = proxy.stats.worker(index);
            let plan = Plan {
                index,
                workers,
                shared: shared.clone(),
                own: Own { sink: writer.sink(Arc::clone(&stats)), stats, table },
                listeners,
                stages: follow.clone(),
                policies: policies.clone(),
            };
            let thread = spawn(plan, report.clone())?;
            proxy.threads.push(thread);
            proxy.running += 1;
        }
        proxy.writer = Some(writer);
        Ok(proxy)
    }

    /// Stops accepting; live connections go on to their end. The kernel programs must have been told before, or new
    /// connections meet a closed listener.
    pub fn drain(&self) {
        self.advance(DrainStage::Draining);
    }

    /// Resets what is left.
    pub fn force(&self) {
        self.advance(DrainStage::Forced);
    }

    fn advance(&self, stage: DrainStage) {
        self.stages.send_if_modified(|current| {
            let forward = stage > *current;
            *current = stage.max(*current);
            forward
        });
    }

    #[must_use]
    pub fn stage(&self) -> DrainStage {
        *self.stages.borrow()
    }

    /// Connections between accept and record.
    #[must_use]
    pub fn live(&self) -> usize {
        self.gate.live()
    }

    /// The limit in force, over all workers.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        self.gate.max()
    }

    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }

    /// A handle for those who show the counters.
    #[must_use]
    pub fn stats_handle(&self) -> Stats {
        self.stats.clone()
    }

    /// Resolves when no connection is live.
    pub async fn wait_idle(&self) {
        self.gate.wait_idle().await;
    }

    /// Resolves when all workers have ended, which they do after [`Proxy::drain`] or [`Proxy::force`]; with an error
    /// as soon as one has failed. May be dropped and called again.
    pub async fn finished(&mut self) -> Result<(), WorkerFailure> {
        while self.running > 0 {
            let Some(exit) = self.exits.recv().await else { break };
            self.settle(exit)?;
        }
        Ok(())
    }

    /// Waits for the end of all threads and of the access log. Call [`Proxy::drain`] or [`Proxy::force`] before;
    /// without either it does so by force.
    pub fn join(mut self) -> Result<(), WorkerFailure> {
        if self.stage() == DrainStage::Running {
            self.force();
        }
        for thread in self.threads.drain(..) {
            // A worker's panic is caught and comes as its exit.
            let _ = thread.join();
        }
        let mut result = Ok(());
        while let Ok(exit) = self.exits.try_recv() {
            result = result.and(self.settle(exit));
        }
        if let Some(writer) = self.writer.take() {
            writer.close();
        }
        result
    }

    fn settle(&mut self, exit: Exit) -> Result<(), WorkerFailure> {
        self.running = self.running.saturating_sub(1);
        exit.result.map_err(|cause| WorkerFailure { worker: exit.worker, cause })
    }
}

fn addresses(listeners: &[Listeners]) -> Arc<[SocketAddr]> {
    let all = listeners.iter().flat_map(|pair| [Some(&pair.v4), pair.v6.as_ref()]).flatten();
    all.filter_map(|listener| listener.local_addr().ok()).collect()
}

fn budget(config: &ProxyConfig, workers: usize) -> Budget {
    let wanted = Budget { connections: config.max_connections, pipes: config.max_pipes };
    Budget::within(limit::open_files(), wanted, workers)
}

/// Returns when the worker accepts.
fn spawn(plan: Plan, report: mpsc::UnboundedSender<Exit>) -> Result<JoinHandle<()>, StartError> {
    let index = plan.index;
    let (ready, started) = channel();
    let thread = thread::Builder::new()
        .name(format!("sheer-worker-{index}"))
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| run(plan, &ready)))
                .unwrap_or_else(|panic| Err(io::Error::other(panic_text(&*panic))))
                .map_err(|error| error.to_string());
            if let Err(error) = &result {
                // Heard only by a start that still waits.
                let _ = ready.send(Err(error.clone()));
            }
            // The proxy may be gone already.
            let _ = report.send(Exit { worker: index, result });
        })
        .map_err(|source| StartError::Worker { worker: index, source })?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(cause)) => {
            let _ = thread.join();
            Err(StartError::Worker { worker: index, source: io::Error::other(cause) })
        }
        Err(gone) => Err(StartError::Worker { worker: index, source: io::Error::other(gone) }),
    }
}

fn run(plan: Plan, ready: &Sender<Result<(), String>>) -> io::Result<()> {
    if plan.shared.config.pin_workers {
        pin(plan.index)?;
    }
    let runtime = Builder::new_current_thread().enable_io().build_local(LocalOptions::default())?;
    runtime.block_on(work(plan, ready))
}

async fn work(plan: Plan, ready: &Sender<Result<(), String>>) -> io::Result<()> {
    let Plan { index, workers, shared, own, listeners, stages, mut policies } = plan;
    let services = Services::new(Arc::clone(&policies.borrow_and_update()), &own.stats);
    let worker = Rc::new(Worker::new((index, workers), shared, own, services));
    let mut parts = JoinSet::new();
    for listener in [Some(listeners.v4), listeners.v6].into_iter().flatten() {
        let acceptor = Acceptor::new(listener, &worker)?;
        parts.spawn_local(acceptor.run(session::start));
    }
    let chores = Rc::clone(&worker);
    parts.spawn_local(async move { chores.run_chores(stages, policies).await });
    let _ = ready.send(Ok(()));
    while let Some(ended) = parts.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(error) if error.is_panic() => return Err(io::Error::other(panic_text(&*error.into_panic()))),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal error: {}", text.unwrap_or("a panic without a text"))
}

fn pin(index: usize) -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let Some(&cpu) = cpus.get(index % cpus.len().max(1)) else { return Ok(()) };
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(io::Error::from)
}
