//! What this kernel has of what the dataplane uses. It is asked, never told by its version: distributions carry
//! features back, and leave some out.

use aya::{
    maps::{Array, MapData, MapError, MapType},
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{self, BpfHelper, SyscallError},
};

use super::{DataplaneError, error::with_causes};
use crate::config::AttachMode;

/// `BPF_F_INNER_MAP` of linux/bpf.h.
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Something that kernels have or lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Programs at tc.
    TcPrograms,
    /// Programs that the stack asks for a listener.
    LookupPrograms,
    /// `bpf_sk_assign` at tc: new connections are given to a listener.
    SkAssign,
    /// `bpf_skc_lookup_tcp`: whose connection a packet belongs to.
    SkcLookup,
    /// `bpf_tcp_check_syncookie`: whether an ACK answers a cookie.
    CheckSyncookie,
    /// `bpf_skb_change_head` at tc: a packet gets an Ethernet header.
    ChangeHead,
    /// `bpf_redirect_neigh`: a packet that would leave is routed anew.
    RedirectNeigh,
    /// Sockmaps: where the programs find the listeners.
    SockMap,
    /// Inner maps that differ in size (`BPF_F_INNER_MAP`): a policy's tables are as long as it needs them.
    InnerMap,
    /// Ring buffers: how the programs tell what they decide.
    RingBuf,
    /// Links at tc that have an order and a pin.
    Tcx,
    /// `bpf_ktime_get_coarse_ns`: the time of the last tick.
    CoarseClock,
    /// Maps that say what their fields are called.
    Btf,
}

/// What becomes of the dataplane without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It does not work.
    Essential,
    /// It does this instead.
    Else(&'static str),
}

impl Feature {
    /// All of them. The first one stands for what the others need too.
    pub const ALL: [Self; 13] = [
        Self::TcPrograms,
        Self::LookupPrograms,
        Self::SkAssign,
        Self::SkcLookup,
        Self::CheckSyncookie,
        Self::ChangeHead,
        Self::RedirectNeigh,
        Self::SockMap,
        Self::InnerMap,
        Self::RingBuf,
        Self::Tcx,
        Self::CoarseClock,
        Self::Btf,
    ];

