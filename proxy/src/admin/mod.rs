//! The control socket: what a running instance tells, and the few things that it can be told.
//!
//! A request is one line of JSON, the answer is one line of JSON, then the connection ends.

mod client;
mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    client::{AskError, ask},
    server::{Handler, bind, serve},
};
use crate::stats::StatsSnapshot;

/// What an instance can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What it does: answered by [`Status`].
    Status,
    /// To finish its connections and leave: answered by the number of those that stand.
    Drain,
}

/// What a running instance does.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_s: u64,
    /// `running` or `draining`.
    pub state: &'static str,
    /// Where it looks at packets.
    pub interfaces: Vec<InterfaceStatus>,
    /// The policy route.
    pub route: RouteStatus,
    /// What it takes.
    pub services: Vec<ServiceStatus>,
    /// Most connections at the same time.
    pub max_connections: usize,
    /// What the proxy counted.
    pub connections: StatsSnapshot,
    /// What the kernel programs decided, by the name of the verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// What kernel helpers refused.
    pub failures: BTreeMap<&'static str, u64>,
}

/// An interface of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `tcx` or `clsact`.
    pub attached: &'static str,
}

/// The policy route of an instance.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RouteStatus {
    /// Mark of packets and sockets.
    pub mark: u32,
    /// Routing table.
    pub table: u32,
    /// Preference of the rules.
    pub priority: u32,
}

/// A service of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// TCP ports.
    pub tcp: String,
    /// The address that servers see.
    pub source: String,
    /// What happens while the proxy is down.
    pub when_down: crate::config::WhenDown,
}
