//! What the programs answer when they are asked about a packet: the `explanation` map.

use crate::{assert_size, classify::Classes};

/// What socket of this host a packet's tuple has.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownSocket {
    /// It was not looked for.
    NotAsked = 0,
    /// None.
    None = 1,
    /// One in TIME_WAIT.
    TimeWait = 2,
    /// A handshake under way.
    Request = 3,
    /// A listener that is bound to every address.
    Listener = 4,
    /// One of the proxy's.
    Proxys = 5,
    /// One of another process.
    Foreign = 6,
}

/// The one entry of the `explanation` map. All zeros: the program has not answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Place of the verdict in [`crate::verdict::Verdict::ALL`], plus one.
    pub verdict: u32,
    /// Number of the service in the order of the config, plus one; zero: none, or not asked.
    pub service: u32,
    /// Not zero: the destination is one of this host's own addresses.
    pub own: u32,
    /// What its tuple has.
    pub socket: KnownSocket,
    /// The classes of the packet.
    pub classes: Classes,
    /// Generation of the policy that answered.
    pub generation: u32,
    /// Number of the worker whose listener takes it, plus one; zero: nobody is there, or not asked.
    pub worker: u32,
}
assert_size!(Explanation, 40);
