//! Everything that crosses the boundary between the kernel programs and the proxy, defined once.
//!
//! Each type here is `repr(C)`, without padding that is not named, and its size is asserted: the kernel
//! program, the proxy and `bpftool` read the same bytes. Ports and counters are in host order so that a map
//! dump shows them as people write them; addresses are the bytes of the packet.
//!
//! - [`abi`]: addresses, the settings that the programs run under
//! - [`flow`]: the key and the value of the `flows` map
//! - [`fragment`]: what becomes of the fragments of a datagram
//! - [`policy`]: services, and what is never intercepted
//! - [`classify`]: which service takes a connection, and the tables by which that is decided
//! - [`limit`]: how much one client may take
//! - [`explain`]: what the programs answer when they are asked about a packet
//! - [`ping`]: who is pinged, and whether it is answered
//! - [`verdict`]: what became of a packet, and the counter of each outcome
//! - [`way`]: by which way a client's packets come

#![cfg_attr(not(feature = "aya"), no_std)]
#![deny(missing_docs)]

pub mod abi;
pub mod classify;
pub mod explain;
pub mod flow;
pub mod fragment;
pub mod limit;
pub mod ping;
#[cfg(feature = "aya")]
mod pod;
pub mod policy;
pub mod verdict;
pub mod way;

/// Asserts at compile time that a type has this size, so that a change of layout is never an accident.
macro_rules! assert_size {
    ($t:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$t>() == $size);
    };
}
pub(crate) use assert_size;
