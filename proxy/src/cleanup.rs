//! `sheer cleanup`: an instance, or what a dead one left, removed by hand.

use std::{thread::sleep, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    dataplane::{Pins, clsact},
    instance::{InstanceError, InstanceLock, InstanceName, Places},
    route,
    run::{self, RunError, predecessor},
};

/// How often a process is told to leave: the first time it waits for its connections, the second time it resets them.
const ASK_EVERY: Duration = Duration::from_millis(500);
const ASK_TIMES: u32 = 30;

/// Removes every trace of an instance, running or dead. Connections of a running one are reset.
///
/// To be called in the network namespace in which the instance ran: rules and filters are the namespace's.
///
/// # Errors
/// When it does not stop, or something cannot be removed.
pub fn cleanup(name: &InstanceName) -> Result<(), RunError> {
    let places = Places::of(name);
    let _lock = take_over(&places)?;
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

/// The instance's lock; a process that has it is made to leave.
fn take_over(places: &Places) -> Result<InstanceLock, InstanceError> {
    for _ in 0..ASK_TIMES {
        match places.lock() {
            Err(InstanceError::Running { pid: Some(pid), .. }) => {
                // It may have left in this moment; the next look at the lock tells.
                let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let _ = process.map(|process| kill_process(process, Signal::TERM));
                sleep(ASK_EVERY);
            }
            taken => return taken,
        }
    }
    places.lock()
}
