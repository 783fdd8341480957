//! The base chains that intercepted connections pass, read over nfnetlink.

use std::fmt;

use rustix::net::netlink;

use super::{
    super::netlink::{ALL, Raw, find, text},
    expressions::{self, MAX_RULES, big_endian},
    rules::{self, Action, Chains, Fate},
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` of linux/netfilter/nf_tables.h.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;
const NF_DROP: u32 = 0;

/// `NFPROTO_*` of linux/netfilter.h.
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;

/// Where a chain is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// On the device, behind tc.
    Ingress,
    Prerouting,
    Input,
    Output,
    Postrouting,
}

/// Whose commands a chain is kept with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Nft,
    /// iptables-nft, or ip6tables-nft.
    Iptables,
    Firewalld,
    /// ufw, over iptables.
    Ufw,
}

/// A base chain that intercepted connections pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) family: &'static str,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Hook,
    /// Its policy.
    pub(super) drops: bool,
    /// How many rules it has.
    pub(super) rules: u32,
    /// Its rules and those of the chains that it leads to; none where they could not be read.
    pub(super) chains: Option<Chains>,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl Chain {
    /// What becomes of what Sheer steers and sends; a mark that is not known is nobody's.
    pub(super) fn fate(&self, mark: Option<u32>) -> Fate {
        let none = Chains::new();
        rules::fate(self.chains.as_ref().unwrap_or(&none), &self.name, self.drops, mark.unwrap_or(0))
    }

    /// Whether its rules are known.
    pub(super) fn is_read(&self) -> bool {
        self.rules == 0 || self.chains.is_some()
    }

    pub(super) fn style(&self) -> Style {
        let builtin = matches!(self.name.as_str(), "PREROUTING" | "INPUT" | "OUTPUT" | "POSTROUTING");
        let of_iptables = matches!(self.table.as_str(), "filter" | "nat" | "mangle" | "raw" | "security");
        let ufw = |action: &Action| matches!(action, Action::Jump(to) if to.starts_with("ufw"));
        match self.family {
            "ip" | "ip6" if builtin && of_iptables => {
                let own = self.chains.as_ref().and_then(|chains| chains.get(&self.name));
                let is_ufw = own.is_some_and(|rules| rules.iter().any(|rule| ufw(&rule.action)));
                if is_ufw { Style::Ufw } else { Style::Iptables }
            }
            "inet" if self.table == "firewalld" => Style::Firewalld,
            _ => Style::Nft,
        }
    }

    /// The command that lets through what carries the mark, and nothing else.
    pub(super) fn accept(&self, mark: &str) -> String {
        let Self { family, table, name, .. } = self;
        let iptables = || {
            let program = if *family == "ip6" { "ip6tables" } else { "iptables" };
            let table = if table == "filter" { String::new() } else { format!("-t {table} ") };
            format!("{program} {table}-I {name} -m mark --mark {mark} -j ACCEPT")
        };
        let nft = || format!("nft insert rule {self} meta mark {mark} accept");
        match self.style() {
            Style::Nft => nft(),
            Style::Iptables => iptables(),
            Style::Firewalld => format!(
                "{} (until firewalld reloads; for good, open the services' ports in the zone of the clients' interface: \
                 firewall-cmd --permanent --zone=ZONE --add-port=PORT/tcp)",
                nft()
            ),
            Style::Ufw => format!(
                "{} (until ufw reloads; for good, as the first rule in /etc/ufw/before{}.rules)",
                iptables(),
                if *family == "ip6" { "6" } else { "" }
            ),
        }
    }
}

/// None without nftables, or without CAP_NET_ADMIN.
pub(super) fn gather() -> Option<Vec<Chain>> {
    let socket = Raw::open(netlink::NETFILTER).ok()?;
    let answers = socket.ask(GET_CHAIN, ALL, &[0; NFGENMSG]).ok()?;
    let mut chains: Vec<Chain> = answers.iter().filter_map(|answer| chain(answer)).collect();
    for chain in chains.iter_mut().filter(|chain| (1..=MAX_RULES).contains(&(chain.rules as usize))) {
        chain.chains = expressions::read(&socket, number(chain.family), &chain.table, &chain.name).ok();
    }
    Some(chains)
}

fn number(family: &str) -> u8 {
    match family {
        "inet" => INET,
        "ip" => IPV4,
        "netdev" => NETDEV,
        _ => IPV6,
    }
}

/// None for chains without a hook, and for those that packets to and from the proxy do not pass.
fn chain(answer: &[u8]) -> Option<Chain> {
    let family = *answer.first()?;
    let name = match family {
        INET => "inet",
        IPV4 => "ip",
        NETDEV => "netdev",
        IPV6 => "ip6",
        _ => return None,
    };
    let attributes = answer.get(NFGENMSG..)?;
    let number = |kind| find(attributes, kind).and_then(big_endian);
    let hook = find(find(attributes, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM).and_then(big_endian)?;
    let hook = match (family, hook) {
        (NETDEV, 0) | (INET, 5) => Hook::Ingress,
        (NETDEV, _) => return None,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    };
    Some(Chain {
        family: name,
        table: text(find(attributes, NFTA_CHAIN_TABLE)?),
        name: text(find(attributes, NFTA_CHAIN_NAME)?),
        hook,
        drops: number(NFTA_CHAIN_POLICY) == Some(NF_DROP),
        rules: number(NFTA_CHAIN_USE).unwrap_or(0),
        chains: None,
    })
}

#[cfg(test)]
pub(super) fn made_up(hook: Hook, drops: bool, rules: Vec<rules::Rule>) -> Chain {
    let (table, name) = ("filter".to_owned(), "c".to_owned());
    let count = u32::try_from(rules.len()).unwrap();
    let chains = (count > 0).then(|| [(name.clone(), rules)].into());
    Chain { family: "inet", table, name, hook, drops, rules: count, chains }
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::netlink::attribute,
        rules::{Condition, Rule},
    };
    use super::*;

    #[test]
    fn a_chain_is_read_from_the_kernels_bytes() {
        let hook = [attribute(NFTA_HOOK_HOOKNUM, &1_u32.to_be_bytes()), attribute(2, &[0; 4])].concat();
        let mut bytes = vec![1, 0, 0, 0];
        for part in [
            attribute(NFTA_CHAIN_TABLE, b"filter\0"),
            attribute(NFTA_CHAIN_NAME, b"c\0"),
            attribute(NFTA_CHAIN_HOOK | 0x8000, &hook),
            attribute(NFTA_CHAIN_POLICY, &[0; 4]),
        ] {
            bytes.extend(part);
        }
        assert_eq!(chain(&bytes), Some(made_up(Hook::Input, true, vec![])));
        assert_eq!(chain(&bytes[..12]), None);
    }

    #[test]
    fn each_firewall_is_spoken_to_in_its_own_words() {
        let plain = Chain { family: "ip6", name: "INPUT".into(), ..made_up(Hook::Input, true, vec![]) };
        assert_eq!(plain.accept("0x2040"), "ip6tables -I INPUT -m mark --mark 0x2040 -j ACCEPT");
        let nat = Chain { family: "ip", table: "nat".into(), name: "POSTROUTING".into(), ..plain.clone() };
        assert_eq!(nat.accept("0x2040"), "iptables -t nat -I POSTROUTING -m mark --mark 0x2040 -j ACCEPT");
        let jump = Rule { condition: Condition::Always, action: Action::Jump("ufw-before-input".into()) };
        let ufw = Chain { chains: Some([("INPUT".to_owned(), vec![jump])].into()), family: "ip", ..plain };
        assert!(ufw.accept("0x2040").contains("/etc/ufw/before.rules"));
        let firewalld = Chain { table: "firewalld".into(), ..made_up(Hook::Input, false, vec![]) };
        assert!(firewalld.accept("0x2040").contains("firewall-cmd"));
    }
}
