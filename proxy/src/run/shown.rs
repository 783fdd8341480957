//! What the control socket shows of a running instance.

use std::{
    cell::{Cell, RefCell},
    process,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use sheer_common::verdict::{HelperFailure, Verdict};

use super::rules::Rules;
use crate::{
    admin::{BlockedClient, InterfaceStatus, RouteStatus, ServiceStatus, ServiceUse, Status},
    config::Action,
    dataplane::{Dataplane, DataplaneError},
    explain::{Answer, ExplainError, InForce, Place, Question},
    stats::Stats,
};

/// What the control socket shows.
pub(super) struct Shown {
    pub(super) dataplane: Rc<RefCell<Dataplane>>,
    pub(super) rules: Rc<Rules>,
    pub(super) stats: Stats,
    pub(super) max_connections: usize,
    pub(super) draining: Rc<Cell<bool>>,
    pub(super) started: Instant,
    pub(super) attached: Vec<&'static str>,
}

impl Shown {
    pub(super) fn services(&self) -> Result<Vec<ServiceUse>, DataplaneError> {
        let mut dataplane = self.dataplane.borrow_mut();
        let (config, policy) = (self.rules.config(), self.rules.policy());
        let services = config.services.iter().zip(policy.services());
        let used = services.map(|(service, live)| {
            let counted = dataplane.service_counters(live.id)?;
            Ok(ServiceUse {
                name: service.name.clone(),
                protocol: service.protocol,
                action: service.action,
                hits: counted.hits,
                refused: counted.refused,
                proxied: (service.action == Action::Proxy).then(|| self.stats.service(&service.name)),
            })
        });
        used.collect()
    }

    pub(super) fn blocked(&self) -> Result<Vec<BlockedClient>, DataplaneError> {
        let policy = self.rules.policy();
        let name = |id: u32| {
            // A service that a reload took away, or whose limit blocks no more, shuts nobody out.
            let mut blocking = policy.services().iter().filter(|service| service.limit.block_ns != 0);
            let found = blocking.find(|service| service.id == id);
            found.map(|service| Arc::clone(&service.name))
        };
        let blocked = self.dataplane.borrow_mut().blocked()?.into_iter();
        let named = blocked.filter_map(|block| {
            let service = match block.service {
                Some(id) => Some(name(id)?),
                None => None,
            };
            Some(BlockedClient { service, block })
        });
        Ok(named.collect())
    }

    pub(super) async fn explain(&self, question: &Question) -> Result<Answer, ExplainError> {
        // A reload may change the services meanwhile, but no interface.
        let place = Place::of(question, &self.rules.config().interfaces, &self.attached).await?;
        let decided = {
            let (config, policy, own) = (self.rules.config(), self.rules.policy(), self.rules.own());
            let in_force = InForce { config: &config, policy: &policy, own: &own };
            in_force.ask(&mut self.dataplane.borrow_mut(), question, place)?
        };
        decided.follow().await
    }

    pub(super) fn status(&self) -> Result<Status, DataplaneError> {
        let settings = self.dataplane.borrow_mut().settings()?;
        let counters = self.dataplane.borrow().counters()?;
        let config = self.rules.config();
        let interfaces = config.interfaces.iter().zip(&self.attached);
        let services = config.services.iter().map(|s| ServiceStatus {
            name: s.name.clone(),
            protocol: s.protocol,
            ports: s.ports.as_ref().map_or_else(|| "any".into(), ToString::to_string),
            action: s.action,
            source: s.source.to_string(),
            when_down: s.when_down,
        });
        Ok(Status {
            instance: config.instance.to_string(),
            pid: process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            state: if self.draining.get() { "draining" } else { "running" },
            interfaces: interfaces
                .map(|(name, attached)| InterfaceStatus { name: name.clone(), attached })
                .collect(),
            route: RouteStatus { mark: settings.mark, table: settings.table, priority: settings.priority },
            services: services.collect(),
            max_connections: self.max_connections,
            connections: self.stats.snapshot(),
            verdicts: Verdict::ALL.iter().map(|v| (v.name(), v.of(&counters))).collect(),
            failures: HelperFailure::ALL.iter().map(|f| (f.name(), f.of(&counters))).collect(),
        })
    }
}
