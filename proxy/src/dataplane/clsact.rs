//! Filters under a clsact qdisc: how tc programs were attached before TCX.
//!
//! A filter has no pin. It lasts until it is removed, so that it survives its process like a pinned link, and
//! the state file remembers it for those who come after.

use aya::programs::{
    ProgramError, SchedClassifier,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};

use super::{AttachPlan, DataplaneError, Direction, Hook, attach::refused};
use crate::{
    instance::ClsactState,
    route::{self, RouteError},
};

/// Ours go early, like the TCX links go first; the number leaves room in front for who needs it.
const PRIORITY: u16 = 64;

/// A filter of ours, removed when dropped.
pub(super) struct Filter {
    state: ClsactState,
    link: SchedClassifierLink,
}

impl Filter {
    /// Attaches the program; a filter that a dead process left is given it in place, and what that process
    /// made goes with us. `made` hears of it as soon as there is something to remove.
    pub(super) fn attach(
        program: &mut SchedClassifier,
        hook: &Hook<'_>,
        plan: &AttachPlan<'_>,
        made: &mut Vec<ClsactState>,
    ) -> Result<Self, DataplaneError> {
        // Fails where the qdisc is already there; attaching shows whether it is the right one.
        let link = hook.link;
        let added_qdisc = qdisc_add_clsact(&link.name).is_ok();
        let mut known = plan.filters_before.iter().chain(plan.filters_of_others).chain(&*made);
        let made_before = known.any(|filter| filter.made_qdisc && filter.interface == link.name);
        let handle = plan.filter_handle;
        let state = ClsactState {
            interface: link.name.clone(),
            egress: hook.direction == Direction::Out,
            handle,
            made_qdisc: added_qdisc || made_before,
        };
        made.push(state.clone());
        let replaced = (!added_qdisc).then(|| left_behind(&state)).flatten();
        let id = match replaced.and_then(|old| program.attach_to_link(old).ok()) {
            Some(id) => id,
            None => {
                let handle = TcHandle::from(handle);
                let options = NlOptions { priority: PRIORITY, handle, classid: None };
                program
                    .attach_with_options(&link.name, hook.direction.into(), TcAttachOptions::Netlink(options))
                    .map_err(|e| refused(link, &e))?
            }
        };
        let link = program.take_link(id).map_err(|e: ProgramError| refused(link, &e))?;
        Ok(Self { state, link })
    }

    /// Lets the filter stand when the value goes.
    pub(super) fn leave(self) {
        std::mem::forget(self.link);
    }

    pub(super) fn state(&self) -> &ClsactState {
        &self.state
    }
}

/// The filter that a process before us may have left.
fn left_behind(state: &ClsactState) -> Option<SchedClassifierLink> {
    let direction = if state.egress { Direction::Out } else { Direction::In };
    let handle = TcHandle::from(state.handle);
    SchedClassifierLink::attached(&state.interface, direction.into(), PRIORITY, handle, None).ok()
}

/// Removes a filter of ours and, where it was made for us and nobody else uses it, its qdisc.
///
/// # Errors
/// When the qdisc cannot be looked at or removed.
pub async fn remove(state: &ClsactState) -> Result<(), RouteError> {
    // Dropping the link removes the filter; that it is gone already is no error.
    drop(left_behind(state));
    if state.made_qdisc { route::remove_unused_clsact(&state.interface).await } else { Ok(()) }
}
