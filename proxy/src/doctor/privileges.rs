//! What this process may do, and how much of it.

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use super::{Finding, Options};
use crate::{limit::Budget, relay::pipe::MAX_PIPES};

/// What Sheer cannot do without, capabilities(7).
const NEEDED: [(CapabilitySet, &str, &str); 3] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", "transparent sockets, rules, routes and attaching"),
    (CapabilitySet::BPF, "CAP_BPF", "loading programs"),
    (CapabilitySet::PERFMON, "CAP_PERFMON", "programs that compute with packet pointers"),
];

#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) effective: CapabilitySet,
    /// The hard limit of open files, which `sheer run` raises its own to; none: unlimited.
    pub(super) open_files: Option<u64>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        Self {
            effective: capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective),
            open_files: getrlimit(Resource::Nofile).maximum,
        }
    }
}

pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Finding> {
    vec![privileges(facts.effective), open_files(facts.open_files, options)]
}

/// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as it did before there were those (Linux 5.8).
fn privileges(effective: CapabilitySet) -> Finding {
    let (id, object) = ("privileges", "privileges");
    let has = |(capability, ..): &(CapabilitySet, &str, &str)| {
        effective.contains(*capability)
            || (*capability != CapabilitySet::NET_ADMIN && effective.contains(CapabilitySet::SYS_ADMIN))
    };
    let missing: Vec<_> = NEEDED.iter().filter(|needed| !has(needed)).collect();
    if missing.is_empty() {
        return Finding::fine(id, object, "all that is needed is there", "");
    }
    let names: Vec<&str> = missing.iter().map(|(_, name, _)| *name).collect();
    let uses: Vec<&str> = missing.iter().map(|(_, _, what)| *what).collect();
    Finding::cannot(
        id,
        object,
        format!("missing: {}", names.join(", ")),
        format!("needed for {}", uses.join("; ")),
        "run as root, or in the systemd unit: AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON",
    )
}

fn open_files(limit: Option<u64>, options: &Options) -> Finding {
    let (id, object) = ("open-files", "open files");
    let wanted = Budget { connections: options.max_connections, pipes: MAX_PIPES };
    let possible = Budget::within(limit, wanted, options.workers).connections;
    let shown = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    if possible >= wanted.connections {
        let why = format!("enough for {} connections", wanted.connections);
        return Finding::fine(id, object, format!("the limit is {shown}"), why);
    }
    Finding::warning(
        id,
        object,
        format!("the limit is {shown}"),
        format!(
            "that is enough for {possible} of {} connections (--max-connections), at two files each; the others wait",
            wanted.connections
        ),
        format!("LimitNOFILE={0} in the systemd unit, or: ulimit -Hn {0}", 4 * wanted.connections),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn root_has_everything() {
        assert_eq!(privileges(CapabilitySet::all()).severity, Severity::Fine);
    }

    #[test]
    fn what_is_missing_is_named() {
        let finding = privileges(CapabilitySet::BPF | CapabilitySet::PERFMON);
        assert_eq!(finding.severity, Severity::CannotWork);
        assert_eq!(finding.what, "missing: CAP_NET_ADMIN");
        let nothing = privileges(CapabilitySet::empty());
        assert!(nothing.what.contains("CAP_BPF, CAP_PERFMON"), "{nothing}");
    }

    #[test]
    fn the_old_capability_stands_for_the_new_ones_but_not_for_the_networks() {
        let old = CapabilitySet::SYS_ADMIN;
        assert_eq!(privileges(old | CapabilitySet::NET_ADMIN).severity, Severity::Fine);
        assert_eq!(privileges(old).what, "missing: CAP_NET_ADMIN");
    }

    #[test]
    fn a_limit_too_low_for_the_connections_says_for_how_many_it_is_enough() {
        let options = Options { max_connections: 100_000, workers: 2, ..Options::default() };
        let low = open_files(Some(4096), &options);
        assert_eq!(low.severity, Severity::Warning);
        assert!(low.why.contains("of 100000 connections"), "{low}");
        assert_eq!(open_files(Some(1 << 20), &options).severity, Severity::Fine);
        assert_eq!(open_files(None, &options).severity, Severity::Fine);
    }
}
