//! `ip rule`, seen as values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::IpVersion;
use rustix::io::Errno;

use super::netlink::{Netlink, collect, is_errno, refused};
use super::{Family, PROTOCOL, RouteError};

/// The device that brings back what this host sends to itself.
const LOOPBACK: &str = "lo";

/// The parts of a rule that matter here (linux/fib_rules.h).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    /// Mark and mask; both 0 when the rule looks at no mark.
    pub(super) mark: u32,
    pub(super) mask: u32,
    /// Whether everything that does *not* match is meant.
    pub(super) inverted: bool,
    /// The incoming interface by name: the rule outlives the device and takes effect again when it comes back.
    pub(super) interface: Option<String>,
    /// The outgoing interface by name: one that the packet is bound to, before it has been routed.
    pub(super) bound_to: Option<String>,
    /// The prefix of the source address.
    pub(super) source: Option<IpNet>,
    /// The table to look up; 0 for rules that do something else.
    pub(super) table: u32,
    pub(super) protocol: u8,
    /// Whether it narrows by anything else (destination, ports, uid …), which ours never do.
    pub(super) narrowed: bool,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            family: Family::V4,
            priority: 0,
            mark: 0,
            mask: 0,
            inverted: false,
            interface: None,
            bound_to: None,
            source: None,
            table: 0,
            protocol: 0,
            narrowed: false,
        }
    }
}

impl Rule {
    /// The rule that leads what we marked on `interface` to our table.
    pub(super) fn ours(family: Family, priority: u32, mark: u32, interface: &str, table: u32) -> Self {
        Self {
            family,
            priority,
            mark,
            mask: u32::MAX,
            interface: Some(interface.to_owned()),
            table,
            protocol: PROTOCOL,
            ..Self::default()
        }
    }

    /// The rule that delivers here what a program has turned back on its way out: it is routed with the mark, bound to `lo`.
    /// What the proxy itself sends has the mark too, and is bound to nothing.
    pub(super) fn turned_back(family: Family, priority: u32, mark: u32, table: u32) -> Self {
        Self {
            family,
            priority,
            mark,
            mask: u32::MAX,
            bound_to: Some(LOOPBACK.to_owned()),
            table,
            protocol: PROTOCOL,
            ..Self::default()
        }
    }

