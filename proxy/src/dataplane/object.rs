//! The compiled programs, loaded into fresh maps.

use std::{collections::HashSet, net::IpAddr, os::fd::AsFd as _, thread};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, SockMap},
    programs::{SchedClassifier, SkLookup},
};
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, poll};
use sheer_common::{
    abi::{Address, Family, LocalAddress, MAX_WORKERS, Settings, listener_slot},
    policy::{Action, NAME_LEN, PortRule, Service},
    verdict::Counters,
};

use super::{DataplaneError, flows::KernelFlows};
use crate::{config::Config, flow::FlowTable, route::AddressSet, socket::Listeners};

/// The kernel object of this build; empty where the build had no eBPF toolchain.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sheer.bpf.o"));

/// Names of the programs, in the object and in bpffs.
pub mod program {
    /// tc ingress, devices with Ethernet headers.
    pub const ETHER: &str = "sheer_ether";
    /// tc ingress, devices without.
    pub const IP: &str = "sheer_ip";
    /// The socket lookup.
    pub const LOOKUP: &str = "sheer_lookup";
}

/// Names of the maps, in the object and in bpffs.
pub mod map {
    /// What the programs run under.
    pub const SETTINGS: &str = "settings";
    /// The workers' listeners.
    pub const LISTENERS: &str = "listeners";
    /// Proxied connections.
    pub const FLOWS: &str = "flows";
    /// Services.
    pub const SERVICES: &str = "services";
    /// Destination port to service.
    pub const PORTS: &str = "ports";
    /// This host's own addresses.
    pub const LOCAL_ADDRESSES: &str = "local_addresses";
    /// A counter for each verdict and each failed helper.
    pub const COUNTERS: &str = "counters";
    /// All that are pinned.
    pub const PINNED: &[&str] = &[SETTINGS, LISTENERS, FLOWS, SERVICES, PORTS, LOCAL_ADDRESSES, COUNTERS];
}

/// Programs and maps, loaded and not yet attached.
///
/// Dropping it unloads them, except for what is pinned.
pub struct Dataplane {
    ebpf: Ebpf,
}

impl Dataplane {
    /// Loads the programs into the kernel; with `trace` they tell each decision, see
    /// [`Dataplane::start_tracing`].
    ///
    /// # Errors
    /// Without the object, without the privilege, or when the verifier refuses a program.
    pub fn load(trace: bool) -> Result<Self, DataplaneError> {
        if OBJECT.is_empty() {
            return Err(DataplaneError::NoObject);
        }
        let level = if trace { log::Level::Debug as u8 } else { 0 };
        let ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &level, false)
            .load(OBJECT)
            .map_err(|source| DataplaneError::Load { source })?;
        let mut dataplane = Self { ebpf };
        dataplane.classifier(program::ETHER)?.load().map_err(refused(program::ETHER))?;
        dataplane.classifier(program::IP)?.load().map_err(refused(program::IP))?;
        dataplane.lookup()?.load().map_err(refused(program::LOOKUP))?;
        Ok(dataplane)
    }

    /// A tc program by name.
    ///
    /// # Errors
    /// When the object has none of this name.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, DataplaneError> {
        let found = self.ebpf.program_mut(name).and_then(|p| p.try_into().ok());
        found.ok_or(DataplaneError::Missing { what: "program", name })
    }

    /// The socket lookup program.
    ///
    /// # Errors
    /// When the object has none.
    pub fn lookup(&mut self) -> Result<&mut SkLookup, DataplaneError> {
        let found = self.ebpf.program_mut(program::LOOKUP).and_then(|p| p.try_into().ok());
        found.ok_or(DataplaneError::Missing { what: "program", name: program::LOOKUP })
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

    /// The programs with their names, to be pinned.
    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn array<V: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, V>, DataplaneError> {
        let map = self.ebpf.map_mut(name).ok_or(DataplaneError::Missing { what: "map", name })?;
        Array::try_from(map).map_err(refused_entry(name))
    }

    /// Writes the services and the ports that lead to them.
    ///
    /// # Errors
    /// When a map refuses an entry.
    pub fn set_policy(&mut self, config: &Config) -> Result<(), DataplaneError> {
        let mut services = self.array::<Service>(map::SERVICES)?;
        for (slot, service) in (0..).zip(&config.services) {
            let entry = Service {
                action: Action::Proxy,
                when_down: service.when_down.into(),
                _pad: 0,
                name: name_bytes(&service.name),
            };
            services.set(slot, entry, 0).map_err(refused_entry(map::SERVICES))?;
        }
        let mut ports = self.array::<PortRule>(map::PORTS)?;
        // Backwards, so that the first service in the order of the config has the last word on a port.
        for (slot, service) in (1..).zip(&config.services).collect::<Vec<_>>().into_iter().rev() {
            for port in service.ports.iter() {
                let rule = PortRule { service: slot };
                ports.set(u32::from(port), rule, 0).map_err(refused_entry(map::PORTS))?;
            }
        }
        Ok(())
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
        let found = self.ebpf.map_mut(name).ok_or(DataplaneError::Missing { what: "map", name })?;
        let mut slots = SockMap::try_from(found).map_err(refused_entry(name))?;
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

    /// Makes the map of this host's own addresses equal to `addresses`.
    ///
    /// # Errors
    /// When the map is full; the addresses that are not in it count as foreign.
    pub fn set_local_addresses(&mut self, addresses: &AddressSet) -> Result<(), DataplaneError> {
        let name = map::LOCAL_ADDRESSES;
        let found = self.ebpf.map_mut(name).ok_or(DataplaneError::Missing { what: "map", name })?;
        let mut own = HashMap::<_, LocalAddress, u32>::try_from(found).map_err(refused_entry(name))?;
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

    /// A handle on the `flows` map for each worker.
    ///
    /// # Errors
    /// When the map's descriptor cannot be duplicated.
    pub fn flow_tables(&mut self, workers: usize) -> Result<Vec<Box<dyn FlowTable + Send>>, DataplaneError> {
        let name = map::FLOWS;
        let found = self.ebpf.map(name).ok_or(DataplaneError::Missing { what: "map", name })?;
        let aya::maps::Map::HashMap(data) = found else {
            return Err(DataplaneError::Missing { what: "hash map", name });
        };
        (0..workers)
            .map(|_| {
                let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| refused_entry(name)(e.into()))?;
                let data = MapData::from_fd(fd).map_err(refused_entry(name))?;
                Ok(Box::new(KernelFlows::new(data)?) as Box<dyn FlowTable + Send>)
            })
            .collect()
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

/// An address as the maps hold it; an IPv4-mapped one counts as IPv4.
pub(super) fn address(ip: IpAddr) -> (Family, Address) {
    match ip.to_canonical() {
        IpAddr::V4(a) => (Family::V4, Address::v4(a.octets())),
        IpAddr::V6(a) => (Family::V6, Address::v6(a.octets())),
    }
}

fn local_address(ip: IpAddr) -> LocalAddress {
    let (family, address) = address(ip);
    LocalAddress::new(family, address)
}

fn name_bytes(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}
