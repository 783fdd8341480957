//! Waiting for a condition, the one way.

use std::time::{Duration, Instant};

/// How long anything that happens by itself may take before a test gives up. Long, because a busy machine must not
/// fail a test, and no test waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something, and gives that.
///
/// # Panics
/// When the deadline passes first; `what` says what was waited for.
pub fn wait_until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        // The only polling of the whole suite.
        std::thread::sleep(Duration::from_millis(2));
    }
}
