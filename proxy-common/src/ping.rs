//! The `pinged` map: which addresses of services are pinged, and whether their servers can be reached.
//!
//! The programs note who is pinged; the proxy tries the servers of those, and says until when the answer holds.

use crate::{
    abi::{Address, Family},
    assert_size,
};

/// Key of the `pinged` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PingKey {
    /// Who is pinged.
    pub address: Address,
    /// The service that answers: its [`crate::policy::Service::id`].
    pub service: u32,
    /// The address's family.
    pub family: Family,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_size!(PingKey, 24);

impl PingKey {
    /// The key for an address of a service.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, family: Family, address: Address) -> Self {
        Self { address, service, family, _pad: [0; 3] }
    }
}

/// Value of the `pinged` map. Times are nanoseconds of CLOCK_MONOTONIC_COARSE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinged {
    /// When the last ping came.
    pub asked_ns: u64,
    /// Until when pings are answered; zero: the server has not been reached.
    pub reachable_until_ns: u64,
}
assert_size!(Pinged, 16);

/// Capacity of the `pinged` map; the addresses that were not pinged for the longest are forgotten when it is full.
pub const MAX_PINGED: usize = 1 << 12;
