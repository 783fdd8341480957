//! `sheer run`: everything started in an order in which no packet finds half of it, and taken down in reverse.

mod predecessor;
mod shown;

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use sheer_common::abi::Settings;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    task::{JoinHandle, LocalSet, spawn_local},
    time::sleep,
};

use crate::{
    admin::{self, Request},
    config::Config,
    dataplane::{Attachments, Dataplane, DataplaneError, Pins, clsact},
    instance::{InstanceError, InstanceLock, Places, State},
    leftover, limit,
    proxy::{Proxy, StartError, WorkerFailure},
    route::{self, AddressSet, Link, Numbers, RouteError, RouteGuard, RoutePlan},
    socket::{self, ListenError},
};

/// Why an instance could not start, or ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its files, or another process that has it.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Interfaces, rules, routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Programs, maps, pins.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("starting the runtime"))?;
    LocalSet::new().block_on(&runtime, async {
        // Before anything that has to be undone: a signal during the start must not kill us half-way.
        let mut signals = Signals::new().map_err(system("catching signals"))?;
        let mut instance = Instance::start(config).await?;
        instance.announce();
        let worked = instance.serve(&mut signals).await;
        instance.stop().await;
        worked
    })
}

/// SIGTERM, SIGINT and SIGHUP alike: all of them ask to leave in order.
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

/// A running instance. The order of the fields is the order of leaving where nobody calls [`Instance::stop`]:
/// packets stop coming before the route goes, the route before the listeners.
struct Instance {
    attachments: Attachments,
    pinned: Published,
    route: Rc<RouteGuard>,
    following: JoinHandle<()>,
    proxy: Proxy,
    dataplane: Rc<RefCell<Dataplane>>,
    config: Rc<Config>,
    places: Places,
    started: Instant,
    drain_asked: Rc<Notify>,
    draining: Rc<Cell<bool>>,
    _lock: InstanceLock,
}

/// Pins that go when their instance does.
struct Published(Pins);

impl Drop for Published {
    fn drop(&mut self) {
        if let Err(e) = self.0.remove() {
            log::error!("{e}");
        }
    }
}

impl Instance {
    async fn start(config: Config) -> Result<Self, RunError> {
        if let Err(e) = limit::raise_open_files() {
            log::warn!("raising the limit of open files: {e}");
        }
        let places = Places::of(&config.instance);
        let lock = places.lock()?;
        let pins = Pins::of(&config.instance);
        let links = listed_links(&config).await?;
        let before = predecessor::find(&pins, &places);
        let numbers = predecessor::choose(&config, before.as_ref()).await?;

        pins.prepare()?;
        let mut dataplane = Dataplane::load(config.trace)?;
        let listeners = socket::bind_listeners(config.workers, numbers.mark, socket::transparent::BACKLOG)?;
        dataplane.set_listeners(&listeners)?;
        dataplane.set_policy(&config)?;
        let addresses = route::watch_addresses().await?;
        dataplane.set_local_addresses(&addresses.borrow())?;
        dataplane.set_settings(settings(&config, numbers))?;
        let tables = dataplane.flow_tables(config.workers)?;
        let proxy = Proxy::start(Arc::new(config.proxy(numbers.mark)), listeners, tables)?;

        let plan = RoutePlan {
            mark: numbers.mark,
            table: numbers.table,
            priority: numbers.priority,
            interfaces: config.interfaces.clone(),
        };
        let route = RouteGuard::install(plan).await?;
        // Under clsact an instance is told by its table, as in the route rules.
        let filter_handle = (numbers.table & 0xffff) as u16;
        let filters_before = before.as_ref().map_or(&[][..], |b| &b.clsact);
        let attachments =
            Attachments::make(&mut dataplane, &links, config.attach, filter_handle, filters_before, &pins)?;
        pins.stage(&mut dataplane)?;
        pins.publish()?;
        let pinned = Published(pins);
        let state = State {
            mark: numbers.mark,
            table: numbers.table,
            priority: numbers.priority,
            clsact: attachments.clsact(),
        };
        predecessor::clear(before, &state).await;
        places.write_state(&state)?;

        if config.trace {
            dataplane.start_tracing()?;
        }
        let dataplane = Rc::new(RefCell::new(dataplane));
        let route = Rc::new(route);
        let following = spawn_local(follow_addresses(addresses, Rc::clone(&dataplane), Rc::clone(&route)));
        let instance = Self {
            attachments,
            pinned,
            route,
            following,
            proxy,
            dataplane,
            config: Rc::new(config),
            places,
            started: Instant::now(),
            drain_asked: Rc::new(Notify::new()),
            draining: Rc::default(),
            _lock: lock,
        };
        instance.open_control_socket()?;
        Ok(instance)
    }

