//! The start: everything that can fail first, the programs of a dead predecessor exchanged last.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use sheer_common::abi::{LAYOUT, Settings};
use tokio::{
    net::UnixListener,
    sync::{Notify, watch},
    task::spawn_local,
};

use super::{
    Instance, RunError,
    answer::Answers,
    output::Output,
    pings, predecessor, report,
    rules::{First, Rules},
    shown::Shown,
    system,
};
use crate::{
    admin,
    config::{Config, WhenDown},
    dataplane::{AttachPlan, Attachments, Capabilities, Dataplane, Direction, Hook, Pins, attach, clsact},
    doctor,
    instance::{ClsactState, Places, State},
    limit,
    proxy::Proxy,
    route::{self, AddressSet, Link, Numbers, OnLink, RouteError, RouteGuard, RoutePlan},
    service::Policies,
    socket,
};

/// Starts an instance. Where that fails, what was made is undone, and what a dead predecessor left guards on.
///
/// # Errors
/// See [`RunError`].
pub(super) async fn start(config: Config) -> Result<Instance, RunError> {
    if let Err(e) = limit::raise_open_files() {
        log::warn!("raising the limit of open files: {e}");
    }
    let places = Places::of(&config.instance);
    let lock = places.lock()?;
    let pins = Pins::of(&config.instance);
    let before = predecessor::find(&pins, &places);
    let mut filters = Vec::new();
    let made = make(config, &places, &pins, before.as_ref(), &mut filters).await;
    match made {
        Ok(parts) => {
            if let Some(before) = before {
                predecessor::clear(&before, &parts.state).await;
            }
            Ok(parts.into_instance(places, lock))
        }
        Err(failure) => {
            undo(&places, before.as_ref(), &filters).await;
            Err(failure)
        }
    }
}

/// What a start has made when nothing can fail any more.
struct Parts {
    config: Rc<Config>,
    first: First,
    policies: watch::Sender<Arc<Policies>>,
    state: State,
    attachments: Attachments,
    pinned: crate::dataplane::pins::Published,
    route: RouteGuard,
    proxy: Proxy,
    dataplane: Dataplane,
    addresses: watch::Receiver<AddressSet>,
    on_link: watch::Receiver<Arc<OnLink>>,
    control: UnixListener,
}

async fn make(
    config: Config,
    places: &Places,
    pins: &Pins,
    before: Option<&State>,
    filters: &mut Vec<ClsactState>,
) -> Result<Parts, RunError> {
    let links = listed_links(&config).await?;
    let numbers = predecessor::choose(&config, before).await?;
    let capabilities = Capabilities::probe();
    doctor::before_start(&questions(&config, numbers), &capabilities).await?;
    let anchor = capabilities.anchor(config.attach)?;
    let mut state = State {
        mark: numbers.mark,
        table: numbers.table,
        priority: numbers.priority,
        clsact: before.map(|b| b.clsact.clone()).unwrap_or_default(),
    };
    // Written before anything is made: whatever kills us from here on, a successor finds our numbers.
    places.write_state(&state)?;
    let stage = pins.prepare()?;
    let mut dataplane = Dataplane::load(config.trace, &capabilities)?;
    let listeners = socket::bind_listeners(config.workers, numbers.mark, socket::transparent::BACKLOG)?;
    dataplane.set_listeners(&listeners)?;
    let addresses = route::watch_addresses().await?;
    report(dataplane.set_local_addresses(&addresses.borrow()));
    dataplane.set_settings(settings(&config, numbers, &links))?;
    dataplane.set_devices(&links)?;
    let interfaces: Vec<u32> = links.iter().map(|link| link.index).collect();
    let first = First::install(&config, &mut dataplane, &interfaces)?;
    if config.trace {
        dataplane.start_tracing()?;
    }
    let hooks = hooks(&config, &links);
    attach::load_programs(&mut dataplane, &hooks)?;
    stage.pin(&mut dataplane)?;
    stage.pin_tables(&first.maps)?;
    let tables = dataplane.flow_tables(config.workers)?;
    let own = Arc::new(addresses.borrow().clone());
    let on_link = route::watch_on_link().await?;
    let policies = Policies {
        on_link: Arc::clone(&on_link.borrow()),
        ..Policies::new(Arc::clone(&first.policy), interfaces.into(), own)
    };
    let (policies, follow) = watch::channel(Arc::new(policies));
    let for_proxy = Arc::new(config.proxy(numbers.mark));
    let proxy = Proxy::start(for_proxy, follow, listeners, tables, dataplane.client_table()?)?;
    let control = admin::bind(&places.socket()).map_err(system("making the control socket"))?;
    let route = RouteGuard::install(route_plan(&config, numbers)).await?;
    let filters_of_others: Vec<_> =
        places.states_of_others().into_iter().flat_map(|other| other.clsact).collect();
    let plan = AttachPlan {
        hooks,
        anchor,
        // Under clsact an instance is told by its table, as in the route rules.
        filter_handle: numbers.table,
        filters_before: &state.clsact,
        filters_of_others: &filters_of_others,
    };
    let attachments = Attachments::make(&mut dataplane, &plan, &stage, filters)?;
    let pinned = stage.publish()?;
    state.clsact.clone_from(filters);
    report(places.write_state(&state));
    let config = Rc::new(config);
    Ok(Parts {
        config,
        first,
        policies,
        state,
        attachments,
        pinned,
        route,
        proxy,
        dataplane,
        addresses,
        on_link,
        control,
    })
}

