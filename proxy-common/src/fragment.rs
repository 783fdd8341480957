//! The maps `fragments` and `held`: what becomes of the fragments of a datagram.
//!
//! Only the first fragment carries ports. What is decided about it stands in `fragments` until the datagram is
//! complete, so that the others are treated alike. One that comes before the first waits in `held`.

use crate::{
    abi::{Address, Family},
    assert_size,
    verdict::Verdict,
};

/// The datagram that fragments are parts of: key of the `fragments` map (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Its identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// IPv4: the protocol's number. IPv6: zero, because fragments need not agree on it.
    pub protocol: u8,
    /// Family of both addresses.
    pub family: Family,
    /// Zero.
    pub _pad: u16,
}
assert_size!(FragmentKey, 40);

/// What becomes of a datagram's fragments.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Not known: the first fragment has not come yet, others wait for it.
    Waiting = 0,
    /// They go to the proxy.
    Steer = 1,
    /// They go their way.
    Pass = 2,
    /// They are dropped.
    Drop = 3,
}

impl Fate {
    /// What becomes of all fragments where this became of the first.
    #[inline(always)]
    #[must_use]
    pub const fn of(first: Verdict) -> Self {
        if first.steers() {
            Self::Steer
        } else if first.drops() {
            Self::Drop
        } else {
            Self::Pass
        }
    }

    /// The verdict on a fragment behind the first.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Waiting => Verdict::HoldFragment,
            Self::Steer => Verdict::SteerFragment,
            Self::Pass => Verdict::PassFragment,
            Self::Drop => Verdict::DropFragment,
        }
    }
}

/// Value of the `fragments` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragments {
    /// Until when it holds: nanoseconds of CLOCK_MONOTONIC_COARSE.
    pub until_ns: u64,
    /// What becomes of them.
    pub fate: Fate,
    /// Bytes of payload that have come. When they are as many as there are, the entry goes.
    pub seen: u32,
    /// How many there are; zero until the last fragment has told.
    pub total: u32,
    /// Zero.
    pub _pad: u32,
}
assert_size!(Fragments, 24);

/// For how long a datagram is remembered from its first fragment on, or from the one that had to wait for it. Short,
/// because a fast sender uses its 65,536 identifications again within seconds (RFC 4963).
pub const FRAGMENTS_NS: u64 = 2_000_000_000;

/// Capacity of the `fragments` map: datagrams of which a fragment has come and another has not.
pub const MAX_FRAGMENTS: usize = 1 << 12;

/// Key of the `held` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldKey {
    /// The datagram.
    pub datagram: FragmentKey,
    /// One of [`MAX_HELD_EACH`] places that it has.
    pub place: u32,
}
assert_size!(HeldKey, 44);

/// A fragment that came before the first: value of the `held` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Until when it is of use, as in [`Fragments`].
    pub until_ns: u64,
    /// How many bytes it has.
    pub len: u32,
    /// Zero.
    pub _pad: u32,
    /// The packet, from its IP header on.
    pub bytes: [u8; MAX_HELD_LEN],
}
assert_size!(Held, 16 + MAX_HELD_LEN);

/// Packets shorter than this can be held: those of Ethernet without jumbo frames. A power of two.
pub const MAX_HELD_LEN: usize = 2048;

/// Most fragments of one datagram that wait for the first.
pub const MAX_HELD_EACH: u32 = 16;

/// Capacity of the `held` map, two megabytes.
pub const MAX_HELD: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_fragments_fare_as_the_first() {
        for first in Verdict::ALL {
            let later = Fate::of(*first).verdict();
            assert_eq!((first.steers(), first.drops()), (later.steers(), later.drops()), "{}", first.name());
        }
    }
}