    fn announce(&self) {
        eprintln!("ready");
        // An error means that nobody waits for it.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Until told to leave, or a worker dies; then until the connections have ended or had their time.
    async fn serve(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        tokio::select! {
            ended = self.proxy.finished() => return Ok(ended?),
            name = signals.next() => log::info!("{name}: leaving"),
            () = self.drain_asked.notified() => log::info!("asked to drain: leaving"),
        }
        self.drain(signals).await
    }

    async fn drain(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        self.draining.set(true);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        {
            let mut dataplane = self.dataplane.borrow_mut();
            let now = dataplane.settings()?;
            dataplane.set_settings(Settings { draining: 1, ..now })?;
        }
        self.proxy.drain();
        let live = self.proxy.live();
        if live > 0 {
            let patience = humantime::format_duration(self.config.drain_timeout);
            log::info!("{live} connections have {patience} to end; a second signal resets them");
        }
        let drained = tokio::select! {
            ended = self.proxy.finished() => { ended?; true }
            () = sleep(self.config.drain_timeout) => false,
            name = signals.next() => { log::info!("{name} again"); false }
        };
        if !drained {
            log::info!("resetting {} connections", self.proxy.live());
            self.proxy.force();
            self.proxy.finished().await?;
        }
        // Sockets that the proxy has closed may still have data to deliver; without the route it would be lost.
        let own = route::local_addresses().await?;
        tokio::select! {
            () = leftover::delivered(&own) => {}
            _ = signals.next() => {}
        }
        Ok(())
    }

    /// Takes everything down: programs, pins, route, workers, files.
    async fn stop(self) {
        let clsact = self.attachments.clsact();
        drop(self.attachments);
        drop(self.pinned);
        for filter in &clsact {
            report(clsact::remove(filter).await);
        }
        self.following.abort();
        // Cancelled: its end cannot fail otherwise.
        let _ = self.following.await;
        if let Some(route) = Rc::into_inner(self.route) {
            report(route.remove().await);
        }
        report(self.proxy.join());
        self.places.remove();
    }

    fn open_control_socket(&self) -> Result<(), RunError> {
        let drain_asked = Rc::clone(&self.drain_asked);
        let shown = shown::Shown {
            dataplane: Rc::clone(&self.dataplane),
            config: Rc::clone(&self.config),
            stats: self.proxy.stats_handle(),
            max_connections: self.proxy.max_connections(),
            draining: Rc::clone(&self.draining),
            started: self.started,
            attached: self.config.interfaces.iter().map(|i| self.attachments.kind(i)).collect(),
        };
        let handler: admin::Handler = Rc::new(move |request| match request {
            Request::Status => shown.status(),
            Request::Drain => {
                drain_asked.notify_one();
                serde_json::json!({ "live": shown.stats.snapshot().live }).to_string()
            }
        });
        admin::serve(&self.places.socket(), handler).map_err(system("making the control socket"))
    }
}

fn report<E: std::fmt::Display>(result: Result<(), E>) {
    if let Err(e) = result {
        log::error!("{e}");
    }
}

async fn listed_links(config: &Config) -> Result<Vec<Link>, RunError> {
    let all = route::links().await?;
    let listed = config.interfaces.iter().map(|name| route::find_link(&all, name).cloned());
    Ok(listed.collect::<Result<_, _>>()?)
}

fn settings(config: &Config, numbers: Numbers) -> Settings {
    Settings {
        mark: numbers.mark,
        table: numbers.table,
        priority: numbers.priority,
        workers: u32::try_from(config.workers).unwrap_or(u32::MAX),
        draining: 0,
    }
}

/// Keeps the map of this host's own addresses as they are. A new address is also how a VLAN device or bridge
/// above a listed interface makes itself known, so the route rules are looked at again.
async fn follow_addresses(
    mut addresses: watch::Receiver<AddressSet>,
    dataplane: Rc<RefCell<Dataplane>>,
    route: Rc<RouteGuard>,
) {
    while addresses.changed().await.is_ok() {
        let set = addresses.borrow_and_update().clone();
        report(dataplane.borrow_mut().set_local_addresses(&set));
        report(route.refresh().await);
    }
}
