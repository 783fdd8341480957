//! The policy route: whether rules of others take away what Sheer has marked before its own rule is asked.

use netlink_packet_route::{
    route::{RouteAttribute, RouteProtocol, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Finding,
    netlink::{Netlink, collect},
};
use crate::route::{self, Family, Numbers, PROTOCOL, RouteError};

const LOCAL: u32 = 255;
/// `ip rule` says "no suppressing" with all bits set.
const NO_SUPPRESSING: u32 = u32::MAX;

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Looks into a table; the next rule follows where that has no route.
    Lookup(u32),
    /// Goes on at a later rule.
    Goto(u32),
    /// Blackhole, unreachable, prohibit.
    Drop,
    Nothing,
}

/// A rule, as far as a packet of ours meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) inverted: bool,
    pub(super) iif: Option<String>,
    /// Asks for an outgoing interface, which a packet that comes in does not have.
    pub(super) oif: Option<String>,
    pub(super) action: Action,
    /// Routes of this prefix length and shorter do not count.
    pub(super) suppress: Option<u32>,
    /// Asks for addresses, ports, a user …: only some packets.
    pub(super) narrowed: bool,
    /// The rule of VRFs.
    pub(super) l3mdev: bool,
    pub(super) protocol: u8,
}

impl Rule {
    fn of(family: Family, message: &RuleMessage) -> Self {
        let header = &message.header;
        let mut rule = Self {
            family,
            priority: 0,
            mark: 0,
            mask: 0,
            inverted: header.flags.contains(RuleFlags::Invert),
            iif: None,
            oif: None,
            action: Action::Nothing,
            suppress: None,
            narrowed: header.src_len != 0 || header.dst_len != 0 || header.tos != 0,
            l3mdev: false,
            protocol: 0,
        };
        let (mut table, mut target) = (u32::from(header.table), 0);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::Goto(priority) => target = *priority,
                RuleAttribute::SuppressPrefixLen(length) if *length != NO_SUPPRESSING => {
                    rule.suppress = Some(*length);
                }
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
                RuleAttribute::L3MDev(on) => rule.l3mdev = *on,
                RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
                | RuleAttribute::TunId(_) => rule.narrowed = true,
                _ => {}
            }
        }
        rule.action = match header.action {
            RuleAction::ToTable => Action::Lookup(table),
            RuleAction::Goto => Action::Goto(target),
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => Action::Drop,
            _ => Action::Nothing,
        };
        rule
    }

    fn names_mark(&self, mark: u32) -> bool {
        self.mask != 0 && mark & self.mask == self.mark & self.mask
    }

    /// Whether it can match a packet with our mark that came in by one of these interfaces.
    fn meets(&self, mark: u32, interfaces: &[String]) -> bool {
        let marked = self.mask == 0 || self.names_mark(mark);
        let comes = self.iif.as_ref().is_none_or(|name| interfaces.contains(name));
        let selected = marked && comes && self.oif.is_none();
        if self.inverted { !selected || self.narrowed } else { selected }
    }

    /// Whether what it meets may end elsewhere than at our own rule.
    fn leads_away(&self, numbers: Numbers) -> bool {
        match self.action {
            Action::Lookup(table) => table != LOCAL && table != numbers.table && !self.l3mdev,
            Action::Goto(target) => target > numbers.priority,
            Action::Drop => true,
            Action::Nothing => false,
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rule with preference {}:", self.family, self.priority)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        f.write_str(if self.narrowed { " from some packets" } else { " from all" })?;
        if self.mask != 0 {
            write!(f, " fwmark {:#x}/{:#x}", self.mark, self.mask)?;
        }
        if let Some(name) = &self.iif {
            write!(f, " iif {name}")?;
        }
        match self.action {
            Action::Lookup(table) => write!(f, " lookup {}", table_name(table))?,
            Action::Goto(target) => write!(f, " goto {target}")?,
            Action::Drop => f.write_str(" drop")?,
            Action::Nothing => f.write_str(" nop")?,
        }
        self.suppress.map_or(Ok(()), |length| write!(f, " suppress_prefixlength {length}"))
    }
}

