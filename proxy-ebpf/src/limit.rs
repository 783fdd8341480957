//! How much one client may take: asked before a new connection costs anything.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns};
use sheer_common::{
    flow::FlowKey,
    limit::{Block, Client, ClientKey},
    policy::Service,
    verdict::{HelperFailure, Verdict},
};

use crate::{
    maps::{blocked, blocked_by_hand as by_hand, concurrent, limits},
    policy::Now,
    stats,
};

/// Nanoseconds of CLOCK_MONOTONIC. The coarse clock's steps of some milliseconds would be longer than the time between
/// two connections may be.
#[inline(always)]
fn time() -> u64 {
    // SAFETY: no more than the time is asked.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether somebody has shut this client out of all services. With `DRY` nothing is written: it is only asked.
#[inline(always)]
pub fn blocked_by_hand<const DRY: bool>(now: &Now, key: &FlowKey) -> bool {
    now.blocking != 0 && stands::<DRY>(by_hand.get_ptr_mut(&ClientKey::by_hand(key.family, key.src)), time())
}

/// Why the service refuses a new connection of this client.
#[inline(always)]
pub fn refusal<const DRY: bool>(service: &Service, key: &FlowKey) -> Option<Verdict> {
    if service.limit.is_set() { refused::<DRY>(service, key) } else { None }
}

#[inline(never)]
fn refused<const DRY: bool>(service: &Service, key: &FlowKey) -> Option<Verdict> {
    let limit = &service.limit;
    let client = ClientKey::of(service.id, limit, key);
    let time = time();
    if limit.block_ns != 0 && stands::<DRY>(blocked.get_ptr_mut(&client), time) {
        return Some(Verdict::DropBlocked);
    }
    // SAFETY: the value is one number, read once.
    let held = unsafe { concurrent.get(&client) }.map_or(0, |count| *count);
    if limit.concurrent != 0 && held >= limit.concurrent {
        return Some(Verdict::DropConcurrent);
    }
    if limit.interval_ns != 0 && !admit::<DRY>(service, &client, time) {
        return Some(Verdict::DropRate);
    }
    None
}

#[inline(always)]
fn stands<const DRY: bool>(block: Option<*mut Block>, time: u64) -> bool {
    let Some(block) = block else { return false };
    // SAFETY: the entry's memory stays a block while the program runs (RCU); a count may be lost between two CPUs, or
    // go to an entry that has just been given to another client.
    unsafe {
        let stands = (*block).until_ns > time;
        if stands && !DRY {
            (*block).refused += 1;
        }
        stands
    }
}

/// One more connection of a client. Two CPUs that meet here may let one too many in.
#[inline(always)]
fn admit<const DRY: bool>(service: &Service, client: &ClientKey, time: u64) -> bool {
    let limit = &service.limit;
    let Some(known) = limits.get_ptr_mut(client) else {
        let first = Client { allowed_at_ns: time + limit.interval_ns, admitted: 1, refused: 0 };
        if !DRY && limits.insert(client, &first, BPF_NOEXIST.into()).is_err() {
            stats::failure(HelperFailure::LimitInsert);
        }
        return true;
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    let next = limit.admit(known.allowed_at_ns, time);
    if DRY {
        return next.is_some();
    }
    if let Some(next) = next {
        known.allowed_at_ns = next;
        known.admitted += 1;
        return true;
    }
    known.refused += 1;
    if limit.block_ns != 0 {
        let block = Block { until_ns: time + limit.block_ns, since_ns: time, refused: 1 };
        if blocked.insert(client, &block, 0).is_err() {
            stats::failure(HelperFailure::LimitInsert);
        }
    }
    false
}