    /// For scripts.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::TcPrograms => "tc-programs",
            Self::LookupPrograms => "lookup-programs",
            Self::SkAssign => "sk-assign",
            Self::SkcLookup => "skc-lookup",
            Self::CheckSyncookie => "check-syncookie",
            Self::ChangeHead => "change-head",
            Self::RedirectNeigh => "redirect-neigh",
            Self::SockMap => "sockmap",
            Self::InnerMap => "inner-map",
            Self::RingBuf => "ringbuf",
            Self::Tcx => "tcx",
            Self::CoarseClock => "coarse-clock",
            Self::Btf => "btf",
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TcPrograms => "programs at tc",
            Self::LookupPrograms => "socket lookup programs",
            Self::SkAssign => "bpf_sk_assign",
            Self::SkcLookup => "bpf_skc_lookup_tcp",
            Self::CheckSyncookie => "bpf_tcp_check_syncookie",
            Self::ChangeHead => "bpf_skb_change_head",
            Self::RedirectNeigh => "bpf_redirect_neigh",
            Self::SockMap => "sockmaps",
            Self::InnerMap => "inner maps of any size",
            Self::RingBuf => "ring buffers",
            Self::Tcx => "TCX",
            Self::CoarseClock => "bpf_ktime_get_coarse_ns",
            Self::Btf => "BTF of maps",
        }
    }

    /// The Linux version that brought it, in the form in which Sheer uses it.
    #[must_use]
    pub fn since(self) -> &'static str {
        match self {
            Self::TcPrograms => "4.1",
            Self::LookupPrograms => "5.9",
            Self::SkAssign => "5.7",
            Self::SkcLookup | Self::CheckSyncookie => "5.2",
            // They came with 4.14; programs may look into them since 5.8.
            Self::SockMap | Self::RingBuf | Self::ChangeHead => "5.8",
            Self::InnerMap | Self::RedirectNeigh => "5.10",
            Self::Tcx => "6.6",
            Self::CoarseClock => "5.11",
            Self::Btf => "4.18",
        }
    }

    /// What a kernel of that version must have been built with.
    #[must_use]
    pub fn options(self) -> &'static str {
        match self {
            Self::TcPrograms => "CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_CLS_ACT",
            Self::CheckSyncookie => "CONFIG_INET and CONFIG_SYN_COOKIES",
            Self::SockMap => "CONFIG_INET and CONFIG_NET_SOCK_MSG (before 5.13: CONFIG_BPF_STREAM_PARSER)",
            Self::LookupPrograms | Self::SkAssign | Self::SkcLookup | Self::RedirectNeigh => {
                "CONFIG_BPF_SYSCALL and CONFIG_INET"
            }
            Self::InnerMap | Self::RingBuf | Self::ChangeHead | Self::CoarseClock | Self::Btf => {
                "CONFIG_BPF_SYSCALL"
            }
            Self::Tcx => "CONFIG_NET_XGRESS",
        }
    }

    /// What becomes of the dataplane without it.
    #[must_use]
    pub fn need(self) -> Need {
        match self {
            Self::Tcx => Need::Else("filters under a clsact qdisc do the same"),
            Self::CoarseClock => Need::Else("bpf_ktime_get_ns tells the time too, some nanoseconds dearer"),
            Self::Btf => Need::Else("bpftool shows the maps as bytes, without names"),
            _ => Need::Essential,
        }
    }

    fn ask(self) -> Answer {
        const TC: ProgramType = ProgramType::SchedClassifier;
        match self {
            Self::TcPrograms => of_program(sys::is_program_supported(TC)),
            Self::LookupPrograms => of_program(sys::is_program_supported(ProgramType::SkLookup)),
            Self::SkAssign => helper(TC, BpfHelper::BPF_FUNC_sk_assign),
            Self::SkcLookup => helper(TC, BpfHelper::BPF_FUNC_skc_lookup_tcp),
            Self::CheckSyncookie => helper(TC, BpfHelper::BPF_FUNC_tcp_check_syncookie),
            Self::ChangeHead => helper(TC, BpfHelper::BPF_FUNC_skb_change_head),
            Self::RedirectNeigh => helper(TC, BpfHelper::BPF_FUNC_redirect_neigh),
            Self::SockMap => of_map(sys::is_map_supported(MapType::SockMap)),
            Self::InnerMap => inner_map(),
            Self::RingBuf => of_map(sys::is_map_supported(MapType::RingBuf)),
            Self::Tcx => tcx(),
            Self::CoarseClock => {
                let clock = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;
                helper(TC, clock).and(|| helper(ProgramType::SkLookup, clock))
            }
            Self::Btf => aya::features().btf().map_or(Answer::No, |_| Answer::Yes),
        }
    }
}

/// What a question to the kernel came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is there.
    Yes,
    /// It is not.
    No,
    /// The kernel would not say, mostly for want of a privilege; what it said instead.
    Refused(String),
}

impl Answer {
    fn and(self, other: impl FnOnce() -> Self) -> Self {
        if self == Self::Yes { other() } else { self }
    }
}

fn of_program(asked: Result<bool, ProgramError>) -> Answer {
    asked.map_or_else(|e| Answer::Refused(with_causes(&e)), yes_or_no)
}

fn of_map(asked: Result<bool, SyscallError>) -> Answer {
    asked.map_or_else(|e| Answer::Refused(with_causes(&e)), yes_or_no)
}

fn yes_or_no(there: bool) -> Answer {
    if there { Answer::Yes } else { Answer::No }
}

fn helper(program: ProgramType, helper: BpfHelper) -> Answer {
    of_program(sys::is_helper_supported(program, helper))
}

