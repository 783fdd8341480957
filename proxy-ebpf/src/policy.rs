//! Which service takes a new connection: [`sheer_common::classify`] over the maps of the policy in force.
//!
//! `settings` names one of two policies. The proxy writes the tables of the next one into the other place and then
//! changes that number, so that a packet is judged by one policy or the other and never by a mixture: a
//! program reads the number once, into [`Now`].

use core::ops::Deref;

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use sheer_common::{
    abi::{LocalAddress, Settings, listener_slot},
    classify::{Class, Classes, Node, Row, Tables},
    flow::{FlowKey, OPENING_FRESH_NS},
    policy::{Interface, MAX_SERVICES, Policy, Service},
};

use crate::{
    kernel::Socket,
    maps::{
        Table, interfaces, listeners, local_addresses, openings, policies, policy_classes, policy_nodes,
        policy_services, settings,
    },
};

/// What a packet is judged under: the settings, and of the number in them that changes while packets come one reading.
#[derive(Clone, Copy)]
pub struct Now {
    settings: &'static Settings,
    /// Which policy.
    pub active: u32,
    /// Which way the packet goes.
    pub side: Side,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It comes in.
    In,
    /// This host itself sends it.
    Out,
}

impl Deref for Now {
    type Target = Settings;

    #[inline(always)]
    fn deref(&self) -> &Settings {
        self.settings
    }
}

/// What holds now, or nothing where the proxy has not written the settings yet: then every packet passes.
#[inline(always)]
pub fn current(side: Side) -> Option<Now> {
    let found = settings.get(0).filter(|s| s.mark != 0)?;
    // SAFETY: a map value. Volatile, so that it is not read again where it is used.
    let active = unsafe { (&raw const found.active).read_volatile() };
    Some(Now { settings: found, active, side })
}

/// Whether the destination is one of this host's own addresses.
#[inline(always)]
pub fn is_own(key: &FlowKey) -> bool {
    // SAFETY: only the presence of the entry matters, its value is not read.
    unsafe { local_addresses.get(&LocalAddress::new(key.family, key.dst)) }.is_some()
}

/// Whether tc has just given this connection to the proxy.
#[inline(always)]
pub fn is_fresh_opening(key: &FlowKey) -> bool {
    // SAFETY: the entry may go to another connection meanwhile; it is then as fresh as that one.
    unsafe { openings.get(key) }.is_some_and(|opening| coarse_now() - opening.at_ns < OPENING_FRESH_NS)
}

/// Whether the workers need to be told of interfaces: they may still go by the policy before.
#[inline(always)]
pub fn by_interface() -> bool {
    let one = |place| policies.get(place).is_some_and(|policy| policy.by_interface != 0);
    one(0) || one(1)
}

/// Whether some connection may have to be answered by the way by which it came: also one of the policy before.
#[inline(always)]
pub fn answers_same_way() -> bool {
    let one = |place| policies.get(place).is_some_and(|policy| policy.same_way != 0);
    one(0) || one(1)
}

/// Not zero: the kernel has a coarse clock for programs (Linux 5.11). Set when the programs are loaded; the verifier takes
/// it for a constant and never looks at the call that is not made.
#[unsafe(no_mangle)]
static COARSE_CLOCK: u32 = 0;

/// Nanoseconds of CLOCK_MONOTONIC_COARSE, or of CLOCK_MONOTONIC where that cannot be had; both count from boot.
#[inline(always)]
pub fn coarse_now() -> u64 {
    // SAFETY: a constant is read, and no more than the time is asked.
    unsafe {
        if (&raw const COARSE_CLOCK).read_volatile() != 0 {
            bpf_ktime_get_coarse_ns()
        } else {
            bpf_ktime_get_ns()
        }
    }
}

/// The policy in force.
#[inline(always)]
pub fn in_force(now: &Now) -> Option<&'static Policy> {
    policies.get(now.active)
}

/// The tables of a policy.
struct InForce {
    nodes: &'static Table<Row>,
    classes: &'static Table<Class>,
}

impl Tables for InForce {
    #[inline(always)]
    fn row(&self, index: u32) -> Option<&Row> {
        self.nodes.get(index)
    }

    #[inline(always)]
    fn class(&self, index: u32) -> Option<&Class> {
        self.classes.get(index)
    }
}

/// Who takes a tuple?
pub struct Question<'a> {
    pub key: &'a FlowKey,
    /// The interface that it comes in by, as the kernel numbers it.
    pub interface: u32,
    /// Its destination is one of this host's own addresses.
    pub own: bool,
    /// A process of this host asks.
    pub local: bool,
    /// It is a ping, which has no port.
    pub ping: bool,
    /// Its classes, once it has been answered.
    pub classes: Classes,
}

impl<'a> Question<'a> {
    #[inline(always)]
    pub fn new(now: &Now, key: &'a FlowKey, interface: u32, own: bool) -> Self {
        Self { key, interface, own, local: now.side == Side::Out, ping: false, classes: Classes::default() }
    }

    /// The number of the first service.
    #[inline(always)]
    pub fn first_match(&mut self, now: &Now) -> Option<u32> {
        // A number that no service has stands for none: a function of a program returns one register.
        let number = first_match(now, self);
        (number < MAX_SERVICES as u32).then_some(number)
    }
}

#[inline(never)]
fn first_match(now: &Now, question: &mut Question<'_>) -> u32 {
    found(now, question).unwrap_or(u32::MAX)
}

#[inline(always)]
fn found(now: &Now, question: &mut Question<'_>) -> Option<u32> {
    let policy = in_force(now)?;
    let tables = InForce { nodes: policy_nodes.get(now.active)?, classes: policy_classes.get(now.active)? };
    let mut interface = policy.any_interface;
    if question.local {
        interface = policy.local;
    } else if policy.by_interface != 0 {
        let key = Interface { policy: now.active, index: question.interface };
        // SAFETY: an entry is written before its policy is in force, and not again while it is.
        if let Some(class) = unsafe { interfaces.get(&key) } {
            interface = *class;
        }
    }
    let (key, own) = (question.key, question.own);
    question.classes = if question.ping {
        let known = Classes { port: policy.pinged, interface, ..Classes::default() };
        Classes::behind_port(&tables, policy, key, own, known)
    } else {
        Classes::of(&tables, policy, key, own, interface)
    };
    question.classes.first_match(&tables)
}

/// Whether some service names single addresses of this family, which may be this host's own.
#[inline(always)]
pub fn names_own(now: &Now, key: &FlowKey) -> bool {
    in_force(now).is_some_and(|policy| policy.own.of(key.family) != Node::default())
}

/// A service by its number.
#[inline(always)]
pub fn service(now: &Now, number: u32) -> Option<&'static Service> {
    policy_services.get(now.active)?.get(number)
}

/// The worker that a connection belongs to.
#[inline(always)]
pub fn worker(now: &Now, key: &FlowKey) -> u32 {
    if now.workers == 0 { 0 } else { key.hash() % now.workers }
}

/// The listener for a connection: of the worker that its tuple's hash names. Nothing while the proxy is down or leaving.
#[inline(always)]
pub fn listener(now: &Now, key: &FlowKey) -> Option<Socket> {
    if now.draining != 0 {
        return None;
    }
    Socket::in_map(&listeners, listener_slot(worker(now, key), key.family))
}
