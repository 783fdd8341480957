//! A transparent proxy dataplane: servers see their clients' real addresses, clients see no proxy.
//!
//! ```text
//!            kernel                                     one worker per core
//! ┌─────────────────────────────┐   ┌─────────────────────────────────────────────────────┐
//! │ packet → Segment → Verdict  │ → │ Accepted → Session → Connected → Relayed → record   │
//! │    tc ingress, sk_lookup    │   │  accept     session   upstream    relay     record  │
//! └─────────────────────────────┘   └─────────────────────────────────────────────────────┘
//!      rules, tables: route              listeners and spoofed sockets: socket
//! ```
//!
//! A stage takes the type of the stage before it and knows nothing of those behind. In the order of the way:
//!
//! - [`policy`]: services as tables, read by the kernel programs and by the workers
//! - [`dataplane`]: the kernel programs, loaded, attached and pinned; their maps
//! - [`route`]: the policy route that delivers marked packets to this host
//! - [`socket`]: the addresses of a connection by their roles, transparent listeners, spoofed sources
//! - [`flow`]: the seam to the kernel's table of connections
//! - [`accept`]: a worker's listeners, and when they pause
//! - [`service`]: which service took a connection
//! - [`session`]: the one place that knows the whole chain of a connection
//! - [`upstream`]: the connection to the server
//! - [`relay`]: bytes each way until the end, and why it ended
//! - [`record`]: the access record
//!
//! Around them: [`config`] is what they all shall do, [`proxy`] starts and stops the workers, [`stats`] counts,
//! [`clients`] counts each client's connections,
//! [`doctor`] looks at the host,
//! [`explain`] says what becomes of a packet and why, [`instance`] keeps one process apart from another, [`admin`] answers on the control socket, [`run`] starts and
//! stops everything in order, [`cli`], [`commands`] and [`show`] face the user.

#![deny(unsafe_code)]

mod accept;
pub mod admin;
pub mod cleanup;
pub mod cli;
pub mod clients;
mod clock;
pub mod commands;
pub mod config;
pub mod dataplane;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod flow;
pub mod instance;
mod leftover;
pub mod limit;
pub mod policy;
pub mod proxy;
pub mod reason;
pub mod record;
pub mod relay;
pub mod route;
pub mod run;
pub mod service;
pub mod session;
pub mod show;
pub mod socket;
pub mod stats;
pub mod upstream;
mod worker;
