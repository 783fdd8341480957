//! How much one client may take: asked before a new connection costs anything.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns};
use sheer_common::{
    abi::Settings,
    flow::FlowKey,
    limit::{Block, Client, ClientKey},
    policy::Service,
    verdict::{HelperFailure, Verdict},
};

use crate::{
    maps::{blocked, concurrent, limits},
    stats,
};

/// Why a new connection is refused. With `DRY` nothing is written: it is only asked.
#[inline(always)]
pub fn refusal<const DRY: bool>(now: &Settings, service: &Service, key: &FlowKey) -> Option<Verdict> {
    if now.blocking == 0 && !service.limit.is_set() {
        return None;
    }
    refused::<DRY>(now, service, key)
}

#[inline(never)]
fn refused<const DRY: bool>(now: &Settings, service: &Service, key: &FlowKey) -> Option<Verdict> {
    // SAFETY: no more than the time is asked.
    let time = unsafe { bpf_ktime_get_coarse_ns() };
    if now.blocking != 0 && is_blocked::<DRY>(&ClientKey::by_hand(key.family, key.src), time) {
        return Some(Verdict::DropBlocked);
    }
    let limit = &service.limit;
    if !limit.is_set() {
        return None;
    }
    let client = ClientKey::of(service.id, limit, key);
    if limit.block_ns != 0 && is_blocked::<DRY>(&client, time) {
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
fn is_blocked<const DRY: bool>(client: &ClientKey, time: u64) -> bool {
    let Some(block) = blocked.get_ptr_mut(client) else { return false };
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
