//! The programs at their hooks.

use std::{fs::File, io, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{Dataplane, DataplaneError, clsact::Filter, object::program, pins::Stage};
use crate::{
    config::AttachMode,
    instance::ClsactState,
    route::{Link, LinkLayer},
};

/// What shall be attached, and how.
#[derive(Debug)]
pub struct AttachPlan<'a> {
    /// Where.
    pub links: &'a [Link],
    /// TCX or clsact.
    pub mode: AttachMode,
    /// Tells this instance's filters under clsact apart from another one's.
    pub filter_handle: u32,
    /// Filters that the process before had.
    pub filters_before: &'a [ClsactState],
}

/// What is attached; dropping it detaches what is not pinned.
pub struct Attachments {
    _links: Vec<FdLink>,
    _lookup: FdLink,
    filters: Vec<Filter>,
}

impl Attachments {
    /// Attaches the socket lookup and the tc program, and pins in the stage what can be pinned. `filters` hears of
    /// each filter as it is made.
    ///
    /// The links that a process before left are given the new program last, when nothing else can fail: until then
    /// its programs, and its idea of `when_down`, stay in force.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached until then is detached with the stage.
    pub fn make(
        dataplane: &mut Dataplane,
        plan: &AttachPlan<'_>,
        stage: &Stage,
        filters: &mut Vec<ClsactState>,
    ) -> Result<Self, DataplaneError> {
        // The lookup first: from the first marked packet on, the stack may ask it.
        let lookup = attach_lookup(dataplane, stage)?;
        let mut made = Self { _links: Vec::new(), _lookup: lookup, filters: Vec::new() };
        let left = |link: &&Link| plan.mode != AttachMode::Clsact && stage.left_link(&link.name).exists();
        let (take_over, anew): (Vec<&Link>, Vec<&Link>) = plan.links.iter().partition(left);
        for link in anew {
            made.attach(dataplane, link, plan, stage, filters)?;
        }
        for link in take_over {
            let program = classifier(dataplane, link)?;
            match exchange(program, link, &stage.left_link(&link.name)) {
                Some(taken) => made._links.push(pin(taken, &stage.ingress_link(&link.name))?),
                None => made.attach(dataplane, link, plan, stage, filters)?,
            }
        }
        Ok(made)
    }

    fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        link: &Link,
        plan: &AttachPlan<'_>,
        stage: &Stage,
        filters: &mut Vec<ClsactState>,
    ) -> Result<(), DataplaneError> {
        let program = classifier(dataplane, link)?;
        match tcx(program, link, plan.mode)? {
            Some(made) => self._links.push(pin(made, &stage.ingress_link(&link.name))?),
            None => self.filters.push(Filter::attach(program, link, plan, filters)?),
        }
        Ok(())
    }

    /// What stands under clsact: for the state file, because no pin remembers it.
    #[must_use]
    pub fn clsact(&self) -> Vec<ClsactState> {
        self.filters.iter().map(Filter::state).cloned().collect()
    }

    /// How an interface was attached.
    #[must_use]
    pub fn kind(&self, interface: &str) -> &'static str {
        if self.filters.iter().any(|f| f.state().interface == interface) { "clsact" } else { "tcx" }
    }

    /// Lets everything stand: what is pinned does anyway, filters under clsact are let go of.
    pub fn leave(self) {
        self.filters.into_iter().for_each(Filter::leave);
    }
}

/// Loads the programs that these links need. What the verifier refuses is known before anything is attached.
///
/// # Errors
/// When it does.
pub fn load_programs(dataplane: &mut Dataplane, links: &[Link]) -> Result<(), DataplaneError> {
    dataplane.lookup()?;
    links.iter().try_for_each(|link| classifier(dataplane, link).map(drop))
}

fn classifier<'a>(
    dataplane: &'a mut Dataplane,
    link: &Link,
) -> Result<&'a mut SchedClassifier, DataplaneError> {
    dataplane.classifier(match link.layer {
        LinkLayer::Ethernet => program::ETHER,
        LinkLayer::L3 => program::IP,
        LinkLayer::Other(kind) => return Err(unreadable(link, kind)),
    })
}

