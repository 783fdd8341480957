//! Which service takes a connection: first match over any number of rules, at a cost that does not grow with them.
//!
//! Each of four dimensions (destination, client, port with protocol, interface) is cut into *classes*: sets of
//! values that the same services accept. A class is a bitmap of those services. A packet is mapped to one class in each
//! dimension; the first bit that all four bitmaps have is the service.
//!
//! Ports are a table. Addresses go through a trie of bytes: a *branch* tells the 256 values of a byte apart, with
//! equal neighbours stored once; a *guard* stands for a stretch of the address in which only one value leads on. The
//! first two bytes of a long list are a *table*. So a lookup takes at most one step for each byte of the address,
//! whether there are ten prefixes or a million.
//!
//! All of it is plain rows of numbers, which are written to maps for the programs and kept by the proxy for itself:
//! both run this code.

use crate::{
    abi::{Bits, Protocol},
    assert_size,
    flow::FlowKey,
    policy::{MAX_SERVICES, Policy},
};

const WORDS: usize = MAX_SERVICES / 64;

/// A set of services: value of the `classes` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// Bit n: `services[n]` is not zero.
    pub summary: u64,
    /// Bit n of word m: the service number 64 m + n.
    pub services: [u64; WORDS],
}
assert_size!(Class, 520);

impl Class {
    /// No service.
    pub const EMPTY: Self = Self { summary: 0, services: [0; WORDS] };

    /// Adds a service, below [`MAX_SERVICES`].
    pub const fn insert(&mut self, service: usize) {
        self.services[service / 64] |= 1 << (service % 64);
        self.summary |= 1 << (service / 64);
    }

    /// Takes a service out.
    pub const fn remove(&mut self, service: usize) {
        self.services[service / 64] &= !(1 << (service % 64));
        if self.services[service / 64] == 0 {
            self.summary &= !(1 << (service / 64));
        }
    }

    /// Whether a service is in it.
    #[must_use]
    pub const fn contains(&self, service: usize) -> bool {
        self.services[service / 64] & (1 << (service % 64)) != 0
    }
}

/// The class of no service in every policy.
pub const NO_SERVICE: u32 = 0;

/// A row of the `nodes` map: a branch, a guard, or sixteen numbers of 32 bits, as ports and tables have them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// - of a branch: words 0 to 3 are a bitmap of the byte values at which a run of equal nodes begins, word 4 has four
    ///   counts of 16 bits: how many runs begin in the words before. The runs' nodes are in the rows behind.
    /// - of a guard: the bits to be met (0, 1), their mask (2, 3), the nodes for hit and miss (low and high half of 4),
    ///   how many bits a hit consumes (5).
    /// - of numbers: sixteen of them, the even ones in the low halves.
    pub words: [u64; 8],
}
assert_size!(Row, 64);

/// Numbers in a [`Row`].
pub const LANES: u32 = 16;

impl Row {
    /// A number of a row of numbers; `lane` counts modulo [`LANES`].
    #[inline(always)]
    #[must_use]
    pub const fn lane(&self, lane: u32) -> u32 {
        let pair = self.words[(lane as usize >> 1) & 7];
        (pair >> ((lane & 1) * 32)) as u32
    }

    /// Sets a number.
    pub const fn set_lane(&mut self, lane: u32, value: u32) {
        let shift = (lane & 1) * 32;
        let pair = &mut self.words[(lane as usize >> 1) & 7];
        *pair = *pair & !(0xffff_ffff << shift) | (value as u64) << shift;
    }
}

/// Rows of a protocol's port table.
pub const PORT_ROWS: u32 = 65536 / LANES;

/// The row, and the lane in it, with the class of a port. The port tables are the first rows of a policy.
#[inline(always)]
#[must_use]
pub const fn port_lane(protocol: Protocol, port: u16) -> (u32, u32) {
    let table = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => PORT_ROWS,
    };
    (table + port as u32 / LANES, port as u32 % LANES)
}

