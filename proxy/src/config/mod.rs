//! What an instance shall do, checked: the only form of configuration that the core knows.

mod ports;
mod proxy;

use std::{str::FromStr, time::Duration};

use serde::Serialize;

pub use self::{
    ports::{PortError, Ports},
    proxy::{ProxyConfig, Timeouts},
};
use crate::{
    instance::InstanceName,
    record::{AccessLog, RecordFormat},
    socket::SourceMode,
};

/// Everything that `sheer run` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the instance.
    pub instance: InstanceName,
    /// Interfaces whose incoming packets are looked at: the clients' side and the servers'.
    pub interfaces: Vec<String>,
    /// Services in order; the first that matches wins.
    pub services: Vec<Service>,
    /// How the tc program is attached.
    pub attach: AttachMode,
    /// Mark and table of the policy route, where the user chose them.
    pub mark: Option<u32>,
    /// See `mark`.
    pub table: Option<u32>,
    /// Worker threads; one for each CPU that this process may use, by default.
    pub workers: usize,
    /// Connections at the same time, over all workers.
    pub max_connections: usize,
    /// How long the proxy waits for others.
    pub timeouts: Timeouts,
    /// How long connections may go on after SIGTERM, before they are reset.
    pub drain_timeout: Duration,
    /// Where the access records go.
    pub access_log: AccessLog,
    /// How they are written.
    pub access_format: RecordFormat,
    /// Whether the packet programs tell each decision.
    pub trace: bool,
}

impl Config {
    /// What the workers need of it.
    #[must_use]
    pub fn proxy(&self, mark: u32) -> ProxyConfig {
        ProxyConfig {
            source: self.services.first().map(|s| s.source).unwrap_or_default(),
            mark,
            timeouts: self.timeouts,
            max_connections: self.max_connections,
            access_log: self.access_log.clone(),
            access_format: self.access_format,
            ..ProxyConfig::default()
        }
    }
}

/// One service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name in records, maps and messages.
    pub name: String,
    /// Destination ports.
    pub ports: Ports,
    /// From where the proxy connects to the server.
    pub source: SourceMode,
    /// What happens to its new connections while the proxy is down.
    pub when_down: WhenDown,
}

/// What happens to new connections while no proxy is behind the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WhenDown {
    /// They go to the real server, unproxied.
    #[default]
    Open,
    /// They are dropped.
    Closed,
}

impl From<WhenDown> for sheer_common::policy::WhenDown {
    fn from(when_down: WhenDown) -> Self {
        match when_down {
            WhenDown::Open => Self::Open,
            WhenDown::Closed => Self::Closed,
        }
    }
}

/// How the tc program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it (6.6 and later), clsact otherwise.
    #[default]
    Auto,
    /// A TCX link, or an error.
    Tcx,
    /// A filter under a clsact qdisc, as older kernels have it.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(format!("`{other}` is none of auto, tcx, clsact")),
        }
    }
}
