//! Counters: each worker writes its own, a reader sums them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::config::SameSubnet;
use crate::reason::CloseReason;
use crate::socket::SourceStep;

/// Written by one thread only, so that adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    pub accepted: Counter,
    pub ended: Counter,
    pub closed: [Counter; CloseReason::ALL.len()],
    pub bytes_up: Counter,
    pub bytes_down: Counter,
    /// Connections that were relayed through a pipe at least once.
    pub spliced: Counter,
    /// `client-port` connections that could not have the client's port.
    pub source_port_changed: Counter,
    /// What the sources of connections came to.
    pub source_steps: [Counter; SourceStep::ALL.len()],
    /// Connections whose client and server are neighbours, by what was done with them.
    pub same_subnet: [Counter; SameSubnet::ALL.len()],
    /// Times that accepting stopped at the limit of connections or of descriptors.
    pub accept_paused: Counter,
    /// accept() calls that failed for another reason.
    pub accept_failed: Counter,
    /// Flow table calls that failed; the connection goes on.
    pub flow_table_failed: Counter,
    /// Access records that nobody took in time.
    pub records_dropped: Counter,
    /// Sessions that ended in a panic, and were reset.
    pub panics: Counter,
    /// By the name of the service. Locked only when services change and when the counts are read.
    services: Mutex<BTreeMap<Arc<str>, Arc<ServiceStats>>>,
}

/// What one worker counts for one service.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ServiceStats {
    pub accepted: Counter,
    pub ended: Counter,
    pub bytes_up: Counter,
    pub bytes_down: Counter,
}

/// The sums of all workers for one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceSnapshot {
    pub accepted: u64,
    pub live: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl WorkerStats {
    /// The counts of a service of this name, the same ones as before.
    #[must_use]
    pub fn service(&self, name: &Arc<str>) -> Arc<ServiceStats> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(services.entry(Arc::clone(name)).or_default())
    }

    /// Forgets services that are gone, once their last connection has ended.
    pub fn forget_all_but<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let names: BTreeSet<&str> = names.collect();
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.retain(|name, stats| names.contains(&**name) || stats.accepted.get() > stats.ended.get());
    }

    #[must_use]
    pub fn live(&self) -> u64 {
        self.accepted.get().saturating_sub(self.ended.get())
    }

    pub fn count_end(&self, reason: CloseReason) {
        self.ended.add(1);
        self.closed[reason as usize].add(1);
    }
}

/// The counters of all workers.
#[derive(Clone, Debug)]
pub struct Stats(Arc<[Arc<WorkerStats>]>);

/// The sums at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsSnapshot {
    pub workers: usize,
    pub accepted: u64,
    pub live: u64,
    /// Connections that ended, by the reason's label.
    pub closed: BTreeMap<&'static str, u64>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub spliced: u64,
    pub source_port_changed: u64,
    /// By the step's label.
    pub source_steps: BTreeMap<&'static str, u64>,
    /// By what was done.
    pub same_subnet: BTreeMap<&'static str, u64>,
    pub accept_paused: u64,
    pub accept_failed: u64,
    pub flow_table_failed: u64,
    pub records_dropped: u64,
    pub panics: u64,
}

impl StatsSnapshot {
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed.get(reason.label()).copied().unwrap_or(0)
    }
}

impl Stats {
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Arc::new(WorkerStats::default())).collect())
    }

    #[must_use]
    pub fn worker(&self, index: usize) -> Arc<WorkerStats> {
        Arc::clone(&self.0[index])
    }

    /// The sums for a service.
    #[must_use]
    pub fn service(&self, name: &str) -> ServiceSnapshot {
        let mut sum = ServiceSnapshot::default();
        for worker in self.0.iter() {
            let services = worker.services.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(stats) = services.get(name) else { continue };
            // Read first: what ends in between must not make more ended than accepted.
            let ended = stats.ended.get();
            let accepted = stats.accepted.get();
            sum.accepted += accepted;
            sum.live += accepted.saturating_sub(ended);
            sum.bytes_up += stats.bytes_up.get();
            sum.bytes_down += stats.bytes_down.get();
        }
        sum
    }

    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let sum = |counter: fn(&WorkerStats) -> u64| self.0.iter().map(|worker| counter(worker)).sum();
        let sum_of =
            |counter: &dyn Fn(&WorkerStats) -> &Counter| self.0.iter().map(|w| counter(w).get()).sum();
        let closed = |reason: &CloseReason| (reason.label(), sum_of(&|w| &w.closed[*reason as usize]));
        let step = |step: &SourceStep| (step.label(), sum_of(&|w| &w.source_steps[*step as usize]));
        let met = |done: &SameSubnet| (done.label(), sum_of(&|w| &w.same_subnet[*done as usize]));
        StatsSnapshot {
            workers: self.0.len(),
            accepted: sum(|worker| worker.accepted.get()),
            live: sum(WorkerStats::live),
            closed: CloseReason::ALL.iter().map(closed).collect(),
            bytes_up: sum(|worker| worker.bytes_up.get()),
            bytes_down: sum(|worker| worker.bytes_down.get()),
            spliced: sum(|worker| worker.spliced.get()),
            source_port_changed: sum(|worker| worker.source_port_changed.get()),
            source_steps: SourceStep::ALL.iter().map(step).collect(),
            same_subnet: SameSubnet::ALL.iter().map(met).collect(),
            accept_paused: sum(|worker| worker.accept_paused.get()),
            accept_failed: sum(|worker| worker.accept_failed.get()),
            flow_table_failed: sum(|worker| worker.flow_table_failed.get()),
            records_dropped: sum(|worker| worker.records_dropped.get()),
            panics: sum(|worker| worker.panics.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sums_the_workers() {
        let stats = Stats::new(2);
        stats.worker(0).accepted.add(3);
        stats.worker(1).accepted.add(4);
        stats.worker(1).count_end(CloseReason::Refused);
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.accepted, snapshot.live), (7, 6));
        assert_eq!(snapshot.closed(CloseReason::Refused), 1);
        assert!(serde_json::to_string(&snapshot).unwrap().contains("\"refused\":1"));
    }
}