fn inner_map() -> Answer {
    match Array::<MapData, u32>::create(1, BPF_F_INNER_MAP) {
        Ok(_) => Answer::Yes,
        Err(MapError::CreateError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EINVAL) => {
            Answer::No
        }
        Err(e) => Answer::Refused(with_causes(&e)),
    }
}

fn tcx() -> Answer {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Answer::Yes,
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EINVAL) => Answer::No,
        Err(e) => Answer::Refused(with_causes(&e)),
    }
}

/// What holds a program at tc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// A TCX link.
    Tcx,
    /// A filter under a clsact qdisc.
    Clsact,
}

/// What this kernel has; see [`Capabilities::probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities([Answer; Feature::ALL.len()]);

impl Capabilities {
    /// Asks the kernel, by loading programs of two instructions and making small maps. A millisecond or two.
    #[must_use]
    pub fn probe() -> Self {
        Self(Feature::ALL.map(Feature::ask))
    }

    /// Made up: a kernel that has all but these.
    #[cfg(test)]
    pub(crate) fn without(features: &[Feature]) -> Self {
        Self(Feature::ALL.map(|feature| yes_or_no(!features.contains(&feature))))
    }

    /// Made up: a kernel that refuses every question.
    #[cfg(test)]
    pub(crate) fn refused(why: &str) -> Self {
        Self(Feature::ALL.map(|_| Answer::Refused(why.to_owned())))
    }

    /// Each feature, and whether it is there.
    pub fn answers(&self) -> impl Iterator<Item = (Feature, &Answer)> {
        Feature::ALL.into_iter().zip(&self.0)
    }

    /// Whether it is certainly there.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.answers().any(|(asked, answer)| asked == feature && *answer == Answer::Yes)
    }

    /// Whether all programs may ask for the time of the last tick, instead of reading the clock.
    #[must_use]
    pub fn coarse_clock(&self) -> bool {
        self.has(Feature::CoarseClock)
    }

    /// How to attach at tc.
    ///
    /// # Errors
    /// When TCX is insisted on and not there.
    pub fn anchor(&self, wish: AttachMode) -> Result<Anchor, DataplaneError> {
        let tcx = self.answers().find(|(feature, _)| *feature == Feature::Tcx).map(|(_, answer)| answer);
        match (wish, tcx) {
            (AttachMode::Clsact, _) => Ok(Anchor::Clsact),
            (AttachMode::Tcx, Some(Answer::No)) => Err(DataplaneError::NoTcx),
            (AttachMode::Auto, Some(Answer::Yes)) | (AttachMode::Tcx, _) => Ok(Anchor::Tcx),
            (AttachMode::Auto, _) => Ok(Anchor::Clsact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_decides_how_to_attach_before_the_kernel_does() {
        let (new, old) = (Capabilities::without(&[]), Capabilities::without(&[Feature::Tcx]));
        assert_eq!(new.anchor(AttachMode::Auto).unwrap(), Anchor::Tcx);
        assert_eq!(old.anchor(AttachMode::Auto).unwrap(), Anchor::Clsact);
        assert_eq!(new.anchor(AttachMode::Clsact).unwrap(), Anchor::Clsact);
        let refusal = old.anchor(AttachMode::Tcx).unwrap_err().to_string();
        assert!(refusal.contains("6.6") && refusal.contains("clsact"), "{refusal}");
        // Where the kernel does not say, the way is taken that all kernels have.
        let silent = Capabilities::refused("Operation not permitted");
        assert_eq!(silent.anchor(AttachMode::Auto).unwrap(), Anchor::Clsact);
        assert_eq!(silent.anchor(AttachMode::Tcx).unwrap(), Anchor::Tcx);
    }

    #[test]
    fn what_is_not_certain_is_not_used() {
        assert!(Capabilities::without(&[]).coarse_clock());
        assert!(!Capabilities::without(&[Feature::CoarseClock]).coarse_clock());
        assert!(!Capabilities::refused("Operation not permitted").coarse_clock());
    }
}
