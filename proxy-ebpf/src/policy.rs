//! Which service takes a new connection.

use sheer_common::{
    abi::{LocalAddress, Settings, listener_slot},
    flow::FlowKey,
    policy::{Action, Service, is_special},
};

use crate::{
    kernel::Socket,
    maps::{listeners, local_addresses, ports, services, settings},
};

/// The settings, or nothing where the proxy has not written them yet: then every packet passes.
#[inline(always)]
pub fn current() -> Option<&'static Settings> {
    settings.get(0).filter(|s| s.mark != 0)
}

/// Whether the destination is one that is left alone: this host's own, or a special one.
#[inline(always)]
pub fn is_own(key: &FlowKey) -> bool {
    // SAFETY: only the presence of the entry matters, its value is not read.
    is_special(key.family, &key.dst)
        || unsafe { local_addresses.get(&LocalAddress::new(key.family, key.dst)) }.is_some()
}

/// The service that takes connections to this destination.
#[inline(always)]
pub fn service(key: &FlowKey) -> Option<&'static Service> {
    let rule = ports.get(u32::from(key.dst_port))?;
    let service = services.get(rule.service.checked_sub(1)?)?;
    (service.action != Action::None).then_some(service)
}

/// The listener for a connection: of the worker that its tuple's hash names. Nothing while the proxy is down or leaving.
#[inline(always)]
pub fn listener(now: &Settings, key: &FlowKey) -> Option<Socket> {
    if now.draining != 0 || now.workers == 0 {
        return None;
    }
    Socket::in_map(&listeners, listener_slot(key.hash() % now.workers, key.family))
}