fn attach_lookup(dataplane: &mut Dataplane, stage: &Stage) -> Result<FdLink, DataplaneError> {
    let refused = |reason: String| DataplaneError::Attach {
        interface: "the network namespace".into(),
        reason,
        cure: "the socket lookup needs Linux 5.9 or later",
    };
    let netns = File::open("/proc/self/ns/net").map_err(|e| refused(e.to_string()))?;
    let lookup = dataplane.lookup()?;
    let id = lookup.attach(netns).map_err(|e| refused(full(&e)))?;
    let link: FdLink = lookup.take_link(id).map_err(|e| refused(full(&e)))?.into();
    pin(link, &stage.lookup_link())
}

/// A new TCX link; nothing where the kernel has none and clsact may do.
fn tcx(
    program: &mut SchedClassifier,
    link: &Link,
    mode: AttachMode,
) -> Result<Option<FdLink>, DataplaneError> {
    if mode == AttachMode::Clsact {
        return Ok(None);
    }
    // In front of everybody: ours lets all that it does not drop go on to the others, while one of theirs that
    // says OK would keep ours from ever seeing the packet.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = match program.attach_with_options(&link.name, TcAttachType::Ingress, options) {
        Ok(id) => id,
        Err(e) if mode == AttachMode::Auto && lacks_tcx(&e) => return Ok(None),
        Err(e) => return Err(refused(link, &e)),
    };
    let taken = program.take_link(id).map_err(|e| refused(link, &e))?;
    let fd_link = taken.try_into().map_err(|e| refused(link, &ProgramError::from(io::Error::other(e))))?;
    Ok(Some(fd_link))
}

/// Gives the link that a process before left the new program; nothing where that is no link, or where it leads to
/// another device: one that had this name before, or has it in another network namespace.
fn exchange(program: &mut SchedClassifier, link: &Link, left: &Path) -> Option<FdLink> {
    let pinned = PinnedLink::from_pin(left).ok()?;
    let old = SchedClassifierLink::try_from(FdLink::from(pinned)).ok()?;
    let id = program.attach_to_link(old).ok()?;
    let taken: FdLink = program.take_link(id).ok()?.try_into().ok()?;
    let ours = program.info().ok()?.id();
    let (_, on_device) = SchedClassifier::query_tcx(&link.name, TcAttachType::Ingress).ok()?;
    on_device.iter().any(|p| p.id() == ours).then_some(taken)
}

/// Pins a link and keeps it open.
fn pin(link: FdLink, path: &Path) -> Result<FdLink, DataplaneError> {
    let pinned = link.pin(path).map_err(|e| DataplaneError::Bpffs {
        doing: "pinning",
        path: path.to_owned(),
        source: io::Error::other(e),
        cure: "check that bpffs is mounted on /sys/fs/bpf",
    })?;
    Ok(pinned.into())
}

/// Whether the kernel knows no TCX: it then refuses the attach type or the link.
fn lacks_tcx(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(e)
        if matches!(e.io_error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM)))
}

/// Neither Ethernet nor bare IP: its frames would be read wrongly.
fn unreadable(link: &Link, kind: u16) -> DataplaneError {
    DataplaneError::Attach {
        interface: link.name.clone(),
        reason: format!("its frames are of link type {kind} (ARPHRD of linux/if_arp.h)"),
        cure: "Sheer reads Ethernet and devices without a link-layer header; name the device that carries the IP packets",
    }
}

pub(super) fn refused(link: &Link, error: &ProgramError) -> DataplaneError {
    DataplaneError::Attach {
        interface: link.name.clone(),
        reason: full(error),
        cure: "needs CAP_NET_ADMIN, and NET_CLS_BPF or TCX in the kernel; `--attach clsact` tries the older way",
    }
}

/// An error with its causes.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
