//! The lab: network namespaces with real peers, and the built `sheer` between them.
//!
//! A scenario reads like a story:
//!
//! ```no_run
//! use sheer_tests::{Family, Lab, Server, Sheer};
//!
//! let lab = Lab::new();
//! let server = Server::hello(lab.server(), Family::V4, 80);
//! let sheer = Sheer::on(&lab).tcp("80").start();
//! let answer = lab.client().ask(server.address());
//! assert_eq!(server.peer_of_last(), lab.client().v4());
//! sheer.stop();
//! # let _ = answer;
//! ```
//!
//! The namespaces have no names and are held open by this process alone, and everything started in them dies with
//! this process: whatever happens to a test run, nothing of it stays in the kernel but what `sheer` itself
//! pinned.
//!
//! The library panics where a test has to fail; it is not for use in the product.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

mod capture;
mod config;
mod connect;
mod doctor;
mod feature;
mod fragments;
mod frame;
mod lab;
mod leaks;
mod link;
mod namespace;
mod pattern;
mod peers;
mod process;
mod programs;
mod sheer;
mod wait;

pub use capture::{Capture, Packet};
pub use connect::{Dial, connect, ping, read, reset};
pub use doctor::{Examined, doctor};
pub use feature::{Feature, missing, skip};
pub use fragments::{Arrival, Cutter, Sender, cut, fill_checksum, fragment};
pub use frame::{Frame, Tag};
pub use lab::{Family, Host, Lab, LabBuilder};
pub use leaks::Footprint;
pub use link::{TunPair, wire};
pub use namespace::Namespace;
pub use pattern::{Pattern, PatternError};
pub use peers::{Connection, Ended, Server};
pub use process::Process;
pub use programs::{InFront, MARK, bring_into_force, load_programs};
pub use sheer::{Sheer, SheerBuilder, binary, reasons};
pub use wait::{PATIENCE, stretched, wait_until};