/// Where a trie goes on: a class, or the row of a branch or guard.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node(pub u32);

const KIND: u32 = 3 << 30;
const BRANCH: u32 = 1 << 30;
const GUARD: u32 = 2 << 30;
const TABLE: u32 = 3 << 30;

/// Rows of a table: a node for each value of two bytes.
pub const TABLE_ROWS: u32 = 65536 / LANES;

/// Classes and rows are numbered below this.
pub const MAX_INDEX: u32 = 1 << 30;

impl Node {
    /// The end: a class.
    #[must_use]
    pub const fn class(index: u32) -> Self {
        Self(index)
    }

    /// A branch in a row.
    #[must_use]
    pub const fn branch(row: u32) -> Self {
        Self(BRANCH | row)
    }

    /// A guard in a row.
    #[must_use]
    pub const fn guard(row: u32) -> Self {
        Self(GUARD | row)
    }

    /// A table, the first of whose rows this is.
    #[must_use]
    pub const fn table(row: u32) -> Self {
        Self(TABLE | row)
    }

    /// What it is.
    #[must_use]
    pub const fn kind(self) -> Kind {
        let index = self.0 & !KIND;
        match self.0 & KIND {
            BRANCH => Kind::Branch(index),
            GUARD => Kind::Guard(index),
            TABLE => Kind::Table(index),
            _ => Kind::Class(index),
        }
    }
}

/// What a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A class.
    Class(u32),
    /// The row of a branch.
    Branch(u32),
    /// The row of a guard.
    Guard(u32),
    /// The first row of a table.
    Table(u32),
}

/// The tables of one policy.
pub trait Tables {
    /// A row of `nodes`.
    fn row(&self, index: u32) -> Option<&Row>;
    /// An entry of `classes`.
    fn class(&self, index: u32) -> Option<&Class>;
}

/// No way through a trie is longer: one branch for each byte, and a guard behind the last one. A guard in between
/// takes the place of at least one branch.
const MAX_STEPS: usize = 18;

/// The class of an address.
#[inline(always)]
pub fn class_of_address<T: Tables>(tables: &T, root: Node, address: Bits) -> u32 {
    let Bits { mut high, mut low } = address;
    let mut node = root;
    for _ in 0..MAX_STEPS {
        let consumed = match node.kind() {
            Kind::Class(class) => return class,
            Kind::Branch(at) => {
                let Some(row) = tables.row(at) else { return NO_SERVICE };
                let run = run_of(row, (high >> 56) as u32);
                let Some(runs) = tables.row(at + 1 + run / LANES) else { return NO_SERVICE };
                node = Node(runs.lane(run % LANES));
                8
            }
            Kind::Table(at) => {
                let value = (high >> 48) as u32;
                let Some(row) = tables.row(at + value / LANES) else { return NO_SERVICE };
                node = Node(row.lane(value % LANES));
                16
            }
            Kind::Guard(at) => {
                let Some(row) = tables.row(at) else { return NO_SERVICE };
                let w = &row.words;
                let missed = ((high ^ w[0]) & w[2]) | ((low ^ w[1]) & w[3]) != 0;
                node = Node(if missed { w[4] >> 32 } else { w[4] } as u32);
                if missed { 0 } else { w[5] as u32 & 63 }
            }
        };
        // The shift to the right is done in two steps because it may be by all 64 bits.
        high = (high << consumed) | ((low >> 1) >> (63 - consumed));
        low <<= consumed;
    }
    NO_SERVICE
}

/// Which run of a branch a byte belongs to.
#[inline(always)]
fn run_of(branch: &Row, byte: u32) -> u32 {
    let word = (byte >> 6) & 3;
    let before = (branch.words[4] >> (word * 16)) as u32 & 0xffff;
    // Bits up to the byte's own; the first run begins at zero, so that there is always one.
    let up_to = branch.words[word as usize] << (63 - (byte & 63));
    (before + up_to.count_ones()).wrapping_sub(1) & 0xff
}

