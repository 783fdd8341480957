//! The reverse-path check: strict, it drops IPv4 packets that come by another interface than the way back to their source.
//!
//! Sheer's rules are bound to interfaces, so the check never asks them: what comes the right way passes it under every
//! setting. IPv6 has no such check of its own.

use super::{Finding, Options, sysctl::Sysctls};

const ALL: &str = "net.ipv4.conf.all.rp_filter";
const STRICT: u64 = 1;

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Interfaces on which it is strict.
    strict: Vec<String>,
}

fn name(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/rp_filter")
}

impl Facts {
    pub(super) fn gather(interfaces: &[String]) -> Self {
        let names: Vec<String> = interfaces.iter().map(|interface| name(interface)).collect();
        Self::of(interfaces, &Sysctls::read(names.iter().map(String::as_str).chain([ALL])))
    }

    fn of(interfaces: &[String], sysctls: &Sysctls) -> Self {
        let all = sysctls.number(ALL).unwrap_or(0);
        // The higher one counts (IN_DEV_RPFILTER of linux/inetdevice.h).
        let effective = |interface: &&String| sysctls.number(&name(interface)).unwrap_or(0).max(all);
        let strict = interfaces.iter().filter(|interface| effective(interface) == STRICT).cloned().collect();
        Self { strict }
    }
}

pub(super) fn judge(facts: &Facts, options: &Options) -> Option<Finding> {
    let (id, object) = ("reverse-path", "rp_filter");
    if facts.strict.is_empty() {
        return None;
    }
    let what = format!("is strict on {}", facts.strict.join(" and "));
    if !options.same_way {
        // A server's answer that comes by another interface can be foreseen no better than a client.
        let why = "what comes by another interface than the way back to its source is dropped, be it a client's packet or a \
                   server's answer; all else works";
        return Some(Finding::fine(id, object, what, why));
    }
    let cure: Vec<String> = facts.strict.iter().map(|interface| format!("{}=2", name(interface))).collect();
    Some(Finding::warning(
        id,
        object,
        what,
        "`reply = \"same-way\"` is for clients that come by another interface than the way back to them, and the check drops \
         their packets",
        format!("sysctl -w {}", cure.join(" ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn strict(all: &str, own: &str) -> Facts {
        let sysctls = Sysctls::of(&[(ALL, all), ("net/ipv4/conf/eth0.5/rp_filter", own)]);
        Facts::of(&["eth0.5".to_owned()], &sysctls)
    }

    #[test]
    fn the_higher_setting_counts_and_loose_is_higher_than_strict() {
        for (all, own, expected) in [("0", "1", true), ("1", "0", true), ("1", "2", false), ("0", "0", false)]
        {
            assert_eq!(!strict(all, own).strict.is_empty(), expected, "{all} {own}");
        }
    }

    #[test]
    fn it_matters_where_clients_come_by_other_ways() {
        let facts = strict("1", "0");
        assert_eq!(judge(&facts, &Options::default()).unwrap().severity, Severity::Fine);
        let same_way = Options { same_way: true, ..Options::default() };
        let finding = judge(&facts, &same_way).unwrap();
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(finding.cure, "sysctl -w net/ipv4/conf/eth0.5/rp_filter=2");
        assert!(judge(&strict("2", "1"), &same_way).is_none());
    }
}
