//! The control socket: what a running instance tells, and the few things that it can be told.
//!
//! A request is one line of JSON, the answer is one line of JSON, then the connection ends.

mod client;
mod server;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    client::{AskError, ask},
    server::{Handler, bind, serve},
};
use crate::{
    config,
    dataplane::clients::Blocked,
    explain::Question,
    stats::{ServiceSnapshot, StatsSnapshot},
};

/// What an instance can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What it does: answered by [`Status`].
    Status,
    /// What its services do: answered by a list of [`ServiceUse`].
    Services,
    /// To finish its connections and leave: answered by the number of those that stand.
    Drain,
    /// To read its file again, or another one, and go by it: answered by [`Reloaded`], or by `mistakes` in it.
    Reload {
        /// The other one, as an absolute path.
        file: Option<PathBuf>,
    },
    /// Who is shut out: answered by a list of [`BlockedClient`].
    Blocked,
    /// To shut an address out: answered by [`Done`].
    Block {
        /// The address.
        client: IpAddr,
        /// For how long.
        time: Duration,
    },
    /// To let an address in again: answered by [`Unblocked`].
    Unblock {
        /// The address.
        client: IpAddr,
    },
    /// What becomes of a packet: answered by [`crate::explain::Answer`].
    Explain(Question),
}

impl Request {
    /// How long the answer may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self {
            // A million prefixes are read and written in a few seconds, on a machine that has nothing else to do.
            Self::Reload { .. } => Duration::from_secs(120),
            // The first question loads a program, which old kernels take long to verify.
            Self::Explain(_) => Duration::from_secs(30),
            _ => Duration::from_secs(5),
        }
    }
}

/// The answer to a reload that was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// How many policies the process has had.
    pub generation: u32,
    /// How much is now in force, in words.
    pub in_force: String,
}

/// The answer where there is nothing to tell.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Always.
    pub done: bool,
}

/// The answer to an unblocking.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Unblocked {
    /// Blocks that stood.
    pub ended: usize,
}

/// What a service of an instance does.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceUse {
    /// Its name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: config::Protocol,
    /// `proxy`, `pass` or `drop`.
    pub action: config::Action,
    /// New connections, or datagrams, that it matched.
    pub hits: u64,
    /// How many of them a limit or a block refused.
    pub refused: u64,
    /// What the proxy did for it; absent where it does not stand behind it.
    #[serde(flatten)]
    pub proxied: Option<ServiceSnapshot>,
}

/// A client that is shut out.
#[derive(Clone, Debug, Serialize)]
pub struct BlockedClient {
    /// The service that it is shut out of; absent: of all.
    pub service: Option<Arc<str>>,
    /// The rest.
    #[serde(flatten)]
    pub block: Blocked,
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
    /// What it looks at.
    pub protocol: config::Protocol,
    /// Destination ports, or `any`.
    pub ports: String,
    /// What is done with its connections.
    pub action: config::Action,
    /// The address that servers see.
    pub source: String,
    /// What happens while the proxy is down.
    pub when_down: config::WhenDown,
}
