//! What an earlier process of this instance left: taken over where it fits, removed where it does not.

use crate::{
    config::Config,
    dataplane::{Pins, clsact, view},
    instance::{Places, State},
    route::{self, Numbers},
};

use super::{RunError, report};

/// What an earlier process of this instance left, dead without having tidied up.
pub(crate) fn find(pins: &Pins, places: &Places) -> Option<State> {
    let written = places.read_state();
    // The pinned settings are what the programs really run under.
    let pinned = view::settings(pins).ok().filter(|s| s.mark != 0).map(|s| State {
        mark: s.mark,
        table: s.table,
        priority: s.priority,
        clsact: written.as_ref().map(|w| w.clsact.clone()).unwrap_or_default(),
    });
    pinned.or(written)
}

/// The numbers of the policy route: those of the predecessor, so that its route can stay, or free ones.
pub(super) async fn choose(config: &Config, before: Option<&State>) -> Result<Numbers, RunError> {
    let mut numbers = match before {
        Some(s) => Numbers { mark: s.mark, table: s.table, priority: s.priority },
        None => route::choose_numbers(&route::claims().await?)?,
    };
    numbers.mark = config.mark.unwrap_or(numbers.mark);
    numbers.table = config.table.unwrap_or(numbers.table);
    Ok(numbers)
}

/// Removes of a predecessor what this start did not take over.
pub(super) async fn clear(before: &State, now: &State) {
    log::info!("took over what an earlier process of this instance had left");
    if (before.mark, before.table) != (now.mark, now.table) {
        report(route::purge(before.table, before.mark).await);
    }
    for filter in &before.clsact {
        let taken_over =
            now.clsact.iter().any(|f| (&f.interface, f.handle) == (&filter.interface, filter.handle));
        if !taken_over {
            report(clsact::remove(filter).await);
        }
    }
}
