//! Leave for aya to copy the shared types in and out of maps.

use aya::Pod;

use crate::{
    abi::{LocalAddress, Settings},
    classify::{Class, Row},
    explain::Explanation,
    flow::{Flow, FlowKey, Opening},
    fragment::{FragmentKey, Fragments, Held, HeldKey},
    limit::{Block, Client, ClientKey},
    ping::{PingKey, Pinged},
    policy::{Interface, Policy, Service, ServiceCounters},
    verdict::Counters,
    way::{Device, Way},
};

macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        // SAFETY: `repr(C)`, `Copy` and without unnamed padding, which the size assertions beside each type
        // keep true. Its enums are only ever written by a build of the same layout: the loader makes the maps
        // anew, and readers of pinned ones compare `LAYOUT` first.
        unsafe impl Pod for $t {}
    )+};
}

pod!(
    Block,
    Class,
    Client,
    ClientKey,
    Counters,
    Device,
    Explanation,
    Flow,
    FlowKey,
    FragmentKey,
    Fragments,
    Held,
    HeldKey,
    Interface,
    LocalAddress,
    Opening,
    PingKey,
    Pinged,
    Policy,
    Row,
    Service,
    ServiceCounters,
    Settings,
    Way,
);
