//! `sheer run`: everything started in an order in which no packet finds half of it, and taken down in reverse.

mod answer;
mod leave;
mod output;
mod pings;
pub(crate) mod predecessor;
mod rules;
mod shown;
mod start;

use std::{
    cell::{Cell, RefCell},
    io::{self, Write as _},
    rc::Rc,
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    task::{JoinHandle, LocalSet},
};

use self::rules::Rules;
use crate::{
    config::Config,
    dataplane::{Attachments, Dataplane, DataplaneError, Pins, pins::Published},
    doctor::Obstacles,
    instance::{InstanceError, InstanceLock, InstanceName, Places},
    policy::CompileError,
    proxy::{Proxy, StartError, WorkerFailure},
    route::{Numbers, RouteError, RouteGuard},
    socket::ListenError,
};

/// Why an instance could not start, or ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its files, or another process that has it.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// What of the host keeps it from working.
    #[error(transparent)]
    Host(#[from] Obstacles),
    /// Interfaces, rules, routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Programs, maps, pins.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Services that cannot be made into tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Listeners.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Workers that did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A worker that died.
    #[error(transparent)]
    Worker(#[from] WorkerFailure),
    /// The runtime, signals, the control socket.
    #[error("{what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs an instance until it is told to stop.
///
/// # Errors
/// When it cannot start, or a worker dies.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = runtime()?;
    LocalSet::new().block_on(&runtime, async {
        // Before anything that has to be undone: a signal during the start must not kill us half-way.
        let mut signals = Signals::new().map_err(system("catching signals"))?;
        let mut instance = start::start(config).await?;
        // Errors mean that nobody waits for it. Not `eprintln!`, which panics where the reader has gone.
        let _ = writeln!(io::stderr(), "ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        match instance.serve(&mut signals).await {
            Ok(()) => instance.stop().await,
            Err(failure) => Err(instance.fail(failure).await),
        }
    })
}

/// Mark, table and preference of an instance, running or dead.
#[must_use]
pub fn numbers(instance: &InstanceName) -> Option<Numbers> {
    let state = predecessor::find(&Pins::of(instance), &Places::of(instance))?;
    Some(Numbers { mark: state.mark, table: state.table, priority: state.priority })
}

/// The runtime of the main thread; the workers have their own.
pub(crate) fn runtime() -> Result<Runtime, RunError> {
    Builder::new_current_thread().enable_all().build().map_err(system("starting the runtime"))
}

/// SIGTERM, SIGINT and SIGHUP: all of them ask to leave in order, but SIGHUP where there is a file to read again.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}

/// A running instance. The order of the fields is the order of leaving where a panic does it: packets stop coming
/// before the route goes, the route before the listeners.
struct Instance {
    attachments: Rc<RefCell<Attachments>>,
    pinned: Published,
    following: JoinHandle<()>,
    answering: JoinHandle<()>,
    sweeping: JoinHandle<()>,
    route: Rc<RouteGuard>,
    proxy: Proxy,
    dataplane: Rc<RefCell<Dataplane>>,
    rules: Rc<Rules>,
    places: Places,
    drain_asked: Rc<Notify>,
    draining: Rc<Cell<bool>>,
    _lock: InstanceLock,
}

fn report<E: std::fmt::Display>(result: Result<(), E>) {
    if let Err(e) = result {
        log::error!("{e}");
    }
}