    /// The rule that delivers here what a server on a loopback address answers to the address of a client. Such packets
    /// never leave: without the rule, the kernel refuses to send them.
    pub(super) fn from_loopback(family: Family, priority: u32, table: u32) -> Self {
        let source = match family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
            Family::V6 => IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
        };
        Self {
            family,
            priority,
            interface: Some(LOOPBACK.to_owned()),
            source: Some(source),
            table,
            protocol: PROTOCOL,
            ..Self::default()
        }
    }

    fn from_message(family: Family, message: &RuleMessage) -> Self {
        let header = &message.header;
        let mut rule = Self {
            family,
            table: u32::from(header.table),
            inverted: header.flags.contains(RuleFlags::Invert),
            narrowed: header.dst_len != 0 || header.tos != 0,
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                RuleAttribute::Iifname(name) => rule.interface = Some(name.clone()),
                RuleAttribute::Oifname(name) => rule.bound_to = Some(name.clone()),
                RuleAttribute::Source(address) => rule.source = IpNet::new(*address, header.src_len).ok(),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
                RuleAttribute::SuppressPrefixLen(_) | RuleAttribute::SuppressIfGroup(_) => {}
                _ => rule.narrowed = true,
            }
        }
        if header.action != RuleAction::ToTable {
            rule.table = 0;
        }
        rule
    }

    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        if self.mask != 0 {
            message.attributes.extend([RuleAttribute::FwMark(self.mark), RuleAttribute::FwMask(self.mask)]);
        }
        message.attributes.extend(self.interface.clone().map(RuleAttribute::Iifname));
        message.attributes.extend(self.bound_to.clone().map(RuleAttribute::Oifname));
        if let Some(source) = self.source {
            message.header.src_len = source.prefix_len();
            message.attributes.push(RuleAttribute::Source(source.addr()));
        }
        message
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rule {}:", self.family, self.priority)?;
        if let Some(source) = &self.source {
            write!(f, " from {source}")?;
        }
        if self.mask != 0 {
            write!(f, " fwmark {:#x}/{:#x}", self.mark, self.mask)?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " iif {interface}")?;
        }
        if let Some(interface) = &self.bound_to {
            write!(f, " oif {interface}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

/// What has to change so that `present` becomes `wanted`, as far as we own it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) add: Vec<Rule>,
    pub(super) delete: Vec<Rule>,
}

/// Compares the kernel's rules with the wanted ones. Only rules with our protocol number, this mark (or none) and this table
/// are ever deleted; a foreign one that says exactly the same serves as well and is left to its owner.
pub(super) fn difference(present: &[Rule], wanted: &[Rule], mark: u32, table: u32) -> Difference {
    let same = |a: &Rule, b: &Rule| Rule { protocol: b.protocol, ..a.clone() } == *b;
    Difference {
        add: wanted.iter().filter(|want| !present.iter().any(|rule| same(rule, want))).cloned().collect(),
        delete: present
            .iter()
            .filter(|rule| rule.protocol == PROTOCOL && rule.table == table)
            .filter(|rule| rule.mark == mark || rule.mask == 0)
            .filter(|rule| !wanted.contains(rule))
            .cloned()
            .collect(),
    }
}

/// All rules of a family; none when the kernel does not have the family.
pub(super) async fn list(netlink: &Netlink, family: Family) -> Result<Vec<Rule>, RouteError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    match collect(&format!("the {family} rules"), netlink.handle.rule().get(version).execute()).await {
        Ok(messages) => Ok(messages.iter().map(|message| Rule::from_message(family, message)).collect()),
        Err(error) if error.errno().is_some_and(without_family) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn without_family(errno: i32) -> bool {
    matches!(Errno::from_raw_os_error(errno), Errno::AFNOSUPPORT | Errno::OPNOTSUPP)
}

/// Adds a rule; that it exists already is fine.
pub(super) async fn add(netlink: &Netlink, rule: &Rule) -> Result<(), RouteError> {
    let mut request = netlink.handle.rule().add();
    *request.message_mut() = rule.to_message();
    match request.execute().await {
        Err(error) if !is_errno(&error, Errno::EXIST) => Err(refused("add", rule.to_string(), error)),
        _ => Ok(()),
    }
}

/// Deletes a rule; that it is gone already is fine.
pub(super) async fn delete(netlink: &Netlink, rule: &Rule) -> Result<(), RouteError> {
    match netlink.handle.rule().del(rule.to_message()).execute().await {
        Err(error) if !is_errno(&error, Errno::NOENT) => Err(refused("delete", rule.to_string(), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u32 = 0x2040;
    const TABLE: u32 = 8300;

    fn rule(interface: &str) -> Rule {
        Rule::ours(Family::V4, 60, MARK, interface, TABLE)
    }

    #[test]
    fn a_rule_survives_the_way_through_a_message() {
        for family in Family::ALL {
            for rule in [
                Rule::ours(family, 60, MARK, "eth0", TABLE),
                Rule::turned_back(family, 60, MARK, TABLE),
                Rule::from_loopback(family, 60, TABLE),
            ] {
                assert_eq!(Rule::from_message(family, &rule.to_message()), rule);
            }
        }
    }

    #[test]
    fn identical_rules_are_kept_and_missing_ones_added() {
        let change = difference(&[rule("eth0")], &[rule("eth0"), rule("eth1")], MARK, TABLE);
        assert_eq!(change, Difference { add: vec![rule("eth1")], delete: vec![] });
    }

    #[test]
    fn a_foreign_rule_that_says_the_same_is_kept_and_not_doubled() {
        let foreign = Rule { protocol: 3, ..rule("eth0") };
        assert_eq!(difference(&[foreign], &[rule("eth0")], MARK, TABLE), Difference::default());
    }

    #[test]
    fn what_a_crash_left_for_another_interface_or_priority_is_deleted() {
        let stale = [rule("eth9"), Rule { priority: 61, ..rule("eth0") }];
        let change = difference(&stale, &[rule("eth0")], MARK, TABLE);
        assert_eq!(change, Difference { add: vec![rule("eth0")], delete: stale.to_vec() });
    }

    #[test]
    fn rules_of_others_and_of_other_instances_are_never_deleted() {
        let others = [
            Rule { protocol: 0, ..rule("eth9") },
            Rule { mark: MARK + 1, ..rule("eth9") },
            Rule { table: TABLE + 1, ..rule("eth9") },
        ];
        assert_eq!(difference(&others, &[], MARK, TABLE), Difference::default());
    }

    #[test]
    fn a_rule_that_narrows_further_does_not_count_as_ours() {
        let narrowed = Rule { narrowed: true, ..rule("eth0") };
        assert_eq!(difference(&[narrowed], &[rule("eth0")], MARK, TABLE).add, vec![rule("eth0")]);
    }

    #[test]
    fn a_rule_reads_like_ip_rule() {
        assert_eq!(
            Rule::from_loopback(Family::V4, 60, TABLE).to_string(),
            "IPv4 rule 60: from 127.0.0.0/8 iif lo lookup 8300"
        );
        assert_eq!(rule("eth0").to_string(), "IPv4 rule 60: fwmark 0x2040/0xffffffff iif eth0 lookup 8300");
    }
}
