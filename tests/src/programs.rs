//! The kernel programs, loaded and not attached: for those who ask them by BPF_PROG_TEST_RUN.

use sheer::{
    config::Service,
    dataplane::{Dataplane, PolicyMaps},
    policy::{Policy, ServiceIds},
    route::AddressSet,
};
use sheer_common::abi::{LAYOUT, Settings};

/// The mark of steered packets here.
pub const MARK: u32 = 0x2040;

/// Loads them in the calling thread's network namespace, for one worker; `own` are the host's own addresses. No policy
/// is in force yet, and no listener is there.
///
/// # Panics
/// Without root, or when the kernel refuses.
#[must_use]
pub fn load_programs(own: &AddressSet) -> Dataplane {
    let mut dataplane = Dataplane::load(false).unwrap();
    dataplane.set_local_addresses(own).unwrap();
    let settings = Settings {
        layout: LAYOUT,
        mark: MARK,
        table: 8300,
        priority: 60,
        workers: 1,
        draining: 0,
        active: 0,
        blocking: 0,
        switched: 0,
    };
    dataplane.set_settings(settings).unwrap();
    dataplane
}

/// Brings these services into force; `interfaces` are the listed ones with the kernel's numbers.
///
/// # Panics
/// When the kernel refuses.
pub fn bring_into_force(
    dataplane: &mut Dataplane,
    services: &[Service],
    interfaces: (&[String], &[u32]),
    generation: u32,
) -> Policy {
    let (_, ids, _) = ServiceIds::default().assign(services.iter().map(|service| service.name.as_str()));
    let policy = Policy::new(services, interfaces.0, generation, &ids).unwrap();
    let maps = PolicyMaps::make(&policy).unwrap();
    dataplane.bring_into_force(&policy, &maps, interfaces.1).unwrap();
    policy
}
