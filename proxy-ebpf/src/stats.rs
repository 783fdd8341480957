//! Counting what became of packets.

use sheer_common::{
    policy::Service,
    verdict::{Counters, HelperFailure, Verdict},
};

use crate::maps::{counters, service_counters};

/// Counts a verdict.
#[inline(always)]
pub fn verdict(verdict: Verdict) {
    if let Some(table) = table() {
        *verdict.of_mut(table) += 1;
    }
}

/// Counts a helper's refusal.
#[inline(always)]
pub fn failure(failure: HelperFailure) {
    if let Some(table) = table() {
        *failure.of_mut(table) += 1;
    }
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

/// No closure that raises: the compiler would make a function of it, with a call in the way of every packet.
#[inline(always)]
fn table() -> Option<&'static mut Counters> {
    // SAFETY: the map is per CPU, and a program is not interrupted by another one of ours on its CPU:
    // tc and the socket lookup both run with softirqs off.
    counters.get_ptr_mut(0).map(|table| unsafe { &mut *table })
}
