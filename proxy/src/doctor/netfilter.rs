//! The host's firewall and connection tracking, which intercepted connections meet like the host's own.
//!
//! nftables is asked over nfnetlink, which shows the chains of iptables-nft too. Rules of the older iptables
//! are not to be had without iptables itself: only that its tables are loaded is told.

use std::fs;

use rustix::net::netlink;

use super::{
    Finding, Options,
    netlink::{ALL, Raw, find, text},
    sysctl::Sysctls,
};

const COUNT: &str = "net.netfilter.nf_conntrack_count";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` of linux/netfilter/nf_tables.h.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;
const NF_DROP: u32 = 0;

/// Where a chain is hooked in (`NF_INET_*` of linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Input,
    Output,
    Postrouting,
}

/// A base chain that intercepted connections pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// `ip`, `ip6`, `inet`.
    pub(super) family: &'static str,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Hook,
    pub(super) drops: bool,
    pub(super) nat: bool,
    pub(super) rules: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) conntrack: Sysctls,
    /// None where nftables could not be asked.
    pub(super) chains: Option<Vec<Chain>>,
    /// Tables of the older iptables.
    pub(super) legacy: Vec<String>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let legacy = ["ip", "ip6"].iter().flat_map(|family| {
            let tables = fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
            tables.unwrap_or_default().lines().map(|table| format!("{family} {table}")).collect::<Vec<_>>()
        });
        Self { conntrack: Sysctls::read([COUNT, MAX, LIBERAL]), chains: chains(), legacy: legacy.collect() }
    }
}

/// None without nftables, or without CAP_NET_ADMIN.
fn chains() -> Option<Vec<Chain>> {
    let answers = Raw::open(netlink::NETFILTER).ok()?.ask(GET_CHAIN, ALL, &[0; NFGENMSG]).ok()?;
    Some(answers.iter().filter_map(|answer| chain(answer)).collect())
}

/// None for chains without a hook, and for those that packets to and from the proxy do not pass.
fn chain(answer: &[u8]) -> Option<Chain> {
    let family = match answer.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let attributes = answer.get(NFGENMSG..)?;
    let number = |kind| find(attributes, kind).and_then(big_endian);
    let hook = match find(find(attributes, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM).and_then(big_endian)? {
        1 => Hook::Input,
        3 => Hook::Output,
        4 => Hook::Postrouting,
        _ => return None,
    };
    Some(Chain {
        family,
        table: text(find(attributes, NFTA_CHAIN_TABLE)?),
        name: text(find(attributes, NFTA_CHAIN_NAME)?),
        hook,
        drops: number(NFTA_CHAIN_POLICY) == Some(NF_DROP),
        nat: find(attributes, NFTA_CHAIN_TYPE).is_some_and(|kind| text(kind) == "nat"),
        rules: number(NFTA_CHAIN_USE).unwrap_or(0),
    })
}

fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk::<4>()?))
}

pub(super) fn judge(facts: &Facts, mark: Option<u32>, options: &Options) -> Vec<Finding> {
    let mut findings = conntrack(&facts.conntrack, options.client_port);
    match &facts.chains {
        Some(chains) => findings.extend(firewall(chains, mark)),
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
            "their rules cannot be read; what Sheer intercepts passes their INPUT and OUTPUT, see iptables-legacy -S",
        ));
    }
    findings
}

fn conntrack(sysctls: &Sysctls, client_port: bool) -> Vec<Finding> {
    let (id, object) = ("conntrack", "conntrack");
    let Some(count) = sysctls.number(COUNT) else {
        return vec![Finding::fine(id, object, "is not loaded", "")];
    };
    if count == 0 {
        return vec![Finding::fine(id, object, "tracks nothing here", "")];
    }
    let max = sysctls.number(MAX).unwrap_or(0);
    let what = format!("tracks {count} connections of at most {max}");
    let mut findings = Vec::new();
    if max > 0 && count * 100 > max * 80 {
        findings.push(Finding::warning(
            "conntrack-full",
            object,
            what.clone(),
            "when it is full, new connections are dropped; one that is intercepted counts twice",
            format!("sysctl -w {MAX}={}", max * 4),
        ));
    }
    let liberal = sysctls.number(LIBERAL) == Some(1);
    if client_port && !liberal {
        findings.push(Finding::warning(
            id,
            object,
            what,
            "with `source = client-port` both halves of a connection look alike to it, and it may take packets of one for \
             invalid ones of the other; rules that drop the invalid then break connections",
            format!("sysctl -w {LIBERAL}=1, or leave the intercepted ports untracked (notrack), or use `source = client`"),
        ));
    } else if findings.is_empty() {
        let why = if liberal {
            "and is liberal about sequence numbers"
        } else {
            "the halves of a connection have different ports"
        };
        findings.push(Finding::fine(id, object, what, why));
    }
    findings
}

fn firewall(chains: &[Chain], mark: Option<u32>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = chains.iter().filter_map(|chain| one(chain, mark)).collect();
    if findings.is_empty() {
        let filters = chains.iter().filter(|chain| chain.rules > 0).count();
        let (what, why) = match filters {
            0 => ("no rules for what this host takes or sends".to_owned(), ""),
            n => (
                format!("{n} chains with rules, none that drops by default"),
                "what is intercepted passes input and output like the host's own connections, not forward",
            ),
        };
        findings.push(Finding::fine("firewall", "nftables", what, why));
    }
    findings
}

fn one(chain: &Chain, mark: Option<u32>) -> Option<Finding> {
    let Chain { family, table, name, .. } = chain;
    let object = format!("{family} {table} {name}");
    let mark = mark.map_or_else(|| "MARK".to_owned(), |mark| format!("{mark:#x}"));
    let accept = format!("nft insert rule {object} meta mark {mark} accept");
    match chain.hook {
        Hook::Input if chain.drops => Some(Finding::warning(
            "firewall-input",
            object,
            "drops what no rule accepts, on its way to this host",
            "what Sheer intercepts comes this way and not through forward: without a rule, clients get no answer",
            accept,
        )),
        Hook::Output if chain.drops => Some(Finding::warning(
            "firewall-output",
            object,
            "drops what no rule accepts, on its way from this host",
            "what the proxy sends goes this way: without a rule, neither clients nor servers hear from it",
            accept,
        )),
        Hook::Postrouting if chain.nat && chain.rules > 0 => Some(Finding::warning(
            "nat",
            object,
            format!("has {} rules that may change source addresses", chain.rules),
            "intercepted connections that they masquerade fail: the server's answer comes to this host's own address, and \
             from there past the proxy to the client",
            accept,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::attribute;
    use super::*;
    use crate::doctor::Severity;

    fn tracked(count: &str, max: &str, liberal: &str, client_port: bool) -> Vec<(&'static str, Severity)> {
        let sysctls = Sysctls::of(&[(COUNT, count), (MAX, max), (LIBERAL, liberal)]);
        conntrack(&sysctls, client_port).into_iter().map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn conntrack_matters_where_it_tracks_and_both_halves_look_alike() {
        assert_eq!(conntrack(&Sysctls::default(), true)[0].severity, Severity::Fine);
        assert_eq!(tracked("0", "262144", "0", true), [("conntrack", Severity::Fine)]);
        assert_eq!(tracked("10", "262144", "0", true), [("conntrack", Severity::Warning)]);
        assert_eq!(tracked("10", "262144", "0", false), [("conntrack", Severity::Fine)]);
        assert_eq!(tracked("10", "262144", "1", true), [("conntrack", Severity::Fine)]);
    }

    #[test]
    fn a_table_that_is_nearly_full_is_a_warning() {
        assert_eq!(tracked("801", "1000", "0", false), [("conntrack-full", Severity::Warning)]);
        assert_eq!(tracked("800", "1000", "0", false), [("conntrack", Severity::Fine)]);
    }

    fn made_up(hook: Hook) -> Chain {
        let (table, name) = ("filter".to_owned(), "c".to_owned());
        Chain { family: "inet", table, name, hook, drops: false, nat: false, rules: 0 }
    }

    fn ids(chain: Chain) -> Vec<(&'static str, Severity)> {
        firewall(&[chain], Some(0x2040)).into_iter().map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn chains_that_drop_by_default_need_a_rule_for_the_mark() {
        let input = Chain { drops: true, ..made_up(Hook::Input) };
        let finding = one(&input, Some(0x2040)).unwrap();
        assert_eq!(finding.cure, "nft insert rule inet filter c meta mark 0x2040 accept");
        assert_eq!(ids(input), [("firewall-input", Severity::Warning)]);
        assert_eq!(
            ids(Chain { drops: true, ..made_up(Hook::Output) }),
            [("firewall-output", Severity::Warning)]
        );
        assert_eq!(ids(made_up(Hook::Input)), [("firewall", Severity::Fine)]);
        assert_eq!(ids(Chain { rules: 3, ..made_up(Hook::Input) }), [("firewall", Severity::Fine)]);
    }

    #[test]
    fn nat_on_the_way_out_matters_when_it_has_rules() {
        let nat = Chain { nat: true, ..made_up(Hook::Postrouting) };
        assert_eq!(ids(nat.clone()), [("firewall", Severity::Fine)]);
        assert_eq!(ids(Chain { rules: 1, ..nat }), [("nat", Severity::Warning)]);
    }

    #[test]
    fn a_chain_is_read_from_the_kernels_bytes() {
        let hook = [attribute(NFTA_HOOK_HOOKNUM, &1_u32.to_be_bytes()), attribute(2, &[0; 4])].concat();
        let mut bytes = vec![1, 0, 0, 0];
        for part in [
            attribute(NFTA_CHAIN_TABLE, b"filter\0"),
            attribute(NFTA_CHAIN_NAME, b"c\0"),
            attribute(NFTA_CHAIN_HOOK | 0x8000, &hook),
            attribute(NFTA_CHAIN_POLICY, &[0; 4]),
            attribute(NFTA_CHAIN_TYPE, b"filter\0"),
        ] {
            bytes.extend(part);
        }
        assert_eq!(chain(&bytes), Some(Chain { drops: true, ..made_up(Hook::Input) }));
        assert_eq!(chain(&bytes[..12]), None);
    }
}
