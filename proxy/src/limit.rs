//! The limit of live connections over all workers, and of descriptors.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;

/// Admits connections up to a limit; shared by all workers.
#[derive(Debug)]
pub struct Gate {
    live: AtomicUsize,
    max: usize,
    waiting: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
    idle: Notify,
}

/// The right of one connection to exist, given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

impl Gate {
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            live: AtomicUsize::new(0),
            max,
            waiting: AtomicBool::new(false),
            waiters: Mutex::default(),
            idle: Notify::new(),
        })
    }

    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        if self.live.fetch_add(1, Ordering::SeqCst) < self.max {
            return Some(Permit(Arc::clone(self)));
        }
        self.live.fetch_sub(1, Ordering::SeqCst);
        None
    }

    /// As [`Gate::try_enter`]; when there is no room, `waker` is woken as soon as there is.
    pub fn enter_or_wait(self: &Arc<Self>, waker: &Waker) -> Option<Permit> {
        if let Some(permit) = self.try_enter() {
            return Some(permit);
        }
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiters.iter().any(|known| known.will_wake(waker)) {
            waiters.push(waker.clone());
        }
        self.waiting.store(true, Ordering::SeqCst);
        drop(waiters);
        // A permit given back before `waiting` was set has woken nobody.
        self.try_enter()
    }

    /// Resolves when no connection is live.
    pub async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.live() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn wake_waiters(&self) {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::SeqCst);
        for waker in waiters.drain(..) {
            waker.wake();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
        if self.0.waiting.load(Ordering::SeqCst) {
            self.0.wake_waiters();
        }
    }
}

/// Raises the soft limit of open files to the hard one and returns it (None: unlimited). A connection needs two
/// descriptors, and two more while it is spliced.
///
/// # Errors
/// What setrlimit(2) says.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// Descriptors that are neither a connection's, a pipe's nor a worker's: maps, links, logs, the control socket.
const OTHER_FILES: u64 = 112;
/// A worker's own: two listeners, its reactor, its timer, its hand on the flow table.
const WORKER_FILES: u64 = 8;

/// What the limit of open files leaves room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Over all workers.
    pub connections: usize,
    /// Per worker.
    pub pipes: usize,
}

impl Budget {
    /// Cuts `wanted` down to what `open_files` can bear (None: unlimited), so that an accepted connection always finds
    /// the second descriptor that it needs. Pipes get an eighth at most.
    #[must_use]
    pub fn within(open_files: Option<u64>, wanted: Self, workers: usize) -> Self {
        let Some(open_files) = open_files else { return wanted };
        let workers = workers.max(1) as u64;
        let pipes = (wanted.pipes as u64).min(open_files / 8 / (2 * workers));
        let left = open_files.saturating_sub(OTHER_FILES + (WORKER_FILES + 2 * pipes) * workers) / 2;
        Self { connections: (wanted.connections as u64).min(left.max(1)) as usize, pipes: pipes as usize }
    }
}

/// The soft limit of open files as it is now; None: unlimited.
#[must_use]
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_leaves_two_descriptors_for_each_connection() {
        let wanted = Budget { connections: 100_000, pipes: 256 };
        assert_eq!(Budget::within(None, wanted, 2), wanted);
        assert_eq!(Budget::within(Some(1 << 20), wanted, 2), wanted);
        for files in [0, 100, 1024, 4096, 20_000] {
            let budget = Budget::within(Some(files), wanted, 2);
            let needed =
                OTHER_FILES + 2 * WORKER_FILES + 2 * budget.connections as u64 + 4 * budget.pipes as u64;
            assert!(needed <= files || budget.connections == 1, "{files}: {budget:?}");
        }
        assert_eq!(Budget::within(Some(1024), wanted, 2), Budget { connections: 384, pipes: 32 });
    }

    #[test]
    fn the_gate_admits_up_to_its_limit_and_again_after_a_drop() {
        let gate = Gate::new(2);
        let first = gate.try_enter().unwrap();
        let _second = gate.try_enter().unwrap();
        assert!(gate.enter_or_wait(Waker::noop()).is_none());
        assert_eq!(gate.live(), 2);
        drop(first);
        assert!(gate.enter_or_wait(Waker::noop()).is_some());
    }
}