fn table_name(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) rules: Vec<Rule>,
    /// Those of the config or of a predecessor; those of an instance that is here; or those that a start would choose.
    pub(super) numbers: Result<Numbers, String>,
    /// What others keep in the table of these numbers.
    pub(super) foreign_routes: Vec<(Family, String)>,
    pub(super) interfaces: Vec<String>,
    /// The numbers were asked for, not chosen free.
    pub(super) fixed: bool,
}

impl Facts {
    pub(super) async fn gather(netlink: &Netlink, asked: Option<Numbers>, interfaces: Vec<String>) -> Self {
        let mut rules = Vec::new();
        for (family, version) in [(Family::V4, IpVersion::V4), (Family::V6, IpVersion::V6)] {
            let messages = collect(netlink.handle.rule().get(version).execute()).await.unwrap_or_default();
            rules.extend(messages.iter().map(|message| Rule::of(family, message)));
        }
        let numbers = match asked.or_else(|| in_use(&rules)) {
            Some(numbers) => Ok(numbers),
            None => choose().await.map_err(|e| e.to_string()),
        };
        let mut foreign_routes = Vec::new();
        if let Ok(numbers) = &numbers {
            for family in Family::ALL {
                foreign_routes.extend(foreign(netlink, family, numbers.table).await);
            }
        }
        Self { rules, numbers, foreign_routes, interfaces, fixed: asked.is_some() }
    }
}

/// The numbers of an instance that has its rules here, running or dead: about that one people ask.
fn in_use(rules: &[Rule]) -> Option<Numbers> {
    let ours = rules.iter().find(|rule| rule.protocol == PROTOCOL && rule.mask == u32::MAX)?;
    let Action::Lookup(table) = ours.action else { return None };
    Some(Numbers { mark: ours.mark, table, priority: ours.priority })
}

async fn choose() -> Result<Numbers, RouteError> {
    route::choose_numbers(&route::claims().await?)
}

async fn foreign(netlink: &Netlink, family: Family, table: u32) -> Option<(Family, String)> {
    let mut filter = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    filter.header.table = 0;
    filter.header.protocol = RouteProtocol::Unspec;
    filter.header.kind = RouteType::Unspec;
    filter.attributes = vec![RouteAttribute::Table(table)];
    let routes = collect(netlink.handle.route().get(filter).execute()).await?;
    let route = routes.iter().find(|route| {
        u8::from(route.header.protocol) != PROTOCOL
            && route.attributes.iter().any(|a| matches!(a, RouteAttribute::Table(t) if *t == table))
    })?;
    let kind = format!("{:?}", route.header.kind).to_lowercase();
    Some((
        family,
        format!(
            "{kind} /{} protocol {}",
            route.header.destination_prefix_length,
            u8::from(route.header.protocol)
        ),
    ))
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.numbers {
        Ok(numbers) => {
            findings.extend(in_front(facts, *numbers));
            findings.extend(claimed(facts, *numbers));
            findings.extend(table(facts, *numbers));
        }
        Err(why) => findings.push(Finding::cannot(
            "no-free-numbers",
            "ip rule",
            "no mark, table and preference is free",
            why.clone(),
            "sheer cleanup --instance NAME for each dead instance (`ls /sys/fs/bpf/sheer`)",
        )),
    }
    findings.extend(local_rule(&facts.rules));
    if findings.is_empty() {
        let why = "none takes away what Sheer marks";
        findings.push(Finding::fine("rules", "ip rule", format!("{} rules", facts.rules.len()), why));
    }
    findings
}

fn in_front(facts: &Facts, numbers: Numbers) -> Vec<Finding> {
    let others =
        facts.rules.iter().filter(|rule| rule.protocol != PROTOCOL && rule.priority <= numbers.priority);
    let taking =
        others.filter(|rule| rule.meets(numbers.mark, &facts.interfaces) && rule.leads_away(numbers));
    taking
        .map(|rule| {
            let (flag, some) = (flag(rule.family), if rule.narrowed { "some of " } else { "" });
            Finding::warning(
                "rule-in-front",
                "ip rule",
                rule.to_string(),
                format!(
                    "it is asked before Sheer's (preference {}) and may take {some}the packets that Sheer has steered away; \
                     their connections hang",
                    numbers.priority
                ),
                format!(
                    "give it a preference above {}: `ip {flag}rule show pref {1}`, then ip {flag}rule del pref {1}, and add \
                     it again as it was, with another pref",
                    numbers.priority, rule.priority
                ),
            )
        })
        .collect()
}

