//! Every map, once.
//!
//! | map | written by | read by | capacity | when full |
//! |---|---|---|---|---|
//! | `settings` | proxy, at start and on drain | programs | 1 | cannot be |
//! | `listeners` | proxy, at start; the kernel empties a slot when its socket closes | programs | 2 × 256 | the start is refused |
//! | `flows` | proxy makes and removes entries; `ingress` counts in them | `ingress`, `sheer flows` | 524,288 | the connection is steered by socket lookup, uncounted; `flow_table_failed` in `sheer status` rises |
//! | `services` | proxy, at start | programs | 4,096 | the config is refused |
//! | `ports` | proxy, at start | programs | 65,536 | cannot be |
//! | `local_addresses` | proxy, at start and on every change of address | programs | 4,096 | the proxy says so; the rest are taken for foreign |
//! | `counters` | programs | `sheer status` | 1, per CPU | cannot be |

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray, SockMap},
    macros::btf_map,
};
use sheer_common::{
    abi::{LocalAddress, MAX_WORKERS, Settings},
    flow::{Flow, FlowKey, MAX_FLOWS},
    policy::{MAX_SERVICES, PortRule, Service},
    verdict::Counters,
};

#[btf_map]
pub static settings: Array<Settings, 1> = Array::new();

#[btf_map]
pub static listeners: SockMap<{ MAX_WORKERS as usize * 2 }> = SockMap::new();

// Memory for half a million flows is taken as they come, not at load.
#[btf_map]
pub static flows: HashMap<FlowKey, Flow, MAX_FLOWS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static services: Array<Service, MAX_SERVICES> = Array::new();

#[btf_map]
pub static ports: Array<PortRule, 65536> = Array::new();

#[btf_map]
pub static local_addresses: HashMap<LocalAddress, u32, 4096> = HashMap::new();

#[btf_map]
pub static counters: PerCpuArray<Counters, 1> = PerCpuArray::new();
