//! The config that an instance goes by, what was made of it, and how it is changed while packets come.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
};

use tokio::{sync::watch, task::spawn_blocking};

use super::{RunError, start::interface_numbers};
use crate::{
    admin::Reloaded,
    config::{Config, Existing, Mistakes},
    dataplane::{Dataplane, DataplaneError, Pins, PolicyMaps},
    policy::{CompileError, Policy, ServiceIds},
    route::{AddressSet, RouteError},
    service::Policies,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("this instance was started by flags: name a file, sheer reload -c FILE")]
    NoFile,
    #[error("another reload is under way; ask again when it has ended")]
    UnderWay,
    #[error("{0}\nnothing was changed")]
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
    busy: Cell<bool>,
}

impl Rules {
    pub(super) fn new(
        config: Rc<Config>,
        first: First,
        policies: watch::Sender<Arc<Policies>>,
        pins: Pins,
    ) -> Self {
        let (config, ids) = (RefCell::new(config), RefCell::new(first.ids));
        Self { config, ids, policies, pins, busy: Cell::new(false) }
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
        self.policies.send_modify(|policies| {
            let own = Arc::new(own.clone());
            *policies = Arc::new(Policies { own, existing: Existing::Keep, ..Policies::clone(policies) });
        });
    }

    /// Reads the file again, or another one, and brings what it says into force.
    pub(super) async fn reload(
        &self,
        file: Option<PathBuf>,
        dataplane: &RefCell<Dataplane>,
    ) -> Result<Reloaded, ReloadError> {
        if self.busy.replace(true) {
            return Err(ReloadError::UnderWay);
        }
        let done = self.reload_alone(file, dataplane).await;
        self.busy.set(false);
        done
    }

    async fn reload_alone(
        &self,
        file: Option<PathBuf>,
        dataplane: &RefCell<Dataplane>,
    ) -> Result<Reloaded, ReloadError> {
        let before = self.config();
        let file = file.or_else(|| before.file.clone()).ok_or(ReloadError::NoFile)?;
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
        // Away from this thread, which answers on the control socket meanwhile.
        let (config, policy, maps) = spawn_blocking(move || {
            let policy = Arc::new(Policy::new(&config.services, &config.interfaces, generation, &numbers)?);
            let maps = PolicyMaps::make(&policy)?;
            Ok::<_, ReloadError>((config, policy, maps))
        })
        .await??;
        self.bring_into_force(
            &policy,
            &maps,
            &interfaces,
            &new,
            &mut dataplane.borrow_mut(),
            config.existing,
        )?;
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
        let current = Arc::clone(policy);
        let previous = Some(Arc::clone(&before.current));
        let next = Policies { current, previous, own: Arc::clone(&before.own), existing: Existing::Keep };
        self.policies.send_replace(Arc::new(next.clone()));
        if let Err(e) = dataplane.bring_into_force(policy, maps, interfaces) {
            self.policies.send_replace(Arc::new(Policies { existing: Existing::Keep, ..before }));
            return Err(e);
        }
        if existing == Existing::Reset {
            self.policies.send_replace(Arc::new(Policies { existing, ..next }));
        }
        // Only names in bpffs: the programs have the maps.
        super::report(self.pins.show_tables(maps));
        Ok(())
    }
}

fn names(config: &Config) -> impl Iterator<Item = &str> {
    config.services.iter().map(|service| service.name.as_str())
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
