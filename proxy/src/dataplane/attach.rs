//! The programs at their hooks.

use std::{fs::File, io, path::Path, str::FromStr};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions},
};

use super::{Dataplane, DataplaneError, Pins, clsact::Filter, object::program};
use crate::{
    instance::ClsactState,
    route::{Link, LinkLayer},
};

/// How the tc program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it (6.6 and later), clsact otherwise.
    #[default]
    Auto,
    /// A TCX link, or an error.
    Tcx,
    /// A filter under a clsact qdisc, as older kernels have it.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(format!("`{other}` is none of auto, tcx, clsact")),
        }
    }
}

/// What is attached; dropping it detaches what is not pinned.
pub struct Attachments {
    _links: Vec<FdLink>,
    _lookup: FdLink,
    filters: Vec<Filter>,
}

impl Attachments {
    /// Attaches the socket lookup and then the tc program to every link, pins what can be pinned in the
    /// stage, and takes over what a process before left. `filter_handle` tells this instance's filters under
    /// clsact apart from another one's; `filters_before` are those that the process before had.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached until then is detached again.
    pub fn make(
        dataplane: &mut Dataplane,
        links: &[Link],
        mode: AttachMode,
        filter_handle: u16,
        filters_before: &[ClsactState],
        pins: &Pins,
    ) -> Result<Self, DataplaneError> {
        // The lookup first: from the first marked packet on, the stack may ask it.
        let lookup = attach_lookup(dataplane, pins)?;
        let mut made = Self { _links: Vec::new(), _lookup: lookup, filters: Vec::new() };
        for link in links {
            let name = match link.layer {
                LinkLayer::Ethernet => program::ETHER,
                LinkLayer::L3 => program::IP,
                LinkLayer::Other(kind) => return Err(unreadable(link, kind)),
            };
            let program = dataplane.classifier(name)?;
            match tcx(program, link, mode, pins)? {
                Some(tcx) => made._links.push(tcx),
                None => made.filters.push(Filter::attach(program, link, filter_handle, filters_before)?),
            }
        }
        Ok(made)
    }

    /// What stands under clsact: for the state file, because no pin remembers it.
    #[must_use]
    pub fn clsact(&self) -> Vec<ClsactState> {
        self.filters.iter().map(Filter::state).collect()
    }

    /// How an interface was attached.
    #[must_use]
    pub fn kind(&self, interface: &str) -> &'static str {
        if self.filters.iter().any(|f| f.state().interface == interface) { "clsact" } else { "tcx" }
    }
}

fn attach_lookup(dataplane: &mut Dataplane, pins: &Pins) -> Result<FdLink, DataplaneError> {
    let refused = |reason: String| DataplaneError::Attach {
        interface: "the network namespace".into(),
        reason,
        cure: "the socket lookup needs Linux 5.9 or later",
    };
    let netns = File::open("/proc/self/ns/net").map_err(|e| refused(e.to_string()))?;
    let lookup = dataplane.lookup()?;
    let id = lookup.attach(netns).map_err(|e| refused(full(&e)))?;
    let link: FdLink = lookup.take_link(id).map_err(|e| refused(full(&e)))?.into();
    pin(link, &pins.staged_lookup_link())
}

/// A TCX link: the one that a dead process left, given the new program, or a new one.
fn tcx(
    program: &mut SchedClassifier,
    link: &Link,
    mode: AttachMode,
    pins: &Pins,
) -> Result<Option<FdLink>, DataplaneError> {
    if mode == AttachMode::Clsact {
        return Ok(None);
    }
    let id = match take_over(program, &pins.ingress_link(&link.name)) {
        Some(id) => id,
        // In front of everybody: ours lets all that it does not drop go on to the others, while one of theirs
        // that says OK would keep ours from ever seeing the packet.
        None => match program.attach_with_options(
            &link.name,
            TcAttachType::Ingress,
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        ) {
            Ok(id) => id,
            Err(e) if mode == AttachMode::Auto && lacks_tcx(&e) => return Ok(None),
            Err(e) => return Err(refused(link, &e)),
        },
    };
    let taken = program.take_link(id).map_err(|e| refused(link, &e))?;
    let fd_link: FdLink =
        taken.try_into().map_err(|e| refused(link, &ProgramError::from(io::Error::other(e))))?;
    pin(fd_link, &pins.staged_ingress_link(&link.name)).map(Some)
}

/// Gives a pinned link the new program; nothing where there is no link, or its interface is gone.
fn take_over(program: &mut SchedClassifier, pin: &Path) -> Option<SchedClassifierLinkId> {
    let pinned = PinnedLink::from_pin(pin).ok()?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).ok()?;
    program.attach_to_link(link).ok()
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
