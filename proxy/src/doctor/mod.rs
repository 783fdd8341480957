//! `sheer doctor`: what of this host keeps Sheer from working, or from working well, and what helps.
//!
//! [`examine`] looks and changes nothing: it reads /proc and /sys, and asks over netlink and bpf(2). Facts are gathered
//! first, in small structs; what they mean is judged by pure functions, each subject in a file of its own:
//!
//! - `kernel`: programs, hooks, bpffs, the compiler
//! - `privileges`: capabilities and the limit of files
//! - `host`: sysctls
//! - `interfaces`: there, up, readable; XDP, offloads, bridges
//! - `programs`: other programs and filters at tc
//! - `rules`: rules and tables of others
//! - `reverse_path`: the check of sources
//! - `netfilter`: firewall, NAT, connection tracking
//! - `instances`: what dead instances have left
//!
//! [`fix()`] does of the cures only what cannot harm anybody else.

mod finding;
mod fix;
mod host;
mod instances;
mod interfaces;
mod kernel;
mod netfilter;
mod netlink;
mod offload;
mod privileges;
mod programs;
mod reverse_path;
mod rules;
mod sysctl;

pub use finding::{Finding, Obstacles, Report, Severity, Verdict};
pub use fix::{Fix, Fixed, fix};

use std::thread;

use self::netlink::Netlink;
use crate::{
    config::{Action, Config, Reply},
    dataplane::Capabilities,
    instance::InstanceName,
    route::{Numbers, RouteError},
    run::{self, RunError},
    socket::SourceMode,
};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names; empty for all that are up, without lo, members of bridges and bonds, and what Sheer cannot read.
    pub interfaces: Vec<String>,
    /// Mark, table and preference, where they are settled; none for those that a start would choose now.
    pub numbers: Option<Numbers>,
    /// The instance that is about to start, and takes over what it has left.
    pub instance: Option<InstanceName>,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Worker threads.
    pub workers: usize,
    /// Whether some service uses the client's address and port towards the server; true where that is not known.
    pub client_port: bool,
    /// Whether some service uses clients' addresses towards the server; true where that is not known.
    pub spoofs: bool,
    /// Whether some service answers by the way that the client came.
    pub same_way: bool,
}

impl Default for Options {
    /// As `sheer run` has it without flags.
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            numbers: None,
            instance: None,
            max_connections: 100_000,
            workers: thread::available_parallelism().map_or(1, usize::from),
            client_port: true,
            spoofs: true,
            same_way: false,
        }
    }
}

impl Options {
    /// As this configuration asks for it.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let proxied = || config.services.iter().filter(|service| service.action == Action::Proxy);
        Self {
            interfaces: config.interfaces.clone(),
            max_connections: config.max_connections,
            workers: config.workers,
            client_port: proxied().any(|service| service.source == SourceMode::ClientPort),
            spoofs: proxied().any(|service| service.source != SourceMode::Proxy),
            same_way: proxied().any(|service| service.reply == Reply::SameWay),
            ..Self::default()
        }
    }
}

/// Looks at everything, changes nothing. Takes some milliseconds; must run inside a tokio runtime.
pub async fn examine(options: &Options, capabilities: &Capabilities) -> Report {
    let mut findings = kernel::judge(&kernel::Facts::gather(capabilities));
    findings.extend(privileges::judge(&privileges::Facts::gather(), options));
    findings.extend(host::judge(&host::gather()));
    match network(options).await {
        Ok(more) => findings.extend(more),
        Err(why) => findings.push(Finding::cannot(
            "netlink",
            "rtnetlink",
            "the kernel could not be asked",
            why,
            "run as root; a sandbox that leaves out AF_NETLINK (RestrictAddressFamilies= in a systemd unit) has to allow it",
        )),
    }
    Report::new(findings)
}

async fn network(options: &Options) -> Result<Vec<Finding>, String> {
    let netlink = Netlink::open().map_err(|e| e.to_string())?;
    let gathered = interfaces::Facts::gather(&netlink, options).await;
    let interfaces = gathered.map_err(|e: RouteError| e.to_string())?;
    let devices: Vec<(u32, String)> =
        interfaces.devices.iter().map(|device| (device.link.index, device.link.name.clone())).collect();
    let programs = programs::Facts::gather(&netlink, &devices).await;
    let rules = rules::Facts::gather(&netlink, options.numbers, interfaces.names()).await;
    let mark = rules.numbers.as_ref().ok().map(|numbers| numbers.mark);
    let mut findings = interfaces::judge(&interfaces);
    findings.extend(programs::judge(&programs));
    findings.extend(rules::judge(&rules));
    findings.extend(reverse_path::judge(&reverse_path::Facts::gather(&interfaces.names()), options));
    findings.extend(netfilter::judge(&netfilter::Facts::gather(), mark, options));
    findings.extend(instances::judge(&instances::Facts::gather(&programs.ours()), options));
    Ok(findings)
}

/// Before a start: logs the warnings, a line each.
///
/// # Errors
/// [`Obstacles`] when Sheer cannot work here.
pub async fn before_start(options: &Options, capabilities: &Capabilities) -> Result<(), Obstacles> {
    let report = examine(options, capabilities).await;
    for warning in report.of(Severity::Warning) {
        log::warn!("{warning}");
    }
    report.admit()
}

/// The whole command: examines, with `cure` fixes what is safe and examines again, so that the report says how it is now.
///
/// # Errors
/// When no runtime can be started.
pub fn doctor(options: &Options, cure: bool) -> Result<Report, RunError> {
    let capabilities = Capabilities::probe();
    run::runtime()?.block_on(async {
        let report = examine(options, &capabilities).await;
        if !cure {
            return Ok(report);
        }
        let fixed = fix(&report).await;
        Ok(examine(options, &capabilities).await.after(fixed))
    })
}
