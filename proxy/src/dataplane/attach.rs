//! The programs at their hooks.

use std::{fs::File, io, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{
    Dataplane, DataplaneError, Pins, clsact::Filter, error::with_causes, object::program, pins::Stage,
    probe::Anchor,
};
use crate::{
    instance::ClsactState,
    route::{Link, LinkLayer},
};

/// Which packets of an interface a program looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that come in.
    In,
    /// Those that leave.
    Out,
}

impl From<Direction> for TcAttachType {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::In => Self::Ingress,
            Direction::Out => Self::Egress,
        }
    }
}

/// A place where a program is attached.
#[derive(Clone, Copy, Debug)]
pub struct Hook<'a> {
    /// The interface.
    pub link: &'a Link,
    /// Which of its packets.
    pub direction: Direction,
}

impl Hook<'_> {
    /// The name of its link in bpffs.
    pub(super) fn pin_name(&self) -> String {
        let direction = match self.direction {
            Direction::In => "ingress",
            Direction::Out => "egress",
        };
        // An interface may be called eth0.5; bpffs refuses names with dots.
        format!("{direction}-{}", self.link.name.replace('.', "+"))
    }
}

/// What shall be attached, and how.
#[derive(Debug)]
pub struct AttachPlan<'a> {
    /// Where.
    pub hooks: Vec<Hook<'a>>,
    /// TCX or clsact.
    pub anchor: Anchor,
    /// Tells this instance's filters under clsact apart from another one's.
    pub filter_handle: u32,
    /// Filters that the process before had.
    pub filters_before: &'a [ClsactState],
    /// Filters of other instances: a qdisc that one of them made goes with whoever leaves last.
    pub filters_of_others: &'a [ClsactState],
}

impl AttachPlan<'_> {
    fn concerns_output(&self) -> bool {
        self.hooks.iter().any(|hook| hook.direction == Direction::Out)
    }
}

/// What is attached; dropping it detaches what is not pinned.
pub struct Attachments {
    anchor: Anchor,
    output: bool,
    _links: Vec<FdLink>,
    _lookup: FdLink,
    filters: Vec<Filter>,
}

impl Attachments {
    /// Attaches the socket lookup and the tc programs, and pins in the stage what can be pinned. `filters` hears of
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
        let mut made = Self {
            anchor: plan.anchor,
            output: false,
            _links: Vec::new(),
            _lookup: lookup,
            filters: Vec::new(),
        };
        let links = stage.links();
        let left = |hook: &&Hook<'_>| plan.anchor == Anchor::Tcx && stage.left_link(hook).exists();
        let (take_over, anew): (Vec<&Hook<'_>>, Vec<&Hook<'_>>) = plan.hooks.iter().partition(left);
        for hook in anew {
            made.attach(dataplane, hook, plan, &links, filters)?;
        }
        for hook in take_over {
            let program = classifier(dataplane, hook)?;
            match exchange(program, hook, &stage.left_link(hook)) {
                Some(taken) => made._links.push(pin(taken, &links.join(hook.pin_name()))?),
                None => made.attach(dataplane, hook, plan, &links, filters)?,
            }
        }
        made.output = plan.concerns_output();
        Ok(made)
    }

    /// Attaches at more hooks, and pins their links among the published ones.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached until then stays.
    pub fn add(
        &mut self,
        dataplane: &mut Dataplane,
        plan: &AttachPlan<'_>,
        pins: &Pins,
        filters: &mut Vec<ClsactState>,
    ) -> Result<(), DataplaneError> {
        load_programs(dataplane, &plan.hooks)?;
        pins.pin_programs(dataplane)?;
        for hook in &plan.hooks {
            self.attach(dataplane, hook, plan, &pins.links(), filters)?;
        }
        self.output |= plan.concerns_output();
        Ok(())
    }

    /// What holds the programs.
    #[must_use]
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// Whether outgoing packets are looked at.
    #[must_use]
    pub fn concern_output(&self) -> bool {
        self.output
    }

    fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        hook: &Hook<'_>,
        plan: &AttachPlan<'_>,
        links: &Path,
        filters: &mut Vec<ClsactState>,
    ) -> Result<(), DataplaneError> {
        let program = classifier(dataplane, hook)?;
        match plan.anchor {
            Anchor::Tcx => self._links.push(pin(tcx(program, hook)?, &links.join(hook.pin_name()))?),
            Anchor::Clsact => self.filters.push(Filter::attach(program, hook, plan, filters)?),
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

/// Loads the programs that these hooks need. What the verifier refuses is known before anything is attached.
///
/// # Errors
/// When it does.
pub fn load_programs(dataplane: &mut Dataplane, hooks: &[Hook<'_>]) -> Result<(), DataplaneError> {
    dataplane.lookup()?;
    hooks.iter().try_for_each(|hook| classifier(dataplane, hook).map(drop))
}

fn classifier<'a>(
    dataplane: &'a mut Dataplane,
    hook: &Hook<'_>,
) -> Result<&'a mut SchedClassifier, DataplaneError> {
    dataplane.classifier(match (hook.link.layer, hook.direction) {
        (LinkLayer::Ethernet, Direction::In) => program::ETHER,
        (LinkLayer::Ethernet, Direction::Out) => program::OUT_ETHER,
        (LinkLayer::L3, Direction::In) => program::IP,
        (LinkLayer::L3, Direction::Out) => program::OUT_IP,
        (LinkLayer::Other(kind), _) => return Err(unreadable(hook.link, kind)),
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
    let id = lookup.attach(netns).map_err(|e| refused(with_causes(&e)))?;
    let link: FdLink = lookup.take_link(id).map_err(|e| refused(with_causes(&e)))?.into();
    pin(link, &stage.lookup_link())
}

/// A new TCX link.
fn tcx(program: &mut SchedClassifier, hook: &Hook<'_>) -> Result<FdLink, DataplaneError> {
    // In front of everybody: ours lets all that it does not drop go on to the others, while one of theirs that
    // says OK would keep ours from ever seeing the packet.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let link = hook.link;
    let attached = program.attach_with_options(&link.name, hook.direction.into(), options);
    let taken = attached.and_then(|id| program.take_link(id)).map_err(|e| refused(link, &e))?;
    taken.try_into().map_err(|e| refused(link, &ProgramError::from(io::Error::other(e))))
}

/// Gives the link that a process before left the new program; nothing where that is no link, or where it leads to
/// another device: one that had this name before, or has it in another network namespace.
fn exchange(program: &mut SchedClassifier, hook: &Hook<'_>, left: &Path) -> Option<FdLink> {
    let pinned = PinnedLink::from_pin(left).ok()?;
    let old = SchedClassifierLink::try_from(FdLink::from(pinned)).ok()?;
    let id = program.attach_to_link(old).ok()?;
    let taken: FdLink = program.take_link(id).ok()?.try_into().ok()?;
    let ours = program.info().ok()?.id();
    let (_, on_device) = SchedClassifier::query_tcx(&hook.link.name, hook.direction.into()).ok()?;
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
        reason: with_causes(error),
        cure: "needs CAP_NET_ADMIN, and NET_CLS_BPF or TCX in the kernel; `--attach clsact` tries the older way",
    }
}
