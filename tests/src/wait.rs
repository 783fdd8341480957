//! Waiting for a condition, the one way.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long anything that happens by itself may take before a test gives up. Long, because a busy machine must not
/// fail a test, and no test waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How many times longer everything may take here: `SHEER_TEST_PATIENCE`, a number. An emulated machine needs some.
static FACTOR: LazyLock<u32> = LazyLock::new(|| match std::env::var("SHEER_TEST_PATIENCE") {
    Ok(text) => text.parse().unwrap_or_else(|e| panic!("SHEER_TEST_PATIENCE is {text:?}: {e}")),
    Err(_) => 1,
});

/// A time limit as it is on this machine. [`wait_until`] and the timeouts of peers are so already: it is for limits that
/// a scenario sets by itself.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit * *FACTOR
}

/// Waits until `condition` gives something, and gives that; `deadline` is [`stretched`].
///
/// # Panics
/// When the deadline passes first; `what` says what was waited for.
pub fn wait_until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let (start, deadline) = (Instant::now(), stretched(deadline));
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        // The only polling of the whole suite.
        std::thread::sleep(Duration::from_millis(2));
    }
}
