//! The kernel programs, loaded and not attached: for those who ask them by BPF_PROG_TEST_RUN. And a stranger's.

use aya::{
    Ebpf,
    programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use sheer::{
    config::Service,
    dataplane::{Capabilities, Dataplane, PolicyMaps, object},
    policy::{Policy, ServiceIds},
    route::AddressSet,
};
use sheer_common::abi::{LAYOUT, Settings};

use crate::namespace::Namespace;

/// The mark of steered packets here.
pub const MARK: u32 = 0x2040;

/// Loads them in the calling thread's network namespace, for one worker; `own` are the host's own addresses. No policy
/// is in force yet, and no listener is there.
///
/// # Panics
/// Without root, or when the kernel refuses.
#[must_use]
pub fn load_programs(own: &AddressSet) -> Dataplane {
    let mut dataplane = Dataplane::load(false, &Capabilities::probe()).unwrap();
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
        closed: 0,
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

/// A program of somebody else's by TCX, in front of all others; it lets every packet go on. It goes with the value.
pub struct InFront(Ebpf);

impl InFront {
    /// Attaches it to the ingress of a device.
    ///
    /// # Errors
    /// When the kernel refuses, as one without TCX does.
    ///
    /// # Panics
    /// Without root.
    pub fn of(namespace: &Namespace, device: &str) -> Result<Self, ProgramError> {
        let mut ebpf = Ebpf::load(object::OBJECT).unwrap();
        let program = ebpf.program_mut(object::program::EMPTY).unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        namespace.run(|| program.attach_with_options(device, TcAttachType::Ingress, options))?;
        Ok(Self(ebpf))
    }

    /// Its name, as bpftool shows it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        debug_assert!(self.0.program(object::program::EMPTY).is_some());
        object::program::EMPTY
    }
}