/// Only where the numbers were asked for: chosen ones are free.
fn claimed(facts: &Facts, numbers: Numbers) -> Vec<Finding> {
    let others = facts.rules.iter().filter(|rule| facts.fixed && rule.protocol != PROTOCOL);
    let claiming = others.filter(|rule| !rule.inverted && rule.names_mark(numbers.mark));
    claiming
        .map(|rule| {
            Finding::warning(
                "mark-claimed",
                "ip rule",
                rule.to_string(),
                format!(
                    "somebody else uses the mark {:#x} too, and their packets would be taken for Sheer's",
                    numbers.mark
                ),
                "choose another number with --mark, or leave it out",
            )
        })
        .collect()
}

fn table(facts: &Facts, numbers: Numbers) -> Vec<Finding> {
    let in_use = facts.foreign_routes.iter();
    in_use
        .map(|(family, route)| {
            Finding::cannot(
                "table-in-use",
                format!("table {}", numbers.table),
                format!("holds an {family} route that is not Sheer's ({route})"),
                "intercepted packets would follow it",
                format!(
                    "choose another number with --table, or, if nobody needs it: ip {}route flush table {}",
                    flag(*family),
                    numbers.table
                ),
            )
        })
        .collect()
}

/// Moved is fine (Cilium puts it at 100); gone is not, for the host itself.
fn local_rule(rules: &[Rule]) -> Vec<Finding> {
    let without = |family: &Family| {
        let of_family = || rules.iter().filter(|rule| rule.family == *family);
        of_family().next().is_some() && !of_family().any(|rule| rule.action == Action::Lookup(LOCAL))
    };
    let found = Family::ALL.into_iter().filter(without);
    found
        .map(|family| {
            Finding::warning(
                "local-rule",
                "ip rule",
                format!("no {family} rule leads to the local table"),
                "this host does not know its own addresses any more, and nothing can reach it",
                format!("ip {}rule add pref 0 lookup local", flag(family)),
            )
        })
        .collect()
}

