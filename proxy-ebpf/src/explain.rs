//! `sheer_explain`: the same decision as at tc, asked for by BPF_PROG_TEST_RUN. It changes nothing, and it writes down how
//! it came about.

use sheer_common::{
    explain::{Explanation, KnownSocket},
    flow::FlowKey,
    verdict::Verdict,
};

use crate::{
    kernel::{Socket, State},
    maps::explanation,
    policy::{self, Now, Question},
};

/// Lets `write` at the answer, where one is asked for.
#[inline(always)]
fn answer<const DRY: bool>(write: impl FnOnce(&mut Explanation)) {
    if DRY && let Some(found) = explanation.get_ptr_mut(0) {
        // SAFETY: one entry, and the proxy asks one question at a time.
        write(unsafe { &mut *found });
    }
}

/// The destination was looked up, and with it the service.
#[inline(always)]
pub fn matched<const DRY: bool>(now: &Now, question: &Question<'_>, service: Option<u32>) {
    answer::<DRY>(|e| {
        e.own = question.own.into();
        e.classes = question.classes;
        e.service = service.map_or(0, |number| number + 1);
        e.generation = policy::in_force(now).map_or(0, |p| p.generation);
    });
}

/// The tuple's socket was looked for.
#[inline(always)]
pub fn socket<const DRY: bool>(now: &Now, found: Option<&Socket>) {
    answer::<DRY>(|e| {
        e.socket = match found.map(Socket::state) {
            None => KnownSocket::None,
            Some(State::TimeWait) => KnownSocket::TimeWait,
            Some(State::Request) => KnownSocket::Request,
            Some(State::Listen) => KnownSocket::Listener,
            Some(State::Full) if found.and_then(Socket::mark) == Some(now.mark) => KnownSocket::Proxys,
            Some(State::Full) => KnownSocket::Foreign,
        };
    });
}

/// A listener takes the connection.
#[inline(always)]
pub fn listener<const DRY: bool>(now: &Now, key: &FlowKey) {
    answer::<DRY>(|e| e.worker = policy::worker(now, key) + 1);
}

/// The end of it.
#[inline(always)]
pub fn verdict(verdict: Verdict) {
    answer::<true>(|e| e.verdict = verdict as u32 + 1);
}
