//! The rules of a base chain, as far as they decide about intercepted packets.
//!
//! A rule is brought down to what it asks for and what it does. Most are conditions that are not understood: they may
//! accept intercepted packets too, or may not.

use std::collections::HashMap;

/// `NFT_JUMP_STACK_SIZE`: the kernel lets no rule set go deeper.
const DEPTH: usize = 16;
/// Chains that lead to each other in many ways are not followed for ever.
const STEPS: usize = 100_000;

/// What a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    Always,
    /// Among other things perhaps, this mark.
    Mark { value: u32, mask: u32 },
    /// A destination that is not this host's own, as that of nearly all that is intercepted.
    Foreign,
    /// What conntrack takes for invalid.
    Invalid,
    /// Something else.
    Some,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    /// Reject too.
    Drop,
    Jump(String),
    Goto(String),
    Return,
    /// Changes the source address.
    Snat,
    /// Counts, logs, or something that leaves the packet's way alone.
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) condition: Condition,
    pub(super) action: Action,
}

/// The rules of one table's chains, by the name of the chain.
pub(super) type Chains = HashMap<String, Vec<Rule>>;

/// What becomes of marked packets in a base chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Dropped in the end, if no rule that was not understood accepts them.
    pub(super) dropped: bool,
    /// Dropped where conntrack takes them for invalid.
    pub(super) invalid_dropped: bool,
    /// Their source address may be changed.
    pub(super) snat: bool,
}

/// Goes through a base chain as a packet with this mark would, that meets no condition but those understood.
pub(super) fn fate(chains: &Chains, base: &str, policy_drops: bool, mark: u32) -> Fate {
    let mut walk = Walk { chains, mark, steps: STEPS, fate: Fate::default() };
    walk.fate.dropped = match walk.chain(base, DEPTH) {
        End::Decided { dropped } => dropped,
        End::Through => policy_drops,
    };
    walk.fate
}

#[derive(Clone, Copy)]
enum End {
    Decided { dropped: bool },
    Through,
}

struct Walk<'a> {
    chains: &'a Chains,
    mark: u32,
    /// Chains that lead to each other in many ways would take for ever.
    steps: usize,
    fate: Fate,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> End {
        let Some(below) = depth.checked_sub(1) else { return End::Through };
        let chains = self.chains;
        for rule in chains.get(name).into_iter().flatten() {
            self.steps = self.steps.saturating_sub(1);
            if self.steps == 0 {
                break;
            }
            if let Some(end) = self.rule(rule, below) {
                return end;
            }
        }
        End::Through
    }

    /// None where the next rule is asked.
    fn rule(&mut self, rule: &Rule, below: usize) -> Option<End> {
        let certain = match rule.condition {
            Condition::Always | Condition::Foreign => true,
            Condition::Mark { value, mask } if self.mark & mask == value => true,
            Condition::Mark { .. } => return None,
            Condition::Invalid => {
                self.fate.invalid_dropped |= match &rule.action {
                    Action::Drop => true,
                    Action::Jump(to) | Action::Goto(to) => {
                        matches!(self.chain(to, below), End::Decided { dropped: true })
                    }
                    _ => false,
                };
                return None;
            }
            Condition::Some => false,
        };
        let (end, leaves) = match &rule.action {
            Action::Accept => (End::Decided { dropped: false }, true),
            Action::Drop => (End::Decided { dropped: true }, true),
            Action::Return => (End::Through, true),
            Action::Jump(to) => (self.chain(to, below), false),
            Action::Goto(to) => (self.chain(to, below), true),
            Action::Snat => {
                self.fate.snat = true;
                return None;
            }
            Action::Nothing => return None,
        };
        (certain && (leaves || matches!(end, End::Decided { .. }))).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u32 = 0x2040;
    const OURS: Condition = Condition::Mark { value: MARK, mask: u32::MAX };

    fn rule(condition: Condition, action: Action) -> Rule {
        Rule { condition, action }
    }

    fn of(chains: &[(&str, Vec<Rule>)], policy_drops: bool) -> Fate {
        let chains = chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())).collect();
        fate(&chains, "input", policy_drops, MARK)
    }

    fn dropped(rules: Vec<Rule>, policy_drops: bool) -> bool {
        of(&[("input", rules)], policy_drops).dropped
    }

    #[test]
    fn the_policy_decides_unless_a_rule_does() {
        assert!(dropped(vec![], true) && !dropped(vec![], false));
        assert!(dropped(vec![rule(Condition::Some, Action::Accept)], true));
        assert!(!dropped(vec![rule(OURS, Action::Accept)], true));
        assert!(dropped(vec![rule(Condition::Mark { value: 1, mask: 1 }, Action::Accept)], true));
        assert!(dropped(vec![rule(Condition::Always, Action::Drop)], false));
        assert!(!dropped(vec![rule(Condition::Some, Action::Drop)], false));
        let late = vec![rule(Condition::Always, Action::Drop), rule(OURS, Action::Accept)];
        assert!(dropped(late, false), "an accepting rule behind the drop helps nobody");
    }

    #[test]
    fn jumps_are_followed_and_come_back() {
        let jump = |condition| vec![rule(condition, Action::Jump("more".into()))];
        let more = |rules| ("more", rules);
        let drop = || more(vec![rule(Condition::Always, Action::Drop)]);
        assert!(of(&[("input", jump(Condition::Always)), drop()], false).dropped);
        assert!(!of(&[("input", jump(Condition::Some)), drop()], false).dropped);
        let accept = more(vec![rule(OURS, Action::Accept)]);
        assert!(!of(&[("input", jump(Condition::Always)), accept], true).dropped);
        let back =
            more(vec![rule(Condition::Always, Action::Return), rule(Condition::Always, Action::Accept)]);
        assert!(of(&[("input", jump(Condition::Always)), back], true).dropped);
        let gone = vec![rule(Condition::Always, Action::Goto("more".into())), rule(OURS, Action::Accept)];
        assert!(of(&[("input", gone), more(vec![])], true).dropped, "goto does not come back");
    }

    #[test]
    fn chains_that_lead_to_each_other_come_to_an_end() {
        let jumps = vec![rule(Condition::Some, Action::Jump("input".into())); 10];
        assert!(of(&[("input", jumps)], true).dropped);
    }

    #[test]
    fn invalid_ones_and_source_nat_are_seen_unless_our_mark_goes_before() {
        let rules = vec![rule(Condition::Invalid, Action::Drop), rule(Condition::Some, Action::Snat)];
        let expected = Fate { dropped: false, invalid_dropped: true, snat: true };
        assert_eq!(of(&[("input", rules.clone())], false), expected);
        let logged = vec![rule(Condition::Invalid, Action::Jump("log".into()))];
        let log = vec![rule(Condition::Always, Action::Nothing), rule(Condition::Always, Action::Drop)];
        let fate = of(&[("input", logged), ("log", log)], false);
        assert!(fate.invalid_dropped && !fate.dropped);
        let exempted = [vec![rule(OURS, Action::Accept)], rules].concat();
        assert_eq!(of(&[("input", exempted)], false), Fate::default());
    }
}
