//! What an instance shall do, checked: the only form of configuration that the core knows.

pub mod check;
mod collect;
mod error;
mod ports;
pub mod prefixes;
mod proxy;
mod raw;
mod read;
mod service;
pub(crate) mod suggest;
pub mod values;

use std::{path::PathBuf, str::FromStr, time::Duration};

use serde::Serialize;

pub use self::{
    error::{Mistake, Mistakes, Place},
    ports::{PortError, Ports},
    proxy::{ProxyConfig, Timeouts},
    service::{Action, Limit, PerClient, Prefixes, Protocol, Reply, SameSubnet, Service, WhenDown},
};
use crate::{
    instance::InstanceName,
    record::{AccessLog, RecordFormat},
};

/// Everything that `sheer run` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the instance.
    pub instance: InstanceName,
    /// The file that it was read from, to be read again on reload; none where flags made it.
    pub file: Option<PathBuf>,
    /// Interfaces whose incoming packets are looked at: the clients' side and the servers'.
    pub interfaces: Vec<String>,
    /// What becomes of traffic that should go to the proxy and cannot, where no service is known.
    pub when_down: WhenDown,
    /// Services in order; the first that matches wins.
    pub services: Vec<Service>,
    /// What a reload does with connections whose service is gone.
    pub existing: Existing,
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
    /// All lists of prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = &Prefixes> {
        self.services.iter().flat_map(|service| [&service.destinations, &service.clients]).flatten()
    }

    /// Whether packets that this host itself sends have to be looked at.
    #[must_use]
    pub fn concerns_output(&self) -> bool {
        self.services.iter().any(Service::concerns_output)
    }

    /// What the workers need of it.
    #[must_use]
    pub fn proxy(&self, mark: u32) -> ProxyConfig {
        ProxyConfig {
            mark,
            timeouts: self.timeouts,
            max_connections: self.max_connections,
            access_log: self.access_log.clone(),
            access_format: self.access_format,
            ..ProxyConfig::default()
        }
    }
}

/// What a reload does with connections whose service is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// They go on to their end.
    #[default]
    Keep,
    /// They are reset.
    Reset,
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