impl Parts {
    fn into_instance(self, places: Places, lock: crate::instance::InstanceLock) -> Instance {
        let dataplane = Rc::new(RefCell::new(self.dataplane));
        let route = Rc::new(self.route);
        let interfaces = self.config.interfaces.clone();
        let pins = Pins::of(&self.config.instance);
        let attached = interfaces.iter().map(|i| self.attachments.kind(i)).collect();
        let attachments = Rc::new(RefCell::new(self.attachments));
        let output = Output::new(&attachments, &route, places.clone(), pins.clone());
        let rules = Rc::new(Rules::new(self.config, self.first, self.policies, pins, output));
        let addresses =
            follow_addresses(self.addresses, Rc::clone(&dataplane), Rc::clone(&route), Rc::clone(&rules));
        let on_link = follow_on_link(self.on_link, Rc::clone(&rules));
        let following = spawn_local(async {
            tokio::join!(addresses, on_link);
        });
        let answering = spawn_local(pings::answer(Rc::clone(&rules), Rc::clone(&dataplane), self.state.mark));
        let sweeping = spawn_local(sweep(Rc::clone(&dataplane)));
        let drain_asked = Rc::new(Notify::new());
        let draining = Rc::new(Cell::new(false));
        let shown = Shown {
            dataplane: Rc::clone(&dataplane),
            rules: Rc::clone(&rules),
            stats: self.proxy.stats_handle(),
            max_connections: self.proxy.max_connections(),
            draining: Rc::clone(&draining),
            started: Instant::now(),
            attached,
        };
        let answers = Rc::new(Answers { shown, drain_asked: Rc::clone(&drain_asked) });
        admin::serve(self.control, answers.handler());
        Instance {
            attachments,
            pinned: self.pinned,
            following,
            answering,
            sweeping,
            route,
            proxy: self.proxy,
            dataplane,
            rules,
            places,
            drain_asked,
            draining,
            _lock: lock,
        }
    }
}

/// After a failed start: the files say again what they said before, or go. Links, rules and sockets have gone
/// with the values that held them.
async fn undo(places: &Places, before: Option<&State>, filters: &[ClsactState]) {
    for filter in filters {
        let predecessors = before.is_some_and(|b| b.clsact.iter().any(|f| f.interface == filter.interface));
        if !predecessors {
            report(clsact::remove(filter).await);
        }
    }
    match before {
        Some(before) => report(places.write_state(before)),
        None => places.remove(),
    }
}

pub(super) async fn listed_links(config: &Config) -> Result<Vec<Link>, RouteError> {
    let all = route::links().await?;
    let listed = config.interfaces.iter().map(|name| route::find_link(&all, name).cloned());
    listed.collect()
}

fn questions(config: &Config, numbers: Numbers) -> doctor::Options {
    doctor::Options {
        numbers: Some(numbers),
        instance: Some(config.instance.clone()),
        ..doctor::Options::of(config)
    }
}

fn route_plan(config: &Config, numbers: Numbers) -> RoutePlan {
    RoutePlan {
        mark: numbers.mark,
        table: numbers.table,
        priority: numbers.priority,
        interfaces: config.interfaces.clone(),
        output: config.concerns_output(),
    }
}

/// Where programs are attached: first where packets leave, so that no answer goes astray.
fn hooks<'a>(config: &Config, links: &'a [Link]) -> Vec<Hook<'a>> {
    let at = |direction| move |link| Hook { link, direction };
    let out = links.iter().filter(|_| config.concerns_output()).map(at(Direction::Out));
    out.chain(links.iter().map(at(Direction::In))).collect()
}

fn settings(config: &Config, numbers: Numbers, links: &[Link]) -> Settings {
    Settings {
        layout: LAYOUT,
        mark: numbers.mark,
        table: numbers.table,
        priority: numbers.priority,
        workers: u32::try_from(config.workers).unwrap_or(u32::MAX),
        draining: 0,
        active: 0,
        blocking: 0,
        switched: is_switched(links).into(),
        closed: (config.when_down == WhenDown::Closed).into(),
    }
}

/// Whether some interface is a port of a bridge, bond or VRF.
fn is_switched(links: &[Link]) -> bool {
    links.iter().any(|link| link.controller.is_some())
}

/// Keeps the map of this host's own addresses as they are. A new address is also how a VLAN device or bridge
/// above a listed interface makes itself known, so the route rules are looked at again.
async fn follow_addresses(
    mut addresses: watch::Receiver<AddressSet>,
    dataplane: Rc<RefCell<Dataplane>>,
    route: Rc<RouteGuard>,
    rules: Rc<Rules>,
) {
    while addresses.changed().await.is_ok() {
        let set = addresses.borrow_and_update().clone();
        report(dataplane.borrow_mut().set_local_addresses(&set));
        rules.set_addresses(&set);
        report(route.refresh().await);
        if let Ok(links) = listed_links(&rules.config()).await {
            report(dataplane.borrow_mut().set_switched(is_switched(&links)));
        }
    }
}

/// Tells the workers whose neighbours hosts are.
async fn follow_on_link(mut on_link: watch::Receiver<Arc<OnLink>>, rules: Rc<Rules>) {
    while on_link.changed().await.is_ok() {
        let now = Arc::clone(&on_link.borrow_and_update());
        rules.set_on_link(now);
    }
}

/// How often the maps of fragments are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Sweeps out what fragments have left, for as long as the instance runs.
async fn sweep(dataplane: Rc<RefCell<Dataplane>>) {
    let mut failed = false;
    loop {
        tokio::time::sleep(SWEEP).await;
        let swept = dataplane.borrow_mut().sweep_fragments();
        // Said once, not every second.
        if swept.is_err() && !failed {
            failed = true;
            report(swept);
        }
    }
}
