//! Counting what became of packets.

use sheer_common::verdict::{Counters, HelperFailure, Verdict};

use crate::maps::counters;

/// Counts a verdict.
#[inline(always)]
pub fn verdict(verdict: Verdict) {
    raise(|c| verdict.of_mut(c));
}

/// Counts a helper's refusal.
#[inline(always)]
pub fn failure(failure: HelperFailure) {
    raise(|c| failure.of_mut(c));
}

#[inline(always)]
fn raise(counter: impl FnOnce(&mut Counters) -> &mut u64) {
    if let Some(table) = counters.get_ptr_mut(0) {
        // SAFETY: the map is per CPU, and a program is not interrupted by another one of ours on its CPU:
        // tc ingress and the socket lookup both run with softirqs off.
        *counter(unsafe { &mut *table }) += 1;
    }
}