/// The class of a port.
#[inline(always)]
pub fn class_of_port<T: Tables>(tables: &T, protocol: Protocol, port: u16) -> u32 {
    let (row, lane) = port_lane(protocol, port);
    tables.row(row).map_or(NO_SERVICE, |row| row.lane(lane))
}

/// A sequence in which every window of six bits is another one (de Bruijn).
const WINDOWS: u64 = 0x03f7_9d71_b4cb_0a89;

/// Four times the bit that stands alone where this window leads the sequence.
static LONE_BITS: [u8; 64] = {
    let mut bits = [0; 64];
    let mut bit = 0;
    while bit < 64 {
        bits[(WINDOWS.wrapping_shl(bit) >> 58) as usize] = bit as u8 * 4;
        bit += 1;
    }
    bits
};

/// The lowest bit of a word that is not zero: `trailing_zeros`.
///
/// BPF has no instruction for it. The compiler would make the same table, but without the factor: it knows that no
/// entry is above 63, while the verifier sees a byte, which may be. Divided by four a byte cannot.
#[inline(always)]
fn lowest_bit(word: u64) -> u32 {
    let lone = word & word.wrapping_neg();
    u32::from(LONE_BITS[(lone.wrapping_mul(WINDOWS) >> 58) as usize]) >> 2
}

/// The classes of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Of whom the client asks for.
    pub destination: u32,
    /// Of the port and protocol.
    pub port: u32,
    /// Of the client.
    pub client: u32,
    /// Of the interface.
    pub interface: u32,
}

impl Classes {
    /// The classes of a tuple that comes in by an interface of this class; `own` says that its destination is one of
    /// this host's own addresses. Those behind the first that is of no service are not looked up: there is no match.
    #[inline(always)]
    pub fn of<T: Tables>(tables: &T, policy: &Policy, key: &FlowKey, own: bool, interface: u32) -> Self {
        // The cheapest first.
        let port = class_of_port(tables, key.protocol, key.dst_port);
        Self::behind_port(tables, policy, key, own, Self { port, interface, ..Self::default() })
    }

    /// The other classes of a tuple whose classes of port and interface are known.
    #[inline(always)]
    pub fn behind_port<T: Tables>(
        tables: &T,
        policy: &Policy,
        key: &FlowKey,
        own: bool,
        mut classes: Self,
    ) -> Self {
        if classes.port == NO_SERVICE {
            return classes;
        }
        let roots = if own { &policy.own } else { &policy.destinations };
        classes.destination = class_of_address(tables, roots.of(key.family), key.dst.bits());
        if classes.destination == NO_SERVICE {
            return classes;
        }
        classes.client = class_of_address(tables, policy.clients.of(key.family), key.src.bits());
        classes
    }

    /// The number of the first service that is in all of them.
    #[inline(always)]
    pub fn first_match<T: Tables>(&self, tables: &T) -> Option<u32> {
        if self.client == NO_SERVICE {
            return None;
        }
        let (a, b) = (tables.class(self.destination)?, tables.class(self.port)?);
        let (c, d) = (tables.class(self.client)?, tables.class(self.interface)?);
        let mut candidates = a.summary & b.summary & c.summary & d.summary;
        for _ in 0..WORDS {
            if candidates == 0 {
                return None;
            }
            let word = lowest_bit(candidates);
            let n = word as usize;
            let services = a.services[n] & b.services[n] & c.services[n] & d.services[n];
            if services != 0 {
                return Some(word * 64 + lowest_bit(services));
            }
            candidates &= candidates - 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_is_found() {
        for bit in 0..64 {
            assert_eq!(lowest_bit(1 << bit), bit);
            assert_eq!(lowest_bit(u64::MAX << bit), bit);
        }
    }
}
