//! How much one client may take of a service: checked before a SYN costs anything.

use crate::{
    abi::{Address, Family},
    assert_size,
    flow::FlowKey,
};

/// The limit of a service, as the programs need it. All zeros: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Nanoseconds that must lie between two new connections of a client in the long run; zero: any rate.
    pub interval_ns: u64,
    /// By how much a client may be ahead of that.
    pub burst_ns: u64,
    /// For how long it is shut out when it goes too fast; zero: only the connection is refused.
    pub block_ns: u64,
    /// Connections at the same time; zero: any number.
    pub concurrent: u32,
    /// Leading bits of an IPv4 address that make a client.
    pub prefix_v4: u8,
    /// Leading bits of an IPv6 address that make a client.
    pub prefix_v6: u8,
    /// Zero.
    pub _pad: u16,
}
assert_size!(Limit, 32);

impl Limit {
    /// Whether there is one.
    #[inline(always)]
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.interval_ns != 0 || self.concurrent != 0
    }

    /// Leading bits that make a client.
    #[inline(always)]
    #[must_use]
    pub const fn prefix(&self, family: Family) -> u8 {
        match family {
            Family::V4 => self.prefix_v4,
            Family::V6 => self.prefix_v6,
        }
    }

    /// One more connection now (nanoseconds of CLOCK_MONOTONIC) of a client that is allowed its next one at
    /// `allowed_at_ns`: when the one after is due, or nothing where this one comes too fast.
    ///
    /// The generic cell rate algorithm (ITU-T I.371): a token bucket that needs one number.
    #[inline(always)]
    #[must_use]
    pub const fn admit(&self, allowed_at_ns: u64, now: u64) -> Option<u64> {
        let due = if allowed_at_ns > now { allowed_at_ns } else { now };
        if due - now > self.burst_ns { None } else { Some(due + self.interval_ns) }
    }
}

/// The `service` of a key in `blocked_by_hand`.
pub const ALL_SERVICES: u32 = u32::MAX;

/// A client of a service: key of the maps `limits`, `concurrent`, `blocked` and `blocked_by_hand`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Its address; bits beyond the prefix are zero.
    pub address: Address,
    /// The service's [`crate::policy::Service::id`], or [`ALL_SERVICES`].
    pub service: u32,
    /// Family of the address.
    pub family: Family,
    /// How many leading bits of the address count.
    pub prefix: u8,
    /// Zero.
    pub _pad: u16,
}
assert_size!(ClientKey, 24);

impl ClientKey {
    /// The client of a service that an address belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, family: Family, address: &Address, prefix: u8) -> Self {
        Self { address: address.masked(prefix), service, family, prefix, _pad: 0 }
    }

    /// One that was blocked by hand: a single address, for all services.
    #[inline(always)]
    #[must_use]
    pub const fn by_hand(family: Family, address: Address) -> Self {
        let prefix = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        Self { address, service: ALL_SERVICES, family, prefix, _pad: 0 }
    }

    /// The client that opens a connection.
    #[inline(always)]
    #[must_use]
    pub const fn of(service: u32, limit: &Limit, key: &FlowKey) -> Self {
        Self::new(service, key.family, &key.src, limit.prefix(key.family))
    }
}

/// What is remembered of a client under a rate limit: value of the `limits` map. Times are nanoseconds of
/// CLOCK_MONOTONIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// See [`Limit::admit`].
    pub allowed_at_ns: u64,
    /// Connections that were let in.
    pub admitted: u64,
    /// Connections that came too fast.
    pub refused: u64,
}
assert_size!(Client, 24);

/// Value of the maps `blocked` and `blocked_by_hand`. Times as above.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// When it ends.
    pub until_ns: u64,
    /// When it began.
    pub since_ns: u64,
    /// Connections refused since.
    pub refused: u64,
}
assert_size!(Block, 24);

/// Capacity of the `limits` map; beyond it the clients that have been quiet for the longest are forgotten.
pub const MAX_CLIENTS: usize = 1 << 16;

/// Capacity of the `concurrent` map: clients that have connections of services with such a limit.
pub const MAX_CONCURRENT: usize = 1 << 18;

/// Capacity of the maps `blocked`, where the oldest blocks are forgotten beyond it, and `blocked_by_hand`, which then
/// takes no more.
pub const MAX_BLOCKED: usize = 1 << 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_in_at_once_and_then_the_rate() {
        // 10 in a second, 3 at once.
        let limit = Limit { interval_ns: 100, burst_ns: 200, ..Limit::default() };
        let mut allowed_at = 0;
        let mut admitted = [0; 3];
        for (second, count) in admitted.iter_mut().enumerate() {
            for now in (0..1000).map(|t| 1000 * (second as u64 + 1) + t) {
                if let Some(next) = limit.admit(allowed_at, now) {
                    allowed_at = next;
                    *count += 1;
                }
            }
        }
        assert_eq!(admitted, [12, 10, 10]);
    }

    #[test]
    fn addresses_of_a_prefix_are_one_client() {
        let key = |last| ClientKey::new(7, Family::V4, &Address::v4([192, 0, 2, last]), 31);
        assert_eq!(key(6), key(7));
        assert_ne!(key(7), key(8));
        let v6 = |b: u8| ClientKey::new(7, Family::V6, &Address::v6([b; 16]), 128);
        assert_eq!(v6(3).address, Address::v6([3; 16]));
        assert_eq!(ClientKey::new(7, Family::V6, &Address::v6([9; 16]), 0).address, Address::v6([0; 16]));
    }
}
