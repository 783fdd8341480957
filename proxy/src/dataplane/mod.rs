//! The kernel programs and their maps, from the userspace side.
//!
//! - [`probe`]: what this kernel has of what the programs use
//! - [`object`]: the compiled programs, and loading them into fresh maps
//! - [`attach`]: the programs at their hooks: TCX links or clsact filters, the socket lookup
//! - [`clsact`]: the older of the two hooks at tc
//! - [`pins`]: what stands in bpffs, staged aside and published in one rename
//! - [`tables`]: the maps of a policy, and its coming into force
//! - [`clients`]: clients that are limited or blocked
//! - [`explain`]: asking the programs what they would do
//! - [`flows`]: the connections' entries in the `flows` map
//! - [`fragments`]: sweeping out what fragments have left
//! - [`view`]: reading the pinned maps from another process
//!
//! # Lives and deaths
//! Every start makes new programs and maps. What a dead proxy left in bpffs keeps its links: they are given
//! the new program in one atomic exchange each, when all else has succeeded, so that no packet goes without a
//! program, and a failed start changes nothing. The old maps go with the old pins. A map is never taken over, so
//! it cannot be of another layout.
//!
//! Packets follow the programs from the moment of attaching: by then the listeners stand in their map, the
//! settings are written and the route rules are in place. Leaving goes the other way round.

pub mod attach;
pub mod clients;
pub mod clsact;
mod error;
pub mod explain;
pub mod flows;
mod fragments;
pub mod object;
pub mod pinged;
pub mod pins;
pub mod probe;
pub mod tables;
pub mod view;

pub use self::{
    attach::{AttachPlan, Attachments, Direction, Hook},
    error::DataplaneError,
    object::Dataplane,
    pins::Pins,
    probe::{Anchor, Capabilities},
    tables::PolicyMaps,
};
