//! What the control socket shows of a running instance.

use std::{
    cell::{Cell, RefCell},
    process,
    rc::Rc,
    time::Instant,
};

use sheer_common::verdict::{HelperFailure, Verdict};

use crate::{
    admin::{InterfaceStatus, RouteStatus, ServiceStatus, Status},
    config::Config,
    dataplane::{Dataplane, DataplaneError},
    stats::Stats,
};

/// What the control socket shows.
pub(super) struct Shown {
    pub(super) dataplane: Rc<RefCell<Dataplane>>,
    pub(super) config: Rc<Config>,
    pub(super) stats: Stats,
    pub(super) max_connections: usize,
    pub(super) draining: Rc<Cell<bool>>,
    pub(super) started: Instant,
    pub(super) attached: Vec<&'static str>,
}

impl Shown {
    pub(super) fn status(&self) -> String {
        match self.collect() {
            Ok(status) => serde_json::to_string(&status).unwrap_or_else(|e| error(&e)),
            Err(e) => error(&e),
        }
    }

    fn collect(&self) -> Result<Status, DataplaneError> {
        let settings = self.dataplane.borrow_mut().settings()?;
        let counters = self.dataplane.borrow().counters()?;
        let interfaces = self.config.interfaces.iter().zip(&self.attached);
        let services = self.config.services.iter().map(|s| ServiceStatus {
            name: s.name.clone(),
            tcp: s.ports.to_string(),
            source: s.source.to_string(),
            when_down: s.when_down,
        });
        Ok(Status {
            instance: self.config.instance.to_string(),
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

fn error(e: &dyn std::error::Error) -> String {
    serde_json::json!({ "error": e.to_string() }).to_string()
}
