//! Which service takes a new connection: [`sheer_common::classify`] over the maps of the policy in force.
//!
//! `settings` names one of two policies. The proxy writes the tables of the next one into the other place and then
//! changes that number, so that a packet is judged by one policy or the other and never by a mixture: every
//! program reads the number once.

use sheer_common::{
    abi::{LocalAddress, Settings, listener_slot},
    classify::{Class, Classes, Row, Tables},
    flow::FlowKey,
    policy::{Interface, MAX_SERVICES, Policy, Service},
};

use crate::{
    kernel::Socket,
    maps::{
        Table, interfaces, listeners, local_addresses, policies, policy_classes, policy_nodes,
        policy_services, settings,
    },
};

/// The settings, or nothing where the proxy has not written them yet: then every packet passes.
#[inline(always)]
pub fn current() -> Option<&'static Settings> {
    settings.get(0).filter(|s| s.mark != 0)
}

/// Whether the destination is one of this host's own addresses.
#[inline(always)]
pub fn is_own(key: &FlowKey) -> bool {
    // SAFETY: only the presence of the entry matters, its value is not read.
    unsafe { local_addresses.get(&LocalAddress::new(key.family, key.dst)) }.is_some()
}

/// The policy in force.
#[inline(always)]
pub fn in_force(now: &Settings) -> Option<&'static Policy> {
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

/// By which interfaces a service is asked for.
#[derive(Clone, Copy)]
pub enum From {
    /// The one that a packet came in by, as the kernel numbers it.
    Interface(u32),
    /// Whatever the interface, but only services that the proxy stands behind.
    AnyToProxy,
}

/// Who takes a tuple?
pub struct Question<'a> {
    pub key: &'a FlowKey,
    pub from: From,
    /// Its destination is one of this host's own addresses.
    pub own: bool,
    /// Its classes, once it has been answered.
    pub classes: Classes,
}

impl<'a> Question<'a> {
    #[inline(always)]
    pub fn new(key: &'a FlowKey, from: From, own: bool) -> Self {
        Self { key, from, own, classes: Classes::default() }
    }

    /// The number of the first service.
    #[inline(always)]
    pub fn first_match(&mut self, now: &Settings) -> Option<u32> {
        // A number that no service has stands for none: a function of a program returns one register.
        let number = first_match(now, self);
        (number < MAX_SERVICES as u32).then_some(number)
    }
}

#[inline(never)]
fn first_match(now: &Settings, question: &mut Question<'_>) -> u32 {
    found(now, question).unwrap_or(u32::MAX)
}

#[inline(always)]
fn found(now: &Settings, question: &mut Question<'_>) -> Option<u32> {
    let policy = in_force(now)?;
    let tables = InForce { nodes: policy_nodes.get(now.active)?, classes: policy_classes.get(now.active)? };
    let interface = match question.from {
        From::AnyToProxy => policy.proxied,
        From::Interface(index) if policy.by_interface != 0 => {
            let key = Interface { policy: now.active, index };
            // SAFETY: an entry is written before its policy is in force, and not again while it is.
            unsafe { interfaces.get(&key) }.map_or(policy.any_interface, |class| *class)
        }
        From::Interface(_) => policy.any_interface,
    };
    question.classes = Classes::of(&tables, policy, question.key, question.own, interface);
    question.classes.first_match(&tables)
}

/// A service by its number.
#[inline(always)]
pub fn service(now: &Settings, number: u32) -> Option<&'static Service> {
    policy_services.get(now.active)?.get(number)
}

/// The worker that a connection belongs to.
#[inline(always)]
pub fn worker(now: &Settings, key: &FlowKey) -> u32 {
    if now.workers == 0 { 0 } else { key.hash() % now.workers }
}

/// The listener for a connection: of the worker that its tuple's hash names. Nothing while the proxy is down or leaving.
#[inline(always)]
pub fn listener(now: &Settings, key: &FlowKey) -> Option<Socket> {
    if now.draining != 0 {
        return None;
    }
    Socket::in_map(&listeners, listener_slot(worker(now, key), key.family))
}
