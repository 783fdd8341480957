//! The programs that look at what leaves this host: attached at the start, or by the reload that first needs them.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use super::{report, rules::ReloadError, start::listed_links};
use crate::{
    config::Config,
    dataplane::{AttachPlan, Attachments, Dataplane, Direction, Hook, Pins},
    instance::Places,
    route::RouteGuard,
};

/// What is needed to attach more. Attachments and route are the instance's, which ends with them.
pub(super) struct Output {
    attachments: Weak<RefCell<Attachments>>,
    route: Weak<RouteGuard>,
    places: Places,
    pins: Pins,
}

impl Output {
    pub(super) fn new(
        attachments: &Rc<RefCell<Attachments>>,
        route: &Rc<RouteGuard>,
        places: Places,
        pins: Pins,
    ) -> Self {
        Self { attachments: Rc::downgrade(attachments), route: Rc::downgrade(route), places, pins }
    }

    /// Attaches what a config needs and is not there yet. It stays when a later config does not need it.
    pub(super) async fn prepare(
        &self,
        config: &Config,
        dataplane: &RefCell<Dataplane>,
    ) -> Result<(), ReloadError> {
        let (Some(attachments), Some(route)) = (self.attachments.upgrade(), self.route.upgrade()) else {
            return Ok(());
        };
        if !config.concerns_output() || attachments.borrow().concern_output() {
            return Ok(());
        }
        let links = listed_links(config).await?;
        route.concern_output().await?;
        let mut state = self.places.read_state().unwrap_or_default();
        let before = state.clsact.clone();
        let others: Vec<_> =
            self.places.states_of_others().into_iter().flat_map(|other| other.clsact).collect();
        let plan = AttachPlan {
            hooks: links.iter().map(|link| Hook { link, direction: Direction::Out }).collect(),
            anchor: attachments.borrow().anchor(),
            filter_handle: route.plan().table,
            filters_before: &before,
            filters_of_others: &others,
        };
        let (mut attachments, mut dataplane) = (attachments.borrow_mut(), dataplane.borrow_mut());
        let added = attachments.add(&mut dataplane, &plan, &self.pins, &mut state.clsact);
        report(self.places.write_state(&state));
        Ok(added?)
    }
}
