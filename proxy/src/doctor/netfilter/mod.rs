//! The host's firewall and connection tracking, which intercepted connections meet like the host's own.
//!
//! nftables is asked over nfnetlink, which shows the chains of iptables-nft too. Rules of the older iptables
//! are not to be had without iptables itself: only that its tables are loaded is told.
//!
//! What Sheer intercepts carries its mark when it comes to netfilter, because tc comes first; what the proxy sends
//! carries the mark of its sockets. So one rule for the mark lets both through, and nothing else.

mod chains;
mod conntrack;
mod expressions;
mod rules;

use std::fs;

use self::chains::{Chain, Hook};
use super::{Finding, Options, sysctl::Sysctls};

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    conntrack: Sysctls,
    /// None where nftables could not be asked.
    chains: Option<Vec<Chain>>,
    /// Tables of the older iptables.
    legacy: Vec<String>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let legacy = ["ip", "ip6"].iter().flat_map(|family| {
            let tables = fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
            tables.unwrap_or_default().lines().map(|table| format!("{family} {table}")).collect::<Vec<_>>()
        });
        Self { conntrack: conntrack::gather(), chains: chains::gather(), legacy: legacy.collect() }
    }
}

pub(super) fn judge(facts: &Facts, mark: Option<u32>, options: &Options) -> Vec<Finding> {
    let chains = facts.chains.as_deref().unwrap_or_default();
    // Of those that drop all, the finding is that.
    let drops_invalid = |chain: &&Chain| {
        let fate = chain.fate(mark);
        fate.invalid_dropped && !fate.dropped
    };
    let dropping: Vec<&Chain> = chains.iter().filter(drops_invalid).collect();
    let mut findings = conntrack::judge(&facts.conntrack, options.client_port, &dropping, mark);
    match &facts.chains {
        Some(chains) => findings.extend(firewall(chains, mark, options)),
        None => findings.push(Finding::fine(
            "firewall",
            "nftables",
            "could not be asked",
            "the kernel has none, or it takes CAP_NET_ADMIN",
        )),
    }
    if !facts.legacy.is_empty() {
        findings.push(Finding::fine(
            "iptables-legacy",
            "iptables",
            format!("the older kind has tables here: {}", facts.legacy.join(", ")),
            "their rules cannot be read; what Sheer intercepts passes their PREROUTING and INPUT, what the proxy sends their \
             OUTPUT and POSTROUTING, see iptables-legacy -S",
        ));
    }
    findings
}

/// The mark in a command line.
fn shown(mark: Option<u32>) -> String {
    mark.map_or_else(|| "MARK".to_owned(), |mark| format!("{mark:#x}"))
}

fn firewall(chains: &[Chain], mark: Option<u32>, options: &Options) -> Vec<Finding> {
    let mut findings: Vec<Finding> = chains.iter().filter_map(|chain| one(chain, mark, options)).collect();
    if findings.is_empty() {
        let filters = chains.iter().filter(|chain| chain.rules > 0).count();
        let (what, why) = match filters {
            0 => ("no rules for what this host takes or sends".to_owned(), ""),
            n => (
                format!("{n} chains with rules, none that drops in the end what Sheer steers"),
                "what is intercepted passes prerouting and input like the host's own connections, not forward",
            ),
        };
        findings.push(Finding::fine("firewall", "nftables", what, why));
    }
    findings
}

fn one(chain: &Chain, mark: Option<u32>, options: &Options) -> Option<Finding> {
    let fate = chain.fate(mark);
    let accept = chain.accept(&shown(mark));
    let how = match (chain.drops, chain.is_read()) {
        (true, true) => "drops by default what no rule accepts",
        (true, false) => "drops by default what no rule accepts, and has too many rules to be read",
        (false, _) => "ends with a rule that drops all, or all that is not for an address of this host",
    };
    let object = chain.to_string();
    match chain.hook {
        Hook::Ingress | Hook::Prerouting | Hook::Input if fate.dropped => Some(Finding::warning(
            "firewall-input",
            object,
            format!("{how}, on its way to this host"),
            "what Sheer intercepts comes this way and not through forward: without a rule, clients get no answer",
            accept,
        )),
        Hook::Output | Hook::Postrouting if fate.dropped => Some(Finding::warning(
            "firewall-output",
            object,
            format!("{how}, on its way from this host"),
            "what the proxy sends goes this way: without a rule, neither clients nor servers hear from it",
            accept,
        )),
        Hook::Postrouting if fate.snat && options.spoofs => Some(Finding::warning(
            "nat",
            object,
            "has rules that change source addresses",
            "intercepted connections that they masquerade fail: the server's answer comes to this host's own address, and \
             from there past the proxy to the client",
            accept,
        )),
        _ if !chain.is_read() => Some(Finding::fine(
            "firewall",
            object,
            "has too many rules to be read",
            "whether one of them drops what Sheer steers cannot be told",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::chains::made_up;
    use super::rules::{Action, Condition, Rule};
    use super::*;
    use crate::doctor::Severity;

    const MARK: Option<u32> = Some(0x2040);

    fn with(hook: Hook, drops: bool, rules: &[(Condition, Action)]) -> Chain {
        let rules: Vec<Rule> = rules
            .iter()
            .map(|(condition, action)| Rule { condition: *condition, action: action.clone() })
            .collect();
        made_up(hook, drops, rules)
    }

    fn ids(chain: Chain) -> Vec<(&'static str, Severity)> {
        firewall(&[chain], MARK, &Options::default()).into_iter().map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn chains_that_drop_in_the_end_need_a_rule_for_the_mark() {
        let finding = one(&with(Hook::Input, true, &[]), MARK, &Options::default()).unwrap();
        assert_eq!(finding.cure, "nft insert rule inet filter c meta mark 0x2040 accept");
        for (hook, id) in [
            (Hook::Ingress, "firewall-input"),
            (Hook::Prerouting, "firewall-input"),
            (Hook::Input, "firewall-input"),
            (Hook::Output, "firewall-output"),
            (Hook::Postrouting, "firewall-output"),
        ] {
            assert_eq!(ids(with(hook, true, &[])), [(id, Severity::Warning)]);
            let last = [(Condition::Some, Action::Accept), (Condition::Always, Action::Drop)];
            assert_eq!(ids(with(hook, false, &last)), [(id, Severity::Warning)]);
            let cured = (Condition::Mark { value: 0x2040, mask: u32::MAX }, Action::Accept);
            assert_eq!(ids(with(hook, true, &[cured])), [("firewall", Severity::Fine)]);
            assert_eq!(ids(with(hook, false, &[])), [("firewall", Severity::Fine)]);
        }
    }

    #[test]
    fn nat_on_the_way_out_matters_where_clients_addresses_are_used() {
        let nat = with(Hook::Postrouting, false, &[(Condition::Some, Action::Snat)]);
        assert_eq!(ids(nat.clone()), [("nat", Severity::Warning)]);
        assert_eq!(
            ids(with(Hook::Postrouting, false, &[(Condition::Some, Action::Nothing)])),
            [("firewall", Severity::Fine)]
        );
        let own = Options { spoofs: false, ..Options::default() };
        assert!(one(&nat, MARK, &own).is_none());
    }
}
