//! The services as a worker has them: which one took a connection, and what is counted for it.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

use crate::flow::Opening;
use crate::policy::{By, Policy, Service};
use crate::route::{AddressSet, OnLink};
use crate::socket::{ClientAddr, OriginalDst};
use crate::stats::{ServiceStats, WorkerStats};

/// What all workers go by; replaced as a whole.
#[derive(Clone, Debug)]
pub struct Policies {
    /// The one in force.
    pub current: Arc<Policy>,
    /// The one before: a connection may have come under it and be accepted only now.
    pub previous: Option<Arc<Policy>>,
    /// The kernel's numbers of the config's interfaces.
    pub interfaces: Arc<[u32]>,
    /// This host's own addresses.
    pub own: Arc<AddressSet>,
    /// Whose neighbours hosts are.
    pub on_link: Arc<OnLink>,
    /// Rises with each reload that shall reset connections which the policy in force does not give to the proxy.
    pub reviews: u64,
}

impl Policies {
    /// A first policy; no neighbours are known.
    #[must_use]
    pub fn new(current: Arc<Policy>, interfaces: Arc<[u32]>, own: Arc<AddressSet>) -> Self {
        Self { current, previous: None, interfaces, own, on_link: Arc::default(), reviews: 0 }
    }
}

/// A service, and what this worker counts for it.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) service: Service,
    pub(crate) stats: Arc<ServiceStats>,
}

/// The services of one worker; their counts need no lock.
pub(crate) struct Services {
    policies: Arc<Policies>,
    current: Vec<Rc<Served>>,
    previous: Vec<Rc<Served>>,
}

impl Services {
    pub(crate) fn new(policies: Arc<Policies>, stats: &WorkerStats) -> Self {
        let served = |policy: &Policy| -> Vec<Rc<Served>> {
            let serve =
                |service: &Service| Served { stats: stats.service(&service.name), service: service.clone() };
            policy.services().iter().map(|service| Rc::new(serve(service))).collect()
        };
        let current = served(&policies.current);
        let previous = policies.previous.as_deref().map(served).unwrap_or_default();
        stats.forget_all_but(current.iter().chain(&previous).map(|served| &*served.service.name));
        Self { policies, current, previous }
    }

    /// Whether the tables leave open which service took a connection.
    pub(crate) fn need_opening(&self) -> bool {
        let distinguishes = |policy: &Policy| policy.tables().header.by_interface != 0;
        distinguishes(&self.policies.current) || self.policies.previous.as_deref().is_some_and(distinguishes)
    }

    /// The service that took a connection.
    pub(crate) fn of(
        &self,
        client: ClientAddr,
        original: OriginalDst,
        opening: Option<Opening>,
    ) -> Option<&Rc<Served>> {
        let by = opening.map_or(By::Unknown, By::Opening);
        let found = |policy: &Policy| policy.proxied(client, original, by, &self.policies.own);
        if let Some(number) = found(&self.policies.current) {
            return self.current.get(number);
        }
        self.previous.get(found(self.policies.previous.as_deref()?)?)
    }

    /// Whether the policy in force gives a connection to the proxy; `interface` is the number of the one that it came
    /// in by, where that is known.
    pub(crate) fn keep(
        &self,
        client: ClientAddr,
        original: OriginalDst,
        interface: Option<NonZeroU32>,
    ) -> bool {
        let Policies { current, interfaces, own, .. } = &*self.policies;
        let by = match interface {
            None => By::Unknown,
            Some(number) => {
                let place = interfaces.iter().position(|listed| *listed == number.get());
                place.map_or(By::Unlisted, By::Listed)
            }
        };
        current.proxied(client, original, by, own).is_some()
    }

    /// This host's own addresses.
    pub(crate) fn own(&self) -> &AddressSet {
        &self.policies.own
    }

    /// Whose neighbours hosts are, roughly.
    pub(crate) fn on_link(&self) -> &OnLink {
        &self.policies.on_link
    }

    pub(crate) fn reviews(&self) -> u64 {
        self.policies.reviews
    }
}
