//! What a kernel may lack. A scenario without it is skipped, counted and named, never in silence.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::namespace::Namespace;

/// Something a scenario needs from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// VLAN devices (8021q).
    Vlan,
    /// Ethernet bridges.
    Bridge,
    /// Tun devices, also as ipip or the like.
    Tun,
}

impl Feature {
    fn probe(self) -> &'static str {
        match self {
            Self::Vlan => "ip link add link lo name probe type vlan id 7",
            Self::Bridge => "ip link add probe type bridge",
            Self::Tun => "ip tuntap add probe mode tun",
        }
    }
}

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether the kernel lacks this; if so, the skip is printed past the harness's capture, counted, and added to the file
/// named by `SHEER_SKIP_LOG`.
#[must_use]
pub fn missing(feature: Feature, scenario: &str) -> bool {
    let probe = Namespace::new("probe");
    let mut words = feature.probe().split(' ');
    let output = probe.command(words.next().unwrap()).args(words).output().unwrap();
    if output.status.success() {
        return false;
    }
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    let line = format!("SKIPPED ({count}): {scenario}: this kernel lacks {feature:?}: {reason}\n");
    // eprint! would be captured by the test harness.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("SHEER_SKIP_LOG") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    true
}
