//! `sheer cleanup`: what a dead instance left, removed by hand.

use crate::{
    dataplane::{Pins, clsact},
    instance::{InstanceName, Places},
    route,
    run::{self, RunError, predecessor},
};

/// Removes every trace of an instance that does not run.
///
/// To be called in the network namespace in which the instance ran: rules and filters are the namespace's.
///
/// # Errors
/// When it runs, or something cannot be removed.
pub fn cleanup(name: &InstanceName) -> Result<(), RunError> {
    let places = Places::of(name);
    let _lock = places.lock()?;
    let pins = Pins::of(name);
    let left = predecessor::find(&pins, &places);
    if left.is_none() && !pins.exist() {
        log::info!("instance `{name}` has left nothing");
    }
    // The programs first, so that nothing is marked any more when its route goes.
    pins.remove()?;
    if let Some(left) = left {
        run::runtime()?.block_on(async {
            for filter in &left.clsact {
                clsact::remove(filter).await?;
            }
            route::purge(left.table, left.mark).await
        })?;
    }
    places.remove();
    Ok(())
}
