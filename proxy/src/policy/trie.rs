//! Prefixes into the rows of a trie; see [`sheer_common::classify`] for how they are read.

use sheer_common::{
    abi::Bits,
    classify::{LANES, MAX_INDEX, NO_SERVICE, Node, Row},
};

use super::{CompileError, classes::Classes};

/// What holds within a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// None of the services that wider prefixes have brought: a range that is left alone unless named.
    Clear,
    /// One more service.
    Add(u16),
}

/// A prefix and what holds within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    /// Bits beyond the length are zero.
    pub(super) bits: Bits,
    pub(super) length: u8,
    pub(super) effect: Effect,
}

/// A list of so many prefixes begins with a table, which takes 256 KiB.
const LONG: usize = 4096;

/// The longest stretch that one guard consumes: whole bytes, less than a word.
const MAX_CONSUMED: u8 = 56;

/// Writes tries into rows.
pub(super) struct Builder<'a> {
    pub(super) rows: &'a mut Vec<Row>,
    pub(super) classes: &'a mut Classes,
}

impl Builder<'_> {
    /// A trie of these prefixes, in any order; `outside` is the class of addresses that none of them covers.
    pub(super) fn build(&mut self, mut items: Vec<Item>, outside: u32) -> Result<Node, CompileError> {
        items.sort_unstable();
        if items.len() < LONG { self.node(&items, 0, outside) } else { self.table(&items, outside) }
    }

    /// Tells the first two bytes apart.
    fn table(&mut self, items: &[Item], class: u32) -> Result<Node, CompileError> {
        let mut nodes = Vec::with_capacity(1 << 16);
        for (class, items) in self.split(items, 0, class)? {
            for (class, items) in self.split(&items, 8, class)? {
                nodes.push(self.node(&items, 16, class)?);
            }
        }
        let rows = self.push(rows_of(&nodes))?;
        Ok(Node::table(rows))
    }

    /// `items` are sorted, share their first `depth` bits and are no shorter; `class` is what holds around them.
    fn node(&mut self, items: &[Item], depth: u8, class: u32) -> Result<Node, CompileError> {
        let covering = items.iter().take_while(|item| item.length == depth).count();
        let (covering, items) = items.split_at(covering);
        let class = self.apply(covering, class)?;
        let (Some(first), Some(last)) = (items.first(), items.last()) else {
            return Ok(Node::class(class));
        };
        let shortest = items.iter().map(|item| item.length).min().unwrap_or(depth);
        let shared = common_bits(first.bits, last.bits).min(shortest);
        if shortest == last.length && first.bits == last.bits {
            let inside = Node::class(self.apply(items, class)?);
            return self.guard(first.bits, depth..shared, inside, class);
        }
        let whole_bytes = (shared - shared % 8).min(depth + MAX_CONSUMED);
        if whole_bytes > depth {
            let inside = self.node(items, whole_bytes, class)?;
            return self.guard(first.bits, depth..whole_bytes, inside, class);
        }
        self.branch(items, depth, class)
    }

    /// What `class` becomes within prefixes that all cover the same addresses, the shorter ones first.
    fn apply(&mut self, items: &[Item], class: u32) -> Result<u32, CompileError> {
        items.iter().try_fold(class, |class, item| match item.effect {
            Effect::Clear => Ok(NO_SERVICE),
            Effect::Add(service) => self.classes.with(class, service),
        })
    }

    fn guard(
        &mut self,
        bits: Bits,
        stretch: std::ops::Range<u8>,
        hit: Node,
        miss: u32,
    ) -> Result<Node, CompileError> {
        let length = stretch.end - stretch.start;
        let (rest, mask) = (shifted(bits, stretch.start), Bits::mask(length));
        let ends = u64::from(hit.0) | u64::from(Node::class(miss).0) << 32;
        // What a last guard consumes does not matter: nothing follows.
        let consumed = if length > MAX_CONSUMED { 0 } else { u64::from(length) };
        let words = [rest.high & mask.high, rest.low & mask.low, mask.high, mask.low, ends, consumed, 0, 0];
        Ok(Node::guard(self.push([Row { words }])?))
    }

    /// Tells the byte behind `depth` apart.
    fn branch(&mut self, items: &[Item], depth: u8, class: u32) -> Result<Node, CompileError> {
        let parts = self.split(items, depth, class)?;
        let nodes = parts.iter().map(|(class, items)| self.node(items, depth + 8, *class));
        let nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
        Ok(Node::branch(self.push(branch_rows(&nodes))?))
    }

    /// What holds within each of the 256 values of the byte behind `depth`, and the prefixes that go on from there.
    fn split(
        &mut self,
        items: &[Item],
        depth: u8,
        class: u32,
    ) -> Result<Vec<(u32, Vec<Item>)>, CompileError> {
        let mut parts = vec![(class, Vec::new()); 256];
        let (mut short, long): (Vec<&Item>, Vec<&Item>) =
            items.iter().partition(|item| item.length <= depth + 8);
        // Wider ones first: what they bring may be cleared within.
        short.sort_by_key(|item| (item.length, item.effect));
        for item in short {
            let at = byte_at(item.bits, depth);
            let span = 1 << (depth + 8 - item.length.max(depth));
            for (class, _) in &mut parts[at..at + span] {
                *class = self.apply(std::slice::from_ref(item), *class)?;
            }
        }
        long.into_iter().for_each(|item| parts[byte_at(item.bits, depth)].1.push(*item));
        Ok(parts)
    }

    /// The number of the first of these rows.
    fn push(&mut self, rows: impl IntoIterator<Item = Row>) -> Result<u32, CompileError> {
        let at = self.rows.len();
        self.rows.extend(rows);
        if self.rows.len() >= MAX_INDEX as usize {
            return Err(CompileError::TooManyPrefixes);
        }
        Ok(at as u32)
    }
}

/// The branch and, behind it, the nodes of its runs.
fn branch_rows(nodes: &[Node]) -> Vec<Row> {
    let mut branch = Row::default();
    let mut runs: Vec<Node> = Vec::new();
    for (byte, node) in nodes.iter().enumerate() {
        if byte % 64 == 0 {
            branch.words[4] |= (runs.len() as u64) << (byte / 64 * 16);
        }
        if runs.last() != Some(node) {
            branch.words[byte / 64] |= 1 << (byte % 64);
            runs.push(*node);
        }
    }
    [branch].into_iter().chain(rows_of(&runs)).collect()
}

/// Nodes, sixteen in a row.
fn rows_of(nodes: &[Node]) -> impl Iterator<Item = Row> + '_ {
    nodes.chunks(LANES as usize).map(|nodes| {
        let mut row = Row::default();
        (0..).zip(nodes).for_each(|(lane, node)| row.set_lane(lane, node.0));
        row
    })
}

/// Leading bits that two numbers share.
fn common_bits(a: Bits, b: Bits) -> u8 {
    let (high, low) = (a.high ^ b.high, a.low ^ b.low);
    (if high == 0 { 64 + low.leading_zeros() } else { high.leading_zeros() }) as u8
}

/// The byte behind the first `depth` bits.
fn byte_at(bits: Bits, depth: u8) -> usize {
    (shifted(bits, depth).high >> 56) as usize
}

/// The number without its first `depth` bits, below 128.
fn shifted(bits: Bits, depth: u8) -> Bits {
    let whole = u128::from(bits.high) << 64 | u128::from(bits.low);
    let rest = whole << depth;
    Bits { high: (rest >> 64) as u64, low: rest as u64 }
}
