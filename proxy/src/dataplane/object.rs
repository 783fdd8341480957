//! The compiled programs, loaded into fresh maps.

use std::{collections::HashSet, net::IpAddr, os::fd::AsFd as _, thread};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, SockMap},
    programs::{SchedClassifier, SkLookup},
};
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, poll};
use sheer_common::{
    abi::{Family, LocalAddress, MAX_WORKERS, Settings, listener_slot},
    verdict::Counters,
    way::Device,
};

use super::{Capabilities, DataplaneError, PolicyMaps, clients::ConcurrentClients, flows::KernelFlows};
use crate::{
    clients::ClientTable,
    flow::FlowTable,
    policy::address,
    route::{AddressSet, Link},
    socket::Listeners,
};

/// The kernel object of this build; empty where the build had no eBPF toolchain.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sheer.bpf.o"));

/// Names of the programs, in the object and in bpffs.
pub mod program {
    /// tc ingress, devices with Ethernet headers.
    pub const ETHER: &str = "sheer_ether";
    /// tc ingress, devices without.
    pub const IP: &str = "sheer_ip";
    /// tc egress, devices with Ethernet headers.
    pub const OUT_ETHER: &str = "sheer_out_ether";
    /// tc egress, devices without.
    pub const OUT_IP: &str = "sheer_out_ip";
    /// The socket lookup.
    pub const LOOKUP: &str = "sheer_lookup";
    /// All that are attached somewhere, if the config needs them.
    pub const ATTACHED: [&str; 5] = [ETHER, IP, OUT_ETHER, OUT_IP, LOOKUP];
    /// Asked, never attached.
    pub const EXPLAIN: &str = "sheer_explain";
    /// Loaded by the benchmark only.
    pub const EMPTY: &str = "sheer_empty";
}

/// The constant by which programs know whether the kernel has a coarse clock for them.
const COARSE_CLOCK: &str = "COARSE_CLOCK";

/// Names of the maps, in the object and in bpffs.
pub mod map {
    /// What the programs run under.
    pub const SETTINGS: &str = "settings";
    /// The workers' listeners.
    pub const LISTENERS: &str = "listeners";
    /// Proxied connections.
    pub const FLOWS: &str = "flows";
    /// The two policies: the one in force and the one before or to come.
    pub const POLICIES: &str = "policies";
    /// Services of the policy in force.
    pub const SERVICES: &str = "services";
    /// Its classes.
    pub const CLASSES: &str = "classes";
    /// Its tries and port tables.
    pub const NODES: &str = "nodes";
    /// The services of both policies.
    pub const POLICY_SERVICES: &str = "policy_services";
    /// Their classes.
    pub const POLICY_CLASSES: &str = "policy_classes";
    /// Their nodes.
    pub const POLICY_NODES: &str = "policy_nodes";
    /// Classes of interfaces.
    pub const INTERFACES: &str = "interfaces";
    /// Hits of each service.
    pub const SERVICE_COUNTERS: &str = "service_counters";
    /// What tc knows of new connections.
    pub const OPENINGS: &str = "openings";
    /// By which ways clients come.
    pub const WAYS: &str = "ways";
    /// Listed interfaces.
    pub const DEVICES: &str = "devices";
    /// Who is pinged.
    pub const PINGED: &str = "pinged";
    /// What becomes of fragments.
    pub const FRAGMENTS: &str = "fragments";
    /// Fragments that wait for the first.
    pub const HELD: &str = "held";
    /// Clients under a rate limit.
    pub const LIMITS: &str = "limits";
    /// Connections that clients have.
    pub const CONCURRENT: &str = "concurrent";
    /// Clients that a limit has shut out.
    pub const BLOCKED: &str = "blocked";
    /// Clients that somebody has shut out.
    pub const BLOCKED_BY_HAND: &str = "blocked_by_hand";
    /// The programs' answer.
    pub const EXPLANATION: &str = "explanation";
    /// Where a segment is looked at.
    pub const SCRATCH: &str = "scratch";
    /// Where a fragment is copied to.
    pub const ASIDE: &str = "aside";
    /// Whose socket lookup it is.
    pub const ASKING: &str = "asking";
    /// This host's own addresses.
    pub const LOCAL_ADDRESSES: &str = "local_addresses";
    /// A counter for each verdict and each failed helper.
    pub const COUNTERS: &str = "counters";
    /// All that are pinned under their own names; the tables of the policy in force are so beside them.
    pub const PINNED: &[&str] = &[
        SETTINGS,
        LISTENERS,
        FLOWS,
        POLICIES,
        POLICY_SERVICES,
        POLICY_CLASSES,
        POLICY_NODES,
        INTERFACES,
        SERVICE_COUNTERS,
        OPENINGS,
        WAYS,
        DEVICES,
        PINGED,
        FRAGMENTS,
        HELD,
        LIMITS,
        CONCURRENT,
        BLOCKED,
        BLOCKED_BY_HAND,
        LOCAL_ADDRESSES,
        COUNTERS,
    ];
    /// Those that nobody else has to see.
    pub const UNPINNED: &[&str] = &[EXPLANATION, ASIDE, ASKING, SCRATCH];
}

