//! Sources that have no port left.

use std::collections::HashSet;
use std::net::IpAddr;

use super::addr::UpstreamAddr;

/// Pairs of a source (unspecified: this host's own address) and an upstream between which every port is in use.
///
/// connect(2) looks at each port before it says so: three milliseconds for the usual 28,232, in which a worker does
/// nothing else. What is noted here is refused at once, until it is forgotten on the worker's next tick.
#[derive(Debug, Default)]
pub struct UsedUp(HashSet<(IpAddr, UpstreamAddr)>);

impl UsedUp {
    pub fn note(&mut self, from: IpAddr, upstream: UpstreamAddr) {
        self.0.insert((from, upstream));
    }

    #[must_use]
    pub fn contains(&self, from: IpAddr, upstream: UpstreamAddr) -> bool {
        !self.0.is_empty() && self.0.contains(&(from, upstream))
    }

    /// Ports may have become free.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}
