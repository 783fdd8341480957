//! The config that an instance goes by, what was made of it, and how it is changed while packets come.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{spawn_blocking, spawn_local},
};

use super::{RunError, output::Output};
use crate::{
    admin::Reloaded,
    config::{Config, Existing, Mistakes, WhenDown},
    dataplane::{Dataplane, DataplaneError, Pins, PolicyMaps},
    policy::{CompileError, Policy, ServiceIds},
    route::{self, AddressSet, OnLink, RouteError},
    service::Policies,
};

/// A SYN-ACK is repeated for as long as net.ipv4.tcp_synack_retries says, a minute as it comes.
const HANDSHAKES_END: Duration = Duration::from_secs(90);

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("this instance was started by flags: name a file, sheer reload -c FILE")]
    NoFile,
    #[error("{}: is not a regular file; nothing was changed", .0.display())]
    NotAFile(PathBuf),
    #[error("another reload is under way; ask again when it has ended")]
    UnderWay,
    #[error("{0}")]
    Mistakes(Mistakes),
    #[error("{}: {}: only a restart can change {}; nothing was changed", file.display(), keys.join(", "),
        if keys.len() == 1 { "it" } else { "them" })]
    NeedsRestart { file: PathBuf, keys: Vec<&'static str> },
    #[error("{0}; nothing was changed")]
    Compile(#[from] CompileError),
    #[error("{0}; nothing was changed")]
    Route(#[from] RouteError),
    #[error("{0}; the services before stay in force")]
    Dataplane(#[from] DataplaneError),
    #[error("internal error while reading the file: {0}; nothing was changed")]
    Panic(#[from] tokio::task::JoinError),
}

/// A first policy and its maps, in force in a dataplane that is not attached yet.
pub(super) struct First {
    pub(super) policy: Arc<Policy>,
    pub(super) maps: PolicyMaps,
    ids: ServiceIds,
}

impl First {
    pub(super) fn install(
        config: &Config,
        dataplane: &mut Dataplane,
        interfaces: &[u32],
    ) -> Result<Self, RunError> {
        let (ids, numbers, _) = ServiceIds::default().assign(names(config));
        let policy = Arc::new(Policy::new(&config.services, &config.interfaces, 1, &numbers)?);
        let maps = PolicyMaps::make(&policy)?;
        dataplane.bring_into_force(&policy, &maps, interfaces)?;
        Ok(Self { policy, maps, ids })
    }
}

/// What an instance goes by.
pub(super) struct Rules {
    config: RefCell<Rc<Config>>,
    ids: RefCell<ServiceIds>,
    policies: watch::Sender<Arc<Policies>>,
    pins: Pins,
    output: Output,
    busy: Cell<bool>,
}

impl Rules {
    pub(super) fn new(
        config: Rc<Config>,
        first: First,
        policies: watch::Sender<Arc<Policies>>,
        pins: Pins,
        output: Output,
    ) -> Self {
        let (config, ids) = (RefCell::new(config), RefCell::new(first.ids));
        Self { config, ids, policies, pins, output, busy: Cell::new(false) }
    }

    pub(super) fn config(&self) -> Rc<Config> {
        Rc::clone(&self.config.borrow())
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policies.borrow().current)
    }

    /// This host's own addresses.
    pub(super) fn own(&self) -> Arc<AddressSet> {
        Arc::clone(&self.policies.borrow().own)
    }

    /// This host's own addresses have changed.
    pub(super) fn set_addresses(&self, own: &AddressSet) {
        self.change(|policies| policies.own = Arc::new(own.clone()));
    }

    /// Other hosts are neighbours.
    pub(super) fn set_on_link(&self, on_link: Arc<OnLink>) {
        self.change(|policies| policies.on_link = on_link);
    }

    fn change(&self, change: impl FnOnce(&mut Policies)) {
        self.policies.send_modify(|policies| change(Arc::make_mut(policies)));
    }

    /// Lets go of the policy before, once every handshake that it let in has ended one way or another.
    async fn forget_previous(self: Rc<Self>, generation: u32) {
        tokio::time::sleep(HANDSHAKES_END).await;
        if self.policy().tables().header.generation == generation {
            self.change(|policies| policies.previous = None);
        }
    }

    /// Reads the file again, or another one, and brings what it says into force.
    pub(super) async fn reload(
        self: &Rc<Self>,
        file: Option<PathBuf>,
        dataplane: &RefCell<Dataplane>,
    ) -> Result<Reloaded, ReloadError> {
        if self.busy.replace(true) {
            return Err(ReloadError::UnderWay);
        }
        let done = self.reload_alone(file, dataplane).await;
        self.busy.set(false);
        if let Ok(done) = &done {
            spawn_local(Rc::clone(self).forget_previous(done.generation));
        }
        done
    }

    async fn reload_alone(
        &self,
        file: Option<PathBuf>,
        dataplane: &RefCell<Dataplane>,
    ) -> Result<Reloaded, ReloadError> {
        let before = self.config();
        let file = file.or_else(|| before.file.clone()).ok_or(ReloadError::NoFile)?;
        // A pipe would be waited for, perhaps for ever.
        if std::fs::metadata(&file).is_ok_and(|found| !found.is_file()) {
            return Err(ReloadError::NotAFile(file));
        }
        let (path, instance) = (file.clone(), before.instance.clone());
        let read = spawn_blocking(move || Config::read(&path, instance)).await?;
        let config = read.map_err(ReloadError::Mistakes)?;
        let keys = needs_restart(&before, &config);
        if !keys.is_empty() {
            return Err(ReloadError::NeedsRestart { file, keys });
        }
        let interfaces = interface_numbers(&config).await?;
        let (ids, numbers, new) = self.ids.borrow().assign(names(&config));
        let generation = self.policy().tables().header.generation.wrapping_add(1);
        let in_force = self.policy();
        // Away from this thread, which answers on the control socket meanwhile.
        let (config, policy, maps) = spawn_blocking(move || {
            let mut policy = Policy::new(&config.services, &config.interfaces, generation, &numbers)?;
            policy.remember_told(&in_force);
            let policy = Arc::new(policy);
            let maps = PolicyMaps::make(&policy)?;
            Ok::<_, ReloadError>((config, policy, maps))
        })
        .await??;
        self.output.prepare(&config, dataplane).await?;
        self.bring_into_force(
            &policy,
            &maps,
            &interfaces,
            &new,
            &mut dataplane.borrow_mut(),
            config.existing,
        )?;
        super::report(dataplane.borrow_mut().set_closed(config.when_down == WhenDown::Closed));
        let done = Reloaded { generation, in_force: config.summary() };
        self.ids.replace(ids);
        self.config.replace(Rc::new(config));
        Ok(done)
    }

    fn bring_into_force(
        &self,
        policy: &Arc<Policy>,
        maps: &PolicyMaps,
        interfaces: &[u32],
        new: &[u32],
        dataplane: &mut Dataplane,
        existing: Existing,
    ) -> Result<(), DataplaneError> {
        dataplane.forget_counts(new)?;
        // The workers first: they know the services before as well, so that a connection finds its own whichever
        // of the two policies the programs go by.
        let before = Policies::clone(&self.policies.borrow());
        self.change(|policies| {
            policies.previous = Some(std::mem::replace(&mut policies.current, Arc::clone(policy)));
            policies.interfaces = interfaces.into();
        });
        if let Err(e) = dataplane.bring_into_force(policy, maps, interfaces) {
            self.change(|policies| *policies = before);
            return Err(e);
        }
        if existing == Existing::Reset {
            self.change(|policies| policies.reviews += 1);
        }
        // Only names in bpffs: the programs have the maps.
        super::report(self.pins.show_tables(maps));
        Ok(())
    }
}

fn names(config: &Config) -> impl Iterator<Item = &str> {
    config.services.iter().map(|service| service.name.as_str())
}

/// The kernel's numbers of the config's interfaces; 0, which none has, for one that is gone.
async fn interface_numbers(config: &Config) -> Result<Vec<u32>, RouteError> {
    let all = route::links().await?;
    let number = |name: &String| match route::find_link(&all, name) {
        Ok(link) => link.index,
        Err(e) => {
            log::warn!("{e}");
            0
        }
    };
    Ok(config.interfaces.iter().map(number).collect())
}

/// The keys that differ and that a running instance cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let differ = [
        ("dataplane.interfaces", old.interfaces != new.interfaces),
        ("dataplane.attach", old.attach != new.attach),
        ("dataplane.mark", old.mark != new.mark),
        ("dataplane.table", old.table != new.table),
        ("proxy.workers", old.workers != new.workers),
        ("proxy.max_connections", old.max_connections != new.max_connections),
        ("proxy.connect_timeout", old.timeouts.connect != new.timeouts.connect),
        ("proxy.idle_timeout", old.timeouts.idle != new.timeouts.idle),
        ("proxy.half_close_timeout", old.timeouts.half_close != new.timeouts.half_close),
        ("proxy.drain_timeout", old.drain_timeout != new.drain_timeout),
        ("proxy.access_log", old.access_log != new.access_log),
        ("proxy.access_format", old.access_format != new.access_format),
    ];
    differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