fn flag(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "-6 ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    const NUMBERS: Numbers = Numbers { mark: 0x2040, table: 8300, priority: 60 };

    fn rule(priority: u32, action: Action) -> Rule {
        Rule {
            family: Family::V4,
            priority,
            mark: 0,
            mask: 0,
            inverted: false,
            iif: None,
            oif: None,
            action,
            suppress: None,
            narrowed: false,
            l3mdev: false,
            protocol: 2,
        }
    }

    fn local() -> Rule {
        rule(0, Action::Lookup(LOCAL))
    }

    fn ids(rules: Vec<Rule>) -> Vec<&'static str> {
        let facts = Facts {
            rules: [vec![local(), rule(32766, Action::Lookup(254))], rules].concat(),
            numbers: Ok(NUMBERS),
            foreign_routes: vec![],
            interfaces: vec!["eth0".into()],
            fixed: false,
        };
        judge(&facts).into_iter().filter(|f| f.severity != Severity::Fine).map(|f| f.id).collect()
    }

    #[test]
    fn the_kernels_own_rules_and_ours_are_fine() {
        let ours =
            Rule { mark: 0x2040, mask: u32::MAX, protocol: PROTOCOL, ..rule(60, Action::Lookup(8300)) };
        assert_eq!(ids(vec![ours]), <[&str; 0]>::default());
    }

    #[test]
    fn what_leads_everything_elsewhere_before_ours_is_named() {
        for action in [Action::Lookup(100), Action::Lookup(254), Action::Drop, Action::Goto(32766)] {
            assert_eq!(ids(vec![rule(10, action)]), ["rule-in-front"], "{action:?}");
        }
        // Same preference, but there first.
        assert_eq!(ids(vec![rule(60, Action::Lookup(100))]), ["rule-in-front"]);
    }

    #[test]
    fn what_is_asked_later_or_does_not_meet_ours_is_fine() {
        let none: [&str; 0] = [];
        assert_eq!(ids(vec![rule(61, Action::Lookup(100))]), none);
        assert_eq!(ids(vec![rule(10, Action::Goto(20))]), none);
        assert_eq!(ids(vec![rule(10, Action::Nothing)]), none);
        assert_eq!(ids(vec![Rule { iif: Some("wg0".into()), ..rule(10, Action::Lookup(100)) }]), none);
        assert_eq!(ids(vec![Rule { oif: Some("eth0".into()), ..rule(10, Action::Lookup(100)) }]), none);
        assert_eq!(ids(vec![Rule { l3mdev: true, ..rule(10, Action::Lookup(0)) }]), none);
        // Cilium's.
        assert_eq!(ids(vec![Rule { mark: 0x200, mask: 0xf00, ..rule(9, Action::Lookup(2004)) }]), none);
    }

    #[test]
    fn narrowed_and_inverted_rules_are_understood() {
        assert_eq!(ids(vec![Rule { narrowed: true, ..rule(10, Action::Lookup(100)) }]), ["rule-in-front"]);
        assert_eq!(
            ids(vec![Rule { iif: Some("eth0".into()), ..rule(10, Action::Lookup(100)) }]),
            ["rule-in-front"]
        );
        let not_vpn = Rule { mark: 51820, mask: u32::MAX, inverted: true, ..rule(10, Action::Lookup(51820)) };
        assert_eq!(ids(vec![not_vpn]), ["rule-in-front"]);
        let not_ours = Rule { mark: 0x2040, mask: u32::MAX, inverted: true, ..rule(10, Action::Lookup(7)) };
        assert_eq!(ids(vec![not_ours]), <[&str; 0]>::default());
    }

    #[test]
    fn the_numbers_of_an_instance_that_is_here_are_found() {
        let ours =
            Rule { mark: 0x2040, mask: u32::MAX, protocol: PROTOCOL, ..rule(60, Action::Lookup(8300)) };
        assert_eq!(in_use(&[local(), ours]), Some(NUMBERS));
        assert_eq!(in_use(&[local()]), None);
    }

    #[test]
    fn a_mark_that_was_asked_for_and_is_taken_is_told() {
        let theirs = Rule { mark: 0x40, mask: 0xff, ..rule(5000, Action::Lookup(7)) };
        let facts = |fixed| Facts {
            rules: vec![local(), theirs.clone()],
            numbers: Ok(NUMBERS),
            foreign_routes: vec![],
            interfaces: vec![],
            fixed,
        };
        assert_eq!(judge(&facts(true))[0].id, "mark-claimed");
        assert_eq!(judge(&facts(false))[0].id, "rules");
    }

    #[test]
    fn a_table_of_others_or_no_free_number_cannot_work() {
        let facts = Facts {
            rules: vec![local()],
            numbers: Ok(NUMBERS),
            foreign_routes: vec![(Family::V6, "unicast /0 protocol 4".into())],
            interfaces: vec![],
            fixed: false,
        };
        let finding = &judge(&facts)[0];
        assert_eq!((finding.id, finding.severity), ("table-in-use", Severity::CannotWork));
        assert!(finding.cure.ends_with("ip -6 route flush table 8300"), "{finding}");
        let none = Facts { numbers: Err("all taken".into()), ..facts };
        assert_eq!(judge(&none)[0].id, "no-free-numbers");
    }

    #[test]
    fn a_local_rule_may_move_but_not_go() {
        assert!(local_rule(&[rule(100, Action::Lookup(LOCAL))]).is_empty());
        let findings = local_rule(&[rule(32766, Action::Lookup(254))]);
        assert_eq!(findings.iter().map(|f| f.id).collect::<Vec<_>>(), ["local-rule"]);
    }

    #[test]
    fn a_rule_reads_like_ip_rule() {
        let rule = Rule { suppress: Some(0), ..rule(10, Action::Lookup(254)) };
        assert_eq!(
            rule.to_string(),
            "IPv4 rule with preference 10: from all lookup main suppress_prefixlength 0"
        );
    }
}
