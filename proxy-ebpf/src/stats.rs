//! Counting what became of packets.

use sheer_common::{
    policy::Service,
    verdict::{Counters, HelperFailure, Verdict},
};

use crate::maps::{counters, service_counters};

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

/// Counts a new connection, or a datagram, of a service.
#[inline(always)]
pub fn hit(service: &Service, refused: bool) {
    if let Some(count) = service_counters.get_ptr_mut(service.id) {
        // SAFETY: as below.
        unsafe {
            (*count).hits += 1;
            (*count).refused += u64::from(refused);
        }
    }
}

#[inline(always)]
fn raise(counter: impl FnOnce(&mut Counters) -> &mut u64) {
    if let Some(table) = counters.get_ptr_mut(0) {
        // SAFETY: the map is per CPU, and a program is not interrupted by another one of ours on its CPU:
        // tc ingress and the socket lookup both run with softirqs off.
        *counter(unsafe { &mut *table }) += 1;
    }
}
