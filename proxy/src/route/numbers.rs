//! Which mark, routing table and rule priority an instance uses.

use super::netlink::Netlink;
use super::rules::{self, Rule};
use super::{Family, RouteError};

/// The mark of instance 0; instance n has the number n above it.
///
/// Only bits that no known neighbour looks at: Cilium keeps 0x0f00 (0x200, 0xa00, …), AWS's VPC CNI 0x80,
/// kube-proxy 0x4000 and 0x8000, Tailscale 0xff0000, Calico 0xffff0000, Weave 0x20000. Neither a number that others
/// set as a whole: 1 and 2 (TPROXY guides for HAProxy and Squid), 1337 = 0x539 (Istio), 51820 = 0xca6c (wg-quick).
/// Only OpenWrt's mwan3 (0x3f00) overlaps; there the mark has to be set in the config.
const MARK_BASE: u32 = 0x2040;

/// The routing table of instance 0.
///
/// Not 52 (Tailscale), 100 (TPROXY guides, Istio's ambient mode), 133 (Istio), 220 (strongSwan), 1000 and up (VRF in
/// most guides), 2004 and 2005 (Cilium), 51820 and up (wg-quick), 253 to 255 (the kernel).
const TABLE_BASE: u32 = 8300;

/// The rule priority of instance 0.
///
/// Ours must come before every rule that would route a marked packet away: Cilium's (100 and up; it also moves the
/// local table to 100), strongSwan's 220, AWS's 512, the VRF rule at 1000, Tailscale's 5210 to 5270, those of
/// wg-quick and systemd-networkd (just before 32766). They take only what carries our mark and came in on our
/// interface, so that standing first costs the others nothing. After 0 (local) and Cilium's 9, 10, 20 and 30.
const PRIORITY_BASE: u32 = 60;

/// How many instances can run side by side with numbers chosen by Sheer.
pub const INSTANCES_MAX: u32 = 32;

/// The three numbers of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// The packet mark (`skb->mark`, `SO_MARK`), compared as a whole.
    pub mark: u32,
    /// The routing table.
    pub table: u32,
    /// The priority of the rules; lower ones are asked first.
    pub priority: u32,
}

/// A mark and a table that some `ip rule` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim {
    /// The mark that the rule compares with; 0 if it looks at none.
    pub mark: u32,
    /// Which bits of the mark it looks at; 0 if none.
    pub mask: u32,
    /// The table that it leads to; 0 if to none.
    pub table: u32,
}

/// What the rules of both families claim, ours and everybody else's, without duplicates.
///
/// # Errors
/// When the rules cannot be listed.
pub async fn claims() -> Result<Vec<Claim>, RouteError> {
    let netlink = Netlink::open()?;
    let mut claims = Vec::new();
    for family in Family::ALL {
        claims.extend(rules::list(&netlink, family).await?.iter().filter_map(claim));
    }
    claims.sort_unstable();
    claims.dedup();
    Ok(claims)
}

/// The first numbers that no claim stands against.
///
/// # Errors
/// [`RouteError::NoFreeNumbers`] when all are taken.
pub fn choose_numbers(taken: &[Claim]) -> Result<Numbers, RouteError> {
    (0..INSTANCES_MAX)
        .map(|n| Numbers { mark: MARK_BASE + n, table: TABLE_BASE + n, priority: PRIORITY_BASE + n })
        .find(|numbers| !taken.iter().any(|claim| claim.collides(*numbers)))
        .ok_or(RouteError::NoFreeNumbers { instances: INSTANCES_MAX })
}

impl Claim {
    fn collides(self, numbers: Numbers) -> bool {
        self.table == numbers.table || (self.mask != 0 && numbers.mark & self.mask == self.mark)
    }
}

/// What a rule claims. An inverted one ("not fwmark", as wg-quick sets it) claims no mark: it looks for every other.
fn claim(rule: &Rule) -> Option<Claim> {
    let mask = if rule.inverted { 0 } else { rule.mask };
    let mark = rule.mark & mask;
    let table = if is_kernels_table(rule.table) { 0 } else { rule.table };
    (mask != 0 || table != 0).then_some(Claim { mark, mask, table })
}

/// Unspecified, default, main and local: named by most hosts' rules, never offered by us.
fn is_kernels_table(table: u32) -> bool {
    table == 0 || (253..=255).contains(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim_of(mark: u32, mask: u32, table: u32) -> Claim {
        Claim { mark, mask, table }
    }

    #[test]
    fn the_first_instance_gets_the_base_numbers() {
        let numbers = choose_numbers(&[]).unwrap();
        assert_eq!(numbers, Numbers { mark: MARK_BASE, table: TABLE_BASE, priority: PRIORITY_BASE });
    }

    #[test]
    fn a_taken_mark_or_table_moves_on_by_one() {
        let by_mark = choose_numbers(&[claim_of(MARK_BASE, u32::MAX, 7)]).unwrap();
        let by_table = choose_numbers(&[claim_of(0, 0, TABLE_BASE)]).unwrap();
        let expected = Numbers { mark: MARK_BASE + 1, table: TABLE_BASE + 1, priority: PRIORITY_BASE + 1 };
        assert_eq!((by_mark, by_table), (expected, expected));
    }

    #[test]
    fn all_numbers_taken_is_an_error() {
        let taken: Vec<Claim> = (0..INSTANCES_MAX).map(|n| claim_of(0, 0, TABLE_BASE + n)).collect();
        assert!(matches!(choose_numbers(&taken), Err(RouteError::NoFreeNumbers { .. })));
    }

    #[test]
    fn no_known_neighbour_matches_any_of_our_marks() {
        let neighbours = [
            (0x200, 0xf00),         // Cilium, to its proxy
            (0xa00, 0xf00),         // Cilium, from its proxy
            (0x80, 0x80),           // AWS VPC CNI
            (0x4000, 0x4000),       // kube-proxy, masquerade
            (0x8000, 0x8000),       // kube-proxy, drop
            (0x80000, 0xff_0000),   // Tailscale
            (0x10000, 0xffff_0000), // Calico
            (0x539, 0xfff),         // Istio
            (1, u32::MAX),          // TPROXY guides
            (51820, u32::MAX),      // wg-quick
        ];
        for n in 0..INSTANCES_MAX {
            let numbers = Numbers { mark: MARK_BASE + n, table: TABLE_BASE + n, priority: PRIORITY_BASE + n };
            for (mark, mask) in neighbours {
                assert!(!claim_of(mark, mask, 0).collides(numbers), "{numbers:x?} meets {mark:#x}/{mask:#x}");
            }
        }
    }

    #[test]
    fn an_inverted_rule_claims_its_table_only() {
        let rule = Rule {
            family: Family::V4,
            priority: 32764,
            mark: 51820,
            mask: u32::MAX,
            inverted: true,
            table: 51820,
            ..Rule::default()
        };
        assert_eq!(claim(&rule), Some(Claim { mark: 0, mask: 0, table: 51820 }));
    }
}