/// Programs and maps, loaded and not yet attached.
///
/// Dropping it unloads them, except for what is pinned.
pub struct Dataplane {
    pub(super) ebpf: Ebpf,
    /// Tables that hold nothing: what stands in the place of a policy that is gone.
    pub(super) empty: PolicyMaps,
}

impl Dataplane {
    /// Makes the maps, and readies the programs for this kernel; with `trace` they tell each decision, see
    /// [`Dataplane::start_tracing`].
    ///
    /// # Errors
    /// Without the object, or without the privilege.
    pub fn load(trace: bool, capabilities: &Capabilities) -> Result<Self, DataplaneError> {
        if OBJECT.is_empty() {
            return Err(DataplaneError::NoObject);
        }
        let level = if trace { log::Level::Debug as u8 } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &level, false)
            .override_global(COARSE_CLOCK, &u32::from(capabilities.coarse_clock()), true)
            .load(OBJECT)
            .map_err(|source| DataplaneError::Load { source })?;
        let empty = PolicyMaps::taken_from(&mut ebpf)?;
        Ok(Self { ebpf, empty })
    }

    /// A tc program by name, loaded when it is asked for the first time: the verifier takes its time for each.
    ///
    /// # Errors
    /// When the object has none of this name, or the verifier refuses it.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, DataplaneError> {
        let found = self.ebpf.program_mut(name).and_then(|p| p.try_into().ok());
        let program: &mut SchedClassifier = found.ok_or(DataplaneError::Missing { what: "program", name })?;
        if program.fd().is_err() {
            program.load().map_err(refused(name))?;
        }
        Ok(program)
    }

    /// The socket lookup program, loaded likewise.
    ///
    /// # Errors
    /// As above.
    pub fn lookup(&mut self) -> Result<&mut SkLookup, DataplaneError> {
        let name = program::LOOKUP;
        let found = self.ebpf.program_mut(name).and_then(|p| p.try_into().ok());
        let program: &mut SkLookup = found.ok_or(DataplaneError::Missing { what: "program", name })?;
        if program.fd().is_err() {
            program.load().map_err(refused(name))?;
        }
        Ok(program)
    }

    /// Passes the programs' decisions on to the log, as debug messages of `sheer_ebpf`, on a thread of its own
    /// that ends with the process.
    ///
    /// # Errors
    /// When the object has no ring for them, or it cannot be used.
    pub fn start_tracing(&mut self) -> Result<(), DataplaneError> {
        let mut logger =
            EbpfLogger::init(&mut self.ebpf).map_err(|e| DataplaneError::Trace { source: e.into() })?;
        let follow = move || {
            while poll(&mut [PollFd::new(&logger, PollFlags::IN)], None).is_ok() {
                logger.flush();
            }
        };
        let started = thread::Builder::new().name("sheer-trace".into()).spawn(follow);
        started.map(drop).map_err(|e| DataplaneError::Trace { source: e.into() })
    }

    /// A map by name.
    pub(super) fn map_mut(&mut self, name: &'static str) -> Result<&mut Map, DataplaneError> {
        self.ebpf.map_mut(name).ok_or(DataplaneError::Missing { what: "map", name })
    }

    pub(super) fn array<V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Array<&mut MapData, V>, DataplaneError> {
        Array::try_from(self.map_mut(name)?).map_err(refused_entry(name))
    }

    /// Puts the workers' listeners where the programs find them.
    ///
    /// # Errors
    /// When there are more workers than slots, or the kernel refuses a socket.
    pub fn set_listeners(&mut self, listeners: &[Listeners]) -> Result<(), DataplaneError> {
        if listeners.len() > MAX_WORKERS as usize {
            return Err(DataplaneError::TooManyWorkers { workers: listeners.len(), max: MAX_WORKERS });
        }
        let name = map::LISTENERS;
        let mut slots = SockMap::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        for (worker, l) in (0..).zip(listeners) {
            slots.set(listener_slot(worker, Family::V4), &l.v4, 0).map_err(refused_entry(name))?;
            if let Some(v6) = &l.v6 {
                slots.set(listener_slot(worker, Family::V6), v6, 0).map_err(refused_entry(name))?;
            }
        }
        Ok(())
    }

    /// Writes the settings; the programs take up work with them.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), DataplaneError> {
        self.array::<Settings>(map::SETTINGS)?.set(0, settings, 0).map_err(refused_entry(map::SETTINGS))
    }

    /// The settings as they stand.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn settings(&mut self) -> Result<Settings, DataplaneError> {
        self.array::<Settings>(map::SETTINGS)?.get(&0, 0).map_err(refused_entry(map::SETTINGS))
    }

    /// Whether packets may lose their assigned socket on the way up: see [`Settings::switched`].
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_switched(&mut self, switched: bool) -> Result<(), DataplaneError> {
        let now = self.settings()?;
        self.set_settings(Settings { switched: switched.into(), ..now })
    }

    /// Tells the programs of the listed interfaces: see [`Device`]. Those without an Ethernet address are left out.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_devices(&mut self, links: &[Link]) -> Result<(), DataplaneError> {
        let name = map::DEVICES;
        let mut devices =
            HashMap::<_, u32, Device>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        for link in links {
            if let Some(address) = link.address {
                let device = Device { address, _pad: 0 };
                devices.insert(link.index, device, 0).map_err(refused_entry(name))?;
            }
        }
        Ok(())
    }

    /// Makes the map of this host's own addresses equal to `addresses`.
    ///
    /// # Errors
    /// When the map is full; the addresses that are not in it count as foreign.
    pub fn set_local_addresses(&mut self, addresses: &AddressSet) -> Result<(), DataplaneError> {
        let name = map::LOCAL_ADDRESSES;
        let mut own =
            HashMap::<_, LocalAddress, u32>::try_from(self.map_mut(name)?).map_err(refused_entry(name))?;
        let wanted: HashSet<LocalAddress> = addresses.iter().map(|a| local_address(*a)).collect();
        // New ones first: an address must not be foreign for a moment only because another one went.
        let refused: Vec<_> = wanted.iter().filter(|key| own.insert(*key, 1, 0).is_err()).collect();
        let gone: Vec<_> = own.keys().filter_map(Result::ok).filter(|k| !wanted.contains(k)).collect();
        for key in gone {
            own.remove(&key).map_err(refused_entry(name))?;
        }
        // Where the map was full there may be room now.
        refused.into_iter().try_for_each(|key| own.insert(key, 1, 0)).map_err(refused_entry(name))
    }

    /// A handle on the maps of connections for each worker.
    ///
    /// # Errors
    /// When a map's descriptor cannot be duplicated.
    pub fn flow_tables(&mut self, workers: usize) -> Result<Vec<Box<dyn FlowTable + Send>>, DataplaneError> {
        (0..workers)
            .map(|_| {
                let tables = KernelFlows::new(self.duplicate(map::FLOWS)?, self.duplicate(map::OPENINGS)?)?;
                Ok(Box::new(tables) as Box<dyn FlowTable + Send>)
            })
            .collect()
    }

    /// A handle on the counts of clients' connections.
    ///
    /// # Errors
    /// As above.
    pub fn client_table(&self) -> Result<Box<dyn ClientTable>, DataplaneError> {
        Ok(Box::new(ConcurrentClients::new(self.duplicate(map::CONCURRENT)?)?))
    }

    /// Another descriptor of a map.
    pub(super) fn duplicate(&self, name: &'static str) -> Result<MapData, DataplaneError> {
        let (Map::HashMap(data) | Map::LruHashMap(data)) =
            self.ebpf.map(name).ok_or(DataplaneError::Missing { what: "map", name })?
        else {
            return Err(DataplaneError::Missing { what: "hash map", name });
        };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| refused_entry(name)(e.into()))?;
        MapData::from_fd(fd).map_err(refused_entry(name))
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, DataplaneError> {
        let name = map::COUNTERS;
        let found = self.ebpf.map(name).ok_or(DataplaneError::Missing { what: "map", name })?;
        let counters = PerCpuArray::<_, Counters>::try_from(found).map_err(refused_entry(name))?;
        let mut sum = Counters::default();
        for of_cpu in counters.get(&0, 0).map_err(refused_entry(name))?.iter() {
            sum += *of_cpu;
        }
        Ok(sum)
    }
}

pub(super) fn refused_entry(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> DataplaneError {
    move |source| DataplaneError::Map { map, source }
}

fn refused(program: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> DataplaneError {
    move |source| DataplaneError::Program { program, source: Box::new(source) }
}

fn local_address(ip: IpAddr) -> LocalAddress {
    let (family, address) = address(ip);
    LocalAddress::new(family, address)
}
