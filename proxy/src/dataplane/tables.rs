//! The maps of one policy, and how it comes into force.
//!
//! A policy has maps of its own, as long as it needs them. They are filled aside and put where the programs look for the
//! policy that is not in force; then one number in `settings` changes. So no packet is judged by parts of two
//! policies, and none waits while a long one is written.

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use sheer_common::{
    abi::Settings,
    policy::{self, Interface, ServiceCounters},
};

use super::{
    Dataplane, DataplaneError,
    object::{OBJECT, map, refused_entry},
};
use crate::policy::Policy;

/// The tables of a policy and the maps by which the programs find them.
const TABLES: [(&str, &str); 3] = [
    (map::SERVICES, map::POLICY_SERVICES),
    (map::CLASSES, map::POLICY_CLASSES),
    (map::NODES, map::POLICY_NODES),
];

/// The maps of one policy.
pub struct PolicyMaps([Map; 3]);

impl PolicyMaps {
    /// Makes the maps and fills them; nothing else waits for it.
    ///
    /// # Errors
    /// When the kernel has no room for them.
    pub fn make(policy: &Policy) -> Result<Self, DataplaneError> {
        let tables = policy.tables();
        let mut maps = Self::of_sizes([policy.services().len(), tables.classes.len(), tables.rows.len()])?;
        let [services, classes, nodes] = &mut maps.0;
        fill(services, map::SERVICES, policy.services().iter().map(policy::Service::from))?;
        fill(classes, map::CLASSES, tables.classes.iter().map(|class| **class))?;
        fill(nodes, map::NODES, tables.rows.iter().copied())?;
        Ok(maps)
    }

    /// The object is read once more for its definitions of these maps, with the names and types that bpftool shows.
    fn of_sizes(sizes: [usize; 3]) -> Result<Self, DataplaneError> {
        let mut loader = EbpfLoader::new();
        for name in map::PINNED.iter().chain(map::UNPINNED) {
            loader.map_max_entries(name, 1);
        }
        for ((name, _), size) in TABLES.iter().zip(sizes) {
            loader.map_max_entries(name, u32::try_from(size.max(1)).unwrap_or(u32::MAX));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|source| DataplaneError::Load { source })?;
        Self::taken_from(&mut ebpf)
    }

    pub(super) fn taken_from(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let mut take = |name| ebpf.take_map(name).ok_or(DataplaneError::Missing { what: "map", name });
        Ok(Self([take(map::SERVICES)?, take(map::CLASSES)?, take(map::NODES)?]))
    }

    /// The maps with their names.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &Map)> {
        TABLES.iter().zip(&self.0).map(|((name, _), map)| (*name, map))
    }
}

fn fill<V: Pod>(
    map: &mut Map,
    name: &'static str,
    values: impl Iterator<Item = V>,
) -> Result<(), DataplaneError> {
    let mut array = Array::<_, V>::try_from(map).map_err(refused_entry(name))?;
    (0..).zip(values).try_for_each(|(index, value)| array.set(index, value, 0)).map_err(refused_entry(name))
}

/// Has the programs find the tables of one of the two policies.
fn put(ebpf: &mut Ebpf, place: u32, maps: &PolicyMaps) -> Result<(), DataplaneError> {
    for ((_, outer), inner) in TABLES.iter().zip(&maps.0) {
        let Map::Array(inner) = inner else {
            return Err(DataplaneError::Missing { what: "array", name: outer });
        };
        let found = ebpf.map_mut(outer).ok_or(DataplaneError::Missing { what: "map", name: outer })?;
        let mut outers = ArrayOfMaps::<_, MapData>::try_from(found).map_err(refused_entry(outer))?;
        outers.set(place, inner, 0).map_err(refused_entry(outer))?;
    }
    Ok(())
}

impl Dataplane {
    /// Brings a policy into force, in one step for every packet, and lets go of the one before. `interfaces` are the
    /// kernel's numbers of the config's interfaces; 0, which none has, for one that is gone.
    ///
    /// # Errors
    /// When a map refuses; the policy before then stays in force.
    pub fn bring_into_force(
        &mut self,
        policy: &Policy,
        maps: &PolicyMaps,
        interfaces: &[u32],
    ) -> Result<(), DataplaneError> {
        let now = self.settings()?;
        let place = 1 - now.active.min(1);
        put(&mut self.ebpf, place, maps)?;
        let mut policies = self.array::<policy::Policy>(map::POLICIES)?;
        policies.set(place, policy.tables().header, 0).map_err(refused_entry(map::POLICIES))?;
        let before = policies.get(&(1 - place), 0).map_err(refused_entry(map::POLICIES))?;
        self.put_interfaces(
            place,
            interfaces.iter().copied().zip(policy.tables().interfaces.iter().copied()),
        )?;
        self.set_settings(Settings { active: place, ..now })?;
        // It is in force: what fails from here on leaves the one before where it is, until the next comes.
        if before.generation != 0
            && let Err(e) = self.let_go(place, maps)
        {
            log::warn!("the maps of the policy before keep their memory until the next reload: {e}");
        }
        Ok(())
    }

    /// Empties the place of the policy before, when no program reads it any more: one that has begun before the change
    /// may. The kernel returns from an update of these maps only when all such programs have ended.
    fn let_go(&mut self, place: u32, maps: &PolicyMaps) -> Result<(), DataplaneError> {
        put(&mut self.ebpf, place, maps)?;
        put(&mut self.ebpf, 1 - place, &self.empty)
    }

    fn put_interfaces(
        &mut self,
        place: u32,
        classes: impl Iterator<Item = (u32, u32)>,
    ) -> Result<(), DataplaneError> {
        let name = map::INTERFACES;
        let mut known =
            HashMap::<_, Interface, u32>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        let old: Vec<_> = known.keys().filter_map(Result::ok).filter(|key| key.policy == place).collect();
        for key in old {
            known.remove(&key).map_err(refused_entry(name))?;
        }
        for (index, class) in classes.filter(|(index, _)| *index != 0) {
            let key = Interface { policy: place, index };
            known.insert(key, class, 0).map_err(refused_entry(name))?;
        }
        Ok(())
    }

    /// Forgets what was counted under these numbers of services.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn forget_counts(&mut self, ids: &[u32]) -> Result<(), DataplaneError> {
        let name = map::SERVICE_COUNTERS;
        let cpus = nr_cpus().map_err(|(_, e)| refused_entry(name)(e.into()))?;
        let mut counters =
            PerCpuArray::<_, ServiceCounters>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        for id in ids {
            let zeros = PerCpuValues::try_from(vec![ServiceCounters::default(); cpus])
                .map_err(|e| refused_entry(name)(e.into()))?;
            counters.set(*id, zeros, 0).map_err(refused_entry(name))?;
        }
        Ok(())
    }

    /// What the programs counted of a service, over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn service_counters(&mut self, id: u32) -> Result<ServiceCounters, DataplaneError> {
        let name = map::SERVICE_COUNTERS;
        let counters =
            PerCpuArray::<_, ServiceCounters>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        let mut sum = ServiceCounters::default();
        for of_cpu in counters.get(&id, 0).map_err(refused_entry(name))?.iter() {
            sum += *of_cpu;
        }
        Ok(sum)
    }
}
