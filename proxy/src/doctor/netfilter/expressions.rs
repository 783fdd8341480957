//! Rules as the kernel sends them: lists of expressions, each an operation on registers (linux/netfilter/nf_tables.h).

use std::io;

use super::{
    super::netlink::{ALL, Raw, attribute, attributes, find, text},
    rules::{Action, Chains, Condition, Rule},
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE`, and the same for the elements of a set.
const GET_RULE: u16 = 10 << 8 | 7;
const GET_ELEMENTS: u16 = 10 << 8 | 13;
const NFGENMSG: usize = 4;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// Of meta, ct: the key. Of fib: the result. Of lookup: the register that is looked for.
const KEY: u16 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_FIB_FLAGS: u16 = 3;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_NAT_TYPE: u16 = 1;
/// Of match and target, the extensions of iptables.
const NFTA_EXTENSION_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;

const NFT_META_MARK: u32 = 3;
const NFT_CT_STATE: u32 = 0;
/// Of fib, for `fib daddr type`.
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFT_LOOKUP_F_INV: u32 = 1;
/// `RTN_LOCAL` of linux/rtnetlink.h, and its bit in `struct xt_addrtype_info_v1`.
const LOCAL: u32 = 2;
const XT_ADDRTYPE_INVERT_DEST: u32 = 1 << 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_NAT_SNAT: u32 = 0;
/// `NF_CT_STATE_INVALID_BIT` of linux/netfilter/nf_conntrack_common.h; `XT_CONNTRACK_STATE_INVALID` is the same.
const INVALID: u32 = 1;
/// A start would feel the reading of more chains, and of more rules.
const MAX_CHAINS: usize = 500;
pub(super) const MAX_RULES: usize = 10_000;

/// Reads a base chain and all chains that it leads to.
///
/// # Errors
/// When the kernel refuses, or there are too many rules.
pub(super) fn read(socket: &Raw, family: u8, table: &str, base: &str) -> io::Result<Chains> {
    let mut chains = Chains::new();
    let (mut wanted, mut read) = (vec![base.to_owned()], 0);
    while let Some(name) = wanted.pop() {
        if chains.contains_key(&name) {
            continue;
        }
        let question = [
            vec![family, 0, 0, 0],
            attribute(NFTA_RULE_TABLE, &terminated(table)),
            attribute(NFTA_RULE_CHAIN, &terminated(&name)),
        ];
        let answers = socket.ask(GET_RULE, ALL, &question.concat())?;
        read += answers.len();
        if read > MAX_RULES || chains.len() == MAX_CHAINS {
            return Err(io::Error::other("too many rules"));
        }
        let mut rules = Vec::new();
        for answer in &answers {
            rules.extend(rules_of(answer, |set| elements(socket, family, table, set)));
        }
        for rule in &rules {
            if let Action::Jump(to) | Action::Goto(to) = &rule.action {
                wanted.push(to.clone());
            }
        }
        chains.insert(name, rules);
    }
    Ok(chains)
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The keys and verdicts of a map such as `ct state vmap { invalid : drop }`.
fn elements(socket: &Raw, family: u8, table: &str, set: &str) -> Vec<(u32, Action)> {
    let question = [
        vec![family, 0, 0, 0],
        attribute(NFTA_SET_ELEM_LIST_TABLE, &terminated(table)),
        attribute(NFTA_SET_ELEM_LIST_SET, &terminated(set)),
    ];
    let answers = socket.ask(GET_ELEMENTS, ALL, &question.concat()).unwrap_or_default();
    answers.iter().flat_map(|answer| verdict_map(answer)).collect()
}

fn verdict_map(answer: &[u8]) -> Vec<(u32, Action)> {
    let attributes_of = answer.get(NFGENMSG..).unwrap_or_default();
    let list = find(attributes_of, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let element = |(_, element): &(u16, &[u8])| {
        let key = native(find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?)?;
        Some((key, verdict(find(element, NFTA_SET_ELEM_DATA)?)?))
    };
    attributes(list).iter().filter_map(element).collect()
}

/// One rule, or one for each verdict that its map has for a state of conntrack.
fn rules_of(answer: &[u8], elements: impl Fn(&str) -> Vec<(u32, Action)>) -> Vec<Rule> {
    let list = answer.get(NFGENMSG..).and_then(|rule| find(rule, NFTA_RULE_EXPRESSIONS)).unwrap_or_default();
    let mut reading = Reading::default();
    for (_, expression) in attributes(list).iter().filter(|(kind, _)| *kind == NFTA_LIST_ELEM) {
        let name = find(expression, NFTA_EXPR_NAME).map(text).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        if let Some(set) = reading.take(&name, data) {
            let invalid = elements(&set).into_iter().filter(|(key, _)| key & INVALID != 0);
            return invalid.map(|(_, action)| Rule { condition: Condition::Invalid, action }).collect();
        }
    }
    vec![Rule { condition: reading.condition.unwrap_or(Condition::Always), action: reading.action }]
}

/// What stands in the register that the next comparison looks at.
#[derive(Clone, Copy)]
enum Loaded {
    Mark(u32),
    State(u32),
    /// The kind of the destination.
    Kind,
    Other,
}

struct Reading {
    loaded: Loaded,
    condition: Option<Condition>,
    action: Action,
}

impl Default for Reading {
    fn default() -> Self {
        Self { loaded: Loaded::Other, condition: None, action: Action::Nothing }
    }
}

impl Reading {
    /// Takes one expression; gives the name of a map that decides by the state of conntrack.
    fn take(&mut self, name: &str, data: &[u8]) -> Option<String> {
        let number = |kind| find(data, kind).and_then(big_endian);
        match name {
            "meta" if number(KEY) == Some(NFT_META_MARK) => self.loaded = Loaded::Mark(u32::MAX),
            "ct" if number(KEY) == Some(NFT_CT_STATE) => self.loaded = Loaded::State(u32::MAX),
            "fib"
                if number(KEY) == Some(NFT_FIB_RESULT_ADDRTYPE)
                    && number(NFTA_FIB_FLAGS).is_some_and(|flags| flags & NFTA_FIB_F_DADDR != 0) =>
            {
                self.loaded = Loaded::Kind;
            }
            "meta" | "ct" | "payload" | "fib" | "rt" | "socket" | "exthdr" | "numgen" | "hash" | "osf" => {
                self.loaded = Loaded::Other;
            }
            "bitwise" => self.mask(find(data, NFTA_BITWISE_MASK)),
            "cmp" => self.compare(data),
            "lookup" => {
                let decides = find(data, NFTA_LOOKUP_DREG).is_some();
                if decides && matches!(self.loaded, Loaded::State(_)) && self.condition.is_none() {
                    return find(data, NFTA_LOOKUP_SET).map(text);
                }
                let inverted = number(NFTA_LOOKUP_FLAGS) == Some(NFT_LOOKUP_F_INV);
                let foreign = inverted && matches!(self.loaded, Loaded::Kind);
                self.narrow(if foreign { Condition::Foreign } else { Condition::Some });
            }
            "range" | "limit" | "quota" | "connlimit" | "dynset" => self.narrow(Condition::Some),
            "match" => self.extension(data),
            "target" => {
                self.action = match find(data, NFTA_EXTENSION_NAME).map(text).as_deref() {
                    Some("MASQUERADE" | "SNAT") => Action::Snat,
                    Some("REJECT") => Action::Drop,
                    _ => Action::Nothing,
                }
            }
            "immediate" => {
                let found = find(data, NFTA_IMMEDIATE_DATA).and_then(verdict);
                self.action = found.unwrap_or_else(|| self.action.clone());
            }
            "reject" => self.action = Action::Drop,
            "masq" => self.action = Action::Snat,
            "nat" if number(NFTA_NAT_TYPE) == Some(NFT_NAT_SNAT) => self.action = Action::Snat,
            _ => {}
        }
        None
    }

    fn mask(&mut self, mask: Option<&[u8]>) {
        let mask = mask.and_then(|mask| native(find(mask, NFTA_DATA_VALUE)?)).unwrap_or(u32::MAX);
        match &mut self.loaded {
            Loaded::Mark(m) | Loaded::State(m) => *m = mask,
            Loaded::Kind | Loaded::Other => {}
        }
    }

    fn compare(&mut self, data: &[u8]) {
        let operator = find(data, NFTA_CMP_OP).and_then(big_endian);
        let value = find(data, NFTA_CMP_DATA).and_then(|value| native(find(value, NFTA_DATA_VALUE)?));
        self.narrow(match (self.loaded, operator, value) {
            (Loaded::Mark(mask), Some(NFT_CMP_EQ), Some(value)) => Condition::Mark { value, mask },
            (Loaded::State(mask), Some(NFT_CMP_NEQ), Some(0)) if mask & INVALID != 0 => Condition::Invalid,
            (Loaded::State(_), Some(NFT_CMP_EQ), Some(INVALID)) => Condition::Invalid,
            (Loaded::Kind, Some(NFT_CMP_NEQ), Some(LOCAL)) => Condition::Foreign,
            _ => Condition::Some,
        });
    }

    /// An extension of iptables; its data is the kernel's structure.
    fn extension(&mut self, data: &[u8]) {
        let word = |info: &[u8], at: usize| native(info.get(at..)?);
        let info = find(data, NFTA_MATCH_INFO).unwrap_or_default();
        let condition = match find(data, NFTA_EXTENSION_NAME).map(text).as_deref() {
            // struct xt_mark_mtinfo1: mark, mask, invert.
            Some("mark") if info.get(8) == Some(&0) => {
                word(info, 0).zip(word(info, 4)).map(|(value, mask)| Condition::Mark { value, mask })
            }
            // struct xt_addrtype_info_v1: kinds of source and destination, flags.
            Some("addrtype") => {
                let (kinds, flags) = (info.get(2..4), word(info, 4));
                let local = kinds == Some(&(1_u16 << LOCAL).to_ne_bytes()[..]);
                (local && flags == Some(XT_ADDRTYPE_INVERT_DEST)).then_some(Condition::Foreign)
            }
            Some("conntrack") => {
                states(info).filter(|states| states & INVALID != 0).map(|_| Condition::Invalid)
            }
            Some("state") => word(info, 0).filter(|states| states & INVALID != 0).map(|_| Condition::Invalid),
            // A remark is no condition.
            Some("comment") => return,
            _ => None,
        };
        self.narrow(condition.unwrap_or(Condition::Some));
    }

    /// A mark counts whatever stands beside it: whoever accepts ours has thought of Sheer.
    fn narrow(&mut self, condition: Condition) {
        self.condition = Some(match (self.condition, condition) {
            (Some(mark @ Condition::Mark { .. }), _) | (_, mark @ Condition::Mark { .. }) => mark,
            (None, condition) => condition,
            // Of some protocol only, from somewhere only: still a rule about invalid ones.
            (Some(Condition::Invalid), _) | (_, Condition::Invalid) => Condition::Invalid,
            _ => Condition::Some,
        });
    }
}

/// The states in `struct xt_conntrack_mtinfo3` (and 2): behind eight addresses, two times, four ports and a number, the
/// flags of what is asked and of what is inverted, the states.
fn states(info: &[u8]) -> Option<u32> {
    const MATCH_FLAGS: usize = 8 * 16 + 2 * 4 + 2 + 4 * 2;
    const STATE: u16 = 1;
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk::<2>()?));
    let (asked, inverted) = (half(MATCH_FLAGS)?, half(MATCH_FLAGS + 2)?);
    (asked & STATE != 0 && inverted & STATE == 0).then(|| half(MATCH_FLAGS + 4)).flatten().map(u32::from)
}

fn verdict(data: &[u8]) -> Option<Action> {
    let verdict = find(data, NFTA_DATA_VERDICT)?;
    let chain = || find(verdict, NFTA_VERDICT_CHAIN).map(text);
    match find(verdict, NFTA_VERDICT_CODE).and_then(big_endian)?.cast_signed() {
        0 => Some(Action::Drop),
        1 => Some(Action::Accept),
        -3 => chain().map(Action::Jump),
        -4 => chain().map(Action::Goto),
        -5 => Some(Action::Return),
        _ => Some(Action::Nothing),
    }
}

pub(super) fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk::<4>()?))
}

/// What is compared with a register stands as the register does.
fn native(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk::<4>()?))
}
