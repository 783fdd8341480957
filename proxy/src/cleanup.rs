//! `sheer cleanup`: what a dead instance left, removed by hand.

use crate::{
    dataplane::{Pins, clsact, view},
    instance::{InstanceName, Places},
    route,
    run::RunError,
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
    let written = places.read_state();
    let pinned = view::settings(&pins).ok();
    if written.is_none() && !pins.exist() {
        log::info!("instance `{name}` has left nothing");
    }
    // The programs first, so that nothing is marked any more when its route goes.
    pins.remove()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "starting the runtime", source })?;
    runtime.block_on(async {
        for filter in written.iter().flat_map(|s| &s.clsact) {
            clsact::remove(filter).await?;
        }
        let numbers =
            pinned.map(|s| (s.table, s.mark)).or_else(|| written.as_ref().map(|s| (s.table, s.mark)));
        if let Some((table, mark)) = numbers.filter(|(_, mark)| *mark != 0) {
            route::purge(table, mark).await?;
        }
        Ok::<_, RunError>(())
    })?;
    places.remove();
    Ok(())
}
