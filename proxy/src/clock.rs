//! One coarse clock per worker for the timeouts of all its connections.
//!
//! A connection costs one slot here and no timer of its own; while bytes flow, all it does is to note the
//! current tick. The tick comes from a timerfd in the reactor, so that the runtime needs no time driver, which
//! would look at its timers each time the worker goes to sleep.

use std::io;
use std::task::Waker;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;

use crate::socket::sys::{self, Registered};

/// Timeouts are late by up to this much.
pub const TICK: Duration = Duration::from_millis(200);

/// Places whose memory is kept when no connection is left; a burst's is given back.
const KEPT: usize = 256;

/// What a connection is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signal {
    #[default]
    None,
    /// It has lived through a tick. Told once.
    Lasting,
    /// The services have changed: it is to ask whether it may go on. Told once.
    Review,
    /// Its timeout has passed without a touch.
    Expired,
    /// The proxy is being stopped by force.
    Forced,
}

/// A connection's place among the deadlines of its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// A span in ticks, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks(u32);

impl From<Duration> for Ticks {
    fn from(span: Duration) -> Self {
        // One more: the current tick is already under way.
        let ticks = span.as_nanos().div_ceil(TICK.as_nanos()).saturating_add(1);
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

#[derive(Debug)]
struct Entry {
    waker: Waker,
    touched: u32,
    limit: Ticks,
    signal: Signal,
    lasting: bool,
}

#[derive(Debug, Default)]
pub struct Deadlines {
    now: u32,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
}

impl Deadlines {
    /// Reserves a place; the connection tells its waker with [`Deadlines::set_waker`].
    pub fn open(&mut self, limit: Ticks) -> Slot {
        let waker = Waker::noop().clone();
        let entry = Some(Entry { waker, touched: self.now, limit, signal: Signal::None, lasting: false });
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            return Slot(index);
        }
        self.entries.push(entry);
        Slot(self.entries.len() as u32 - 1)
    }

    pub fn set_waker(&mut self, slot: Slot, waker: &Waker) {
        if let Some(entry) = self.entry(slot) {
            entry.waker.clone_from(waker);
        }
    }

    /// Starts the time anew, with the given limit.
    pub fn touch(&mut self, slot: Slot, limit: Ticks) {
        let now = self.now;
        if let Some(entry) = self.entry(slot) {
            (entry.touched, entry.limit) = (now, limit);
        }
    }

    /// What the connection is told; [`Signal::Lasting`] and [`Signal::Review`] only this once.
    #[must_use]
    pub fn take_signal(&mut self, slot: Slot) -> Signal {
        let Some(entry) = self.entry(slot) else { return Signal::None };
        let signal = entry.signal;
        if matches!(signal, Signal::Lasting | Signal::Review) {
            entry.signal = Signal::None;
        }
        signal
    }

    pub fn close(&mut self, slot: Slot) {
        if self.entries[slot.0 as usize].take().is_some() {
            self.free.push(slot.0);
        }
        if self.free.len() == self.entries.len() && self.entries.len() > KEPT {
            self.entries = Vec::new();
            self.free = Vec::new();
        }
    }

    /// One tick later: wakes those whose limit has passed, and those that have seen no tick before.
    pub fn tick(&mut self) {
        self.now = self.now.wrapping_add(1);
        let now = self.now;
        for entry in self.entries.iter_mut().flatten() {
            if !matches!(entry.signal, Signal::None | Signal::Lasting) {
                continue;
            }
            if now.wrapping_sub(entry.touched) >= entry.limit.0 {
                entry.signal = Signal::Expired;
            } else if !entry.lasting {
                (entry.lasting, entry.signal) = (true, Signal::Lasting);
            } else {
                continue;
            }
            entry.waker.wake_by_ref();
        }
    }

    /// Asks all connections whether they may go on.
    pub fn review(&mut self) {
        for entry in self.entries.iter_mut().flatten() {
            if matches!(entry.signal, Signal::None | Signal::Lasting) {
                // One that has seen no tick before is told of it at the next one.
                entry.lasting &= entry.signal != Signal::Lasting;
                entry.signal = Signal::Review;
                entry.waker.wake_by_ref();
            }
        }
    }

    /// Tells all connections to end.
    pub fn force(&mut self) {
        for entry in self.entries.iter_mut().flatten() {
            entry.signal = Signal::Forced;
            entry.waker.wake_by_ref();
        }
    }

    fn entry(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.0 as usize).and_then(Option::as_mut)
    }
}

/// Ticks out of a timerfd.
#[derive(Debug)]
pub struct Ticker(Registered);

impl Ticker {
    /// Must be called on a thread of a runtime.
    pub fn start() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let period = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&fd, TimerfdTimerFlags::empty(), &spec)?;
        sys::register(fd, Interest::READABLE).map(Self).map_err(|(_, error)| error)
    }

    /// The next tick; several that were missed count as one.
    pub async fn tick(&self) -> io::Result<()> {
        let mut expirations = [0; 8];
        loop {
            let mut guard = self.0.readable().await?;
            // Never AGAIN twice: the timer rearms itself, and each expiration is an edge of its own.
            guard.clear_ready();
            match rustix::io::read(self.0.get_ref(), &mut expirations) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_slots_expire_and_touched_ones_do_not() {
        let mut deadlines = Deadlines::default();
        let limit = Ticks(3);
        let (still, busy) = (deadlines.open(limit), deadlines.open(limit));
        for _ in 0..3 {
            deadlines.touch(busy, limit);
            deadlines.tick();
        }
        assert_eq!(deadlines.take_signal(still), Signal::Expired);
        assert_eq!(deadlines.take_signal(busy), Signal::Lasting);
        assert_eq!(deadlines.take_signal(busy), Signal::None, "told once");
        deadlines.touch(busy, limit);
        deadlines.tick();
        assert_eq!(deadlines.take_signal(busy), Signal::None);
        deadlines.force();
        assert_eq!(deadlines.take_signal(busy), Signal::Forced);
    }

    #[test]
    fn slots_are_used_again() {
        let mut deadlines = Deadlines::default();
        let first = deadlines.open(Ticks(1));
        let second = deadlines.open(Ticks(1));
        deadlines.close(first);
        assert_eq!(deadlines.open(Ticks(1)), first);
        deadlines.close(first);
        deadlines.close(second);
        let burst: Vec<_> = (0..=KEPT).map(|_| deadlines.open(Ticks(1))).collect();
        burst.into_iter().for_each(|slot| deadlines.close(slot));
        assert_eq!(deadlines.entries.capacity(), 0);
    }

    #[test]
    fn a_limit_is_never_early() {
        assert_eq!(Ticks::from(TICK), Ticks(2));
        assert_eq!(Ticks::from(TICK + Duration::from_nanos(1)), Ticks(3));
        assert_eq!(Ticks::from(Duration::MAX), Ticks(u32::MAX));
    }
}
