//! Every map, once.
//!
//! | map | written by | read by | capacity | when full |
//! |---|---|---|---|---|
//! | `settings` | proxy, at start, on reload and on drain | programs | 1 | cannot be |
//! | `listeners` | proxy, at start; the kernel empties a slot when its socket closes | programs | 2 × 256 | the start is refused |
//! | `flows` | proxy makes and removes entries; `ingress` counts in them | `ingress`, `sheer flows` | 524,288 | the connection is steered by socket lookup, uncounted; `flow_table_failed` in `sheer status` rises |
//! | `policies` | proxy, into the half that is not in force | programs | 2 | cannot be |
//! | `services`, `classes`, `nodes` | proxy, made anew for each policy to its size | programs, by `policy_services`, `policy_classes`, `policy_nodes` | as needed: 4,096 services, 262,144 classes | the config is refused |
//! | `interfaces` | proxy, for the policy that comes | programs, if a service asks for certain interfaces | 2 × 1,024 | the start, or the reload, is refused |
//! | `service_counters` | programs | `sheer services` | 8,192, per CPU | cannot be |
//! | `openings` | `ingress`: each connection if a service asks for certain interfaces, else those whose listener the stack has to look for | the socket lookup; proxy, at accept | 16,384 | the oldest go; the proxy then takes the first service that fits by any interface |
//! | `ways` | `ingress`, if a service answers by the same way | `egress` | 65,536 | the connections that were quiet for the longest are answered by the routes |
//! | `devices` | proxy, at start | `ingress`, on frames that a bridge would give to somebody else | 1,024 | the start is refused |
//! | `pinged` | `ingress`, if a service answers pings; proxy | the same | 4,096 | the addresses that were not pinged for the longest are forgotten |
//! | `fragments` | `ingress`, on a datagram's first fragment or on one that waits for it; proxy sweeps out what is old | `ingress` | 4,096 | the service's `when_down` decides, or the dataplane's; `failed_fragment_insert` rises |
//! | `held` | `ingress`, on fragments that come before the first; proxy as above | `ingress` | 1,024, and 16 of one datagram | the dataplane's `when_down` decides; `failed_fragment_hold` rises |
//! | `limits` | programs | programs | 65,536 | the clients that were quiet for the longest are forgotten |
//! | `concurrent` | proxy | programs | 262,144 | the proxy refuses what the programs do not |
//! | `blocked` | programs | programs, `sheer blocked` | 8,192 | the oldest blocks are forgotten |
//! | `blocked_by_hand` | `sheer block` | programs, `sheer blocked` | 8,192 | `sheer block` says so |
//! | `local_addresses` | proxy, at start and on every change of address | programs | 4,096 | the proxy says so; the rest are taken for foreign |
//! | `counters` | programs | `sheer status` | 1, per CPU | cannot be |
//! | `explanation` | `sheer_explain` | `sheer explain` | 1 | cannot be |
//! | `scratch` | `ingress`, `sheer_explain` | the same | 2, per CPU | cannot be |
//! | `aside` | `ingress`, with a fragment that is copied | the same | 1, per CPU | cannot be |
//! | `asking` | `ingress`, around its socket lookups | the socket lookup | 1, per CPU | cannot be |
//!
//! A policy is made aside and comes in force by one number in `settings`: see [`crate::policy`].

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, SockMap},
    macros::btf_map,
};
use sheer_common::{
    abi::{LocalAddress, MAX_WORKERS, Settings},
    classify::{Class, Row},
    explain::Explanation,
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_OPENINGS, Opening},
    fragment::{FragmentKey, Fragments, Held, HeldKey, MAX_FRAGMENTS, MAX_HELD},
    limit::{Block, Client, ClientKey, MAX_BLOCKED, MAX_CLIENTS, MAX_CONCURRENT},
    ping::{MAX_PINGED, PingKey, Pinged},
    policy::{Interface, MAX_INTERFACES, Policy, SERVICE_SLOTS, Service, ServiceCounters},
    verdict::Counters,
    way::{Device, MAX_WAYS, Way},
};
use sheer_ebpf::parse::Segment;

/// A table of a policy, which is as long as the policy needs it: the flag lets it differ from the one that the
/// programs were loaded with (Linux 5.10).
pub type Table<T> = Array<T, 1, { BPF_F_INNER_MAP as usize }>;

#[btf_map]
pub static settings: Array<Settings, 1> = Array::new();

#[btf_map]
pub static listeners: SockMap<{ MAX_WORKERS as usize * 2 }> = SockMap::new();

// Memory for half a million flows is taken as they come, not at load.
#[btf_map]
pub static flows: HashMap<FlowKey, Flow, MAX_FLOWS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static policies: Array<Policy, 2> = Array::new();

#[btf_map]
pub static policy_services: ArrayOfMaps<Table<Service>, 2> = ArrayOfMaps::new();

#[btf_map]
pub static policy_classes: ArrayOfMaps<Table<Class>, 2> = ArrayOfMaps::new();

#[btf_map]
pub static policy_nodes: ArrayOfMaps<Table<Row>, 2> = ArrayOfMaps::new();

// What the proxy makes the tables of a policy from; the programs see them by the three maps above only.
#[btf_map]
pub static services: Table<Service> = Array::new();

#[btf_map]
pub static classes: Table<Class> = Array::new();

#[btf_map]
pub static nodes: Table<Row> = Array::new();

#[btf_map]
pub static interfaces: HashMap<Interface, u32, { 2 * MAX_INTERFACES }> = HashMap::new();

#[btf_map]
pub static service_counters: PerCpuArray<ServiceCounters, SERVICE_SLOTS> = PerCpuArray::new();

#[btf_map]
pub static openings: LruHashMap<FlowKey, Opening, MAX_OPENINGS> = LruHashMap::new();

#[btf_map]
pub static ways: LruHashMap<FlowKey, Way, MAX_WAYS> = LruHashMap::new();

#[btf_map]
pub static devices: HashMap<u32, Device, MAX_INTERFACES> = HashMap::new();

#[btf_map]
pub static pinged: LruHashMap<PingKey, Pinged, MAX_PINGED> = LruHashMap::new();

#[btf_map]
pub static fragments: HashMap<FragmentKey, Fragments, MAX_FRAGMENTS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub static held: HashMap<HeldKey, Held, MAX_HELD, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static aside: PerCpuArray<Held, 1> = PerCpuArray::new();

#[btf_map]
pub static limits: LruHashMap<ClientKey, Client, MAX_CLIENTS> = LruHashMap::new();

#[btf_map]
pub static concurrent: HashMap<ClientKey, u32, MAX_CONCURRENT, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub static blocked: LruHashMap<ClientKey, Block, MAX_BLOCKED> = LruHashMap::new();

// Apart, because a flood of clients that earn a block must not push out those that somebody has named.
#[btf_map]
pub static blocked_by_hand: HashMap<ClientKey, Block, MAX_BLOCKED> = HashMap::new();

#[btf_map]
pub static local_addresses: HashMap<LocalAddress, u32, 4096> = HashMap::new();

#[btf_map]
pub static counters: PerCpuArray<Counters, 1> = PerCpuArray::new();

#[btf_map]
pub static explanation: Array<Explanation, 1> = Array::new();

#[btf_map]
pub static asking: PerCpuArray<u32, 1> = PerCpuArray::new();

#[btf_map]
pub static scratch: PerCpuArray<Segment, 2> = PerCpuArray::new();
