//! Services that can never match, because an earlier one takes all that they would.

use std::collections::HashSet;

use sheer_common::{
    classify::{Class, Kind, LANES, Node, PORT_ROWS, TABLE_ROWS, Tables},
    policy::MAX_SERVICES,
};

use super::{CompileError, Compiled, compile};
use crate::config::Service;

/// A service that can never match. Both are numbers in the order of the config, from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// The service.
    pub service: usize,
    /// The first of those that take all that it would.
    pub by: usize,
}

/// The services that can never match.
///
/// One service covers another if it is in every class, of every dimension, that the other one is in. Services that
/// only several earlier ones together leave nothing are not found.
///
/// # Errors
/// See [`compile`].
pub fn shadowed(services: &[Service], interfaces: &[String]) -> Result<Vec<Shadowed>, CompileError> {
    let compiled = compile(services, interfaces)?;
    // Before anything is known everybody covers everybody.
    let mut covers = vec![everybody(); services.len()];
    for class in compiled.classes_in_use() {
        let Some(class) = compiled.class(class) else { continue };
        for service in members(class) {
            if let Some(covers) = covers.get_mut(service) {
                retain(covers, class);
            }
        }
    }
    let first = |(service, covers): (usize, &Class)| {
        members(covers).next().filter(|by| *by < service).map(|by| Shadowed { service, by })
    };
    Ok(covers.iter().enumerate().filter_map(first).collect())
}

fn everybody() -> Class {
    Class { summary: u64::MAX, services: [u64::MAX; MAX_SERVICES / 64] }
}

/// The services of a class, in order.
fn members(class: &Class) -> impl Iterator<Item = usize> + '_ {
    bits(class.summary).flat_map(|word| bits(class.services[word]).map(move |bit| word * 64 + bit))
}

fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then_some(word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// Takes out of a class what is not in the other one.
fn retain(class: &mut Class, other: &Class) {
    for word in bits(class.summary) {
        class.services[word] &= other.services[word];
        if class.services[word] == 0 {
            class.summary &= !(1 << word);
        }
    }
}

impl Compiled {
    /// The classes that a packet can have in some dimension. Any single address that is named may be this host's own:
    /// then nobody else's entry takes it.
    fn classes_in_use(&self) -> HashSet<u32> {
        let header = &self.header;
        let mut found: HashSet<u32> = self.interfaces.iter().copied().collect();
        if header.by_interface == 0 {
            found.insert(header.any_interface);
        }
        let ports = self.rows.iter().take(2 * PORT_ROWS as usize);
        found.extend(ports.flat_map(|row| (0..LANES).map(|lane| row.lane(lane))));
        for roots in [header.destinations, header.own, header.clients] {
            self.collect(roots.v4, &mut found);
            self.collect(roots.v6, &mut found);
        }
        found
    }

    fn collect(&self, node: Node, found: &mut HashSet<u32>) {
        match node.kind() {
            Kind::Class(class) => {
                found.insert(class);
            }
            Kind::Guard(at) => {
                let ends = self.rows[at as usize].words[4];
                self.collect(Node(ends as u32), found);
                self.collect(Node((ends >> 32) as u32), found);
            }
            Kind::Table(at) => {
                for value in 0..TABLE_ROWS * LANES {
                    let row = &self.rows[(at + value / LANES) as usize];
                    self.collect(Node(row.lane(value % LANES)), found);
                }
            }
            Kind::Branch(at) => {
                let words = &self.rows[at as usize].words;
                let runs: u32 = words[..4].iter().map(|word| word.count_ones()).sum();
                for run in 0..runs {
                    let row = &self.rows[(at + 1 + run / LANES) as usize];
                    self.collect(Node(row.lane(run % LANES)), found);
                }
            }
        }
    }
}
