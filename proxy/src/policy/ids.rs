//! Numbers by which services are counted, stable over reloads.

use std::collections::{BTreeMap, BTreeSet};

use sheer_common::policy::SERVICE_SLOTS;

/// Gives each service of a name the same number for as long as there is a service of this name.
#[derive(Clone, Debug, Default)]
pub struct ServiceIds {
    known: BTreeMap<String, u32>,
    /// Below it every number was given out at some time.
    fresh: u32,
}

impl ServiceIds {
    /// The numbers of these services, at most [`sheer_common::policy::MAX_SERVICES`]; those of services that are gone
    /// become free. The new ones among them come as well: what was counted under them has to be forgotten.
    ///
    /// A number that was in use before is given to another service as late as possible, since connections of the
    /// service before may still be counted under it.
    #[must_use]
    pub fn assign<'a>(&self, names: impl Iterator<Item = &'a str>) -> (Self, Vec<u32>, Vec<u32>) {
        let names: Vec<&str> = names.collect();
        let kept = names.iter().filter_map(|name| Some(((*name).to_owned(), *self.known.get(*name)?)));
        let mut next = Self { known: kept.collect(), fresh: self.fresh };
        let (mut ids, mut new) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            let id = next.known.get(name).copied().unwrap_or_else(|| {
                let id = next.free();
                next.known.insert(name.to_owned(), id);
                new.push(id);
                id
            });
            ids.push(id);
        }
        (next, ids, new)
    }

    fn free(&mut self) -> u32 {
        if (self.fresh as usize) < SERVICE_SLOTS {
            self.fresh += 1;
            return self.fresh - 1;
        }
        let taken: BTreeSet<u32> = self.known.values().copied().collect();
        // There are more slots than services.
        (0..SERVICE_SLOTS as u32).find(|id| !taken.contains(id)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_numbers_rest_before_they_are_used_again() {
        let (ids, numbers, new) = ServiceIds::default().assign(["a", "b"].into_iter());
        assert_eq!((numbers, new), (vec![0, 1], vec![0, 1]));
        let (ids, numbers, new) = ids.assign(["b", "c"].into_iter());
        assert_eq!((numbers, new), (vec![1, 2], vec![2]));
        let (_, numbers, new) = ids.assign(["a", "b"].into_iter());
        assert_eq!((numbers, new), (vec![3, 1], vec![3]));
    }

    #[test]
    fn when_all_numbers_have_been_used_free_ones_come_again() {
        let mut ids = ServiceIds::default();
        for n in 0..SERVICE_SLOTS {
            (ids, ..) = ids.assign([n.to_string().as_str(), "stays"].into_iter());
        }
        let (_, numbers, new) = ids.assign(["stays", "late"].into_iter());
        assert_eq!(numbers[0], 1);
        assert_ne!(numbers[1], 1);
        assert_eq!(new, [numbers[1]]);
    }
}
