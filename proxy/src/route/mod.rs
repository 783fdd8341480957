//! The policy route: what makes the kernel deliver a marked packet to a local socket.
//!
//! `bpf_sk_assign` only chooses a socket; whether the packet is delivered or forwarded is still decided by the
//! route lookup. Sheer therefore marks what is its own and adds, for each interface it looks at and for each
//! address family,
//!
//! ```text
//! ip rule add priority P fwmark M/0xffffffff iif IFACE lookup T protocol 83
//! ip route add local default dev lo table T protocol 83
//! ```
//!
//! The rule is bound to the interface on purpose. The reverse-path check (`rp_filter`, `src_valid_mark`) asks the
//! same rules for the way back to the client, with `iif lo`: a rule without `iif` would answer "local" there
//! and the packet would vanish without a trace. Bound to the interface it is never asked, so that no sysctl has to
//! be changed. For the same reason the proxy's own sockets may carry the mark: what they send has no incoming
//! interface but `lo`.
//!
//! Everything made here carries our own protocol number ([`PROTOCOL`]), by which it is found again after a crash.
//!
//! In the order in which a start needs them: [`links`] (what is there), [`claims`] and [`choose_numbers`] (which
//! numbers are free), [`RouteGuard`] (make, keep and remove), [`watch_addresses`] (this host's own addresses), [`onward`] (where a
//! packet would go), [`watch_on_link`] and [`Neighbours`] (who speaks to whom without us).

mod addresses;
mod ask;
mod error;
mod follow;
mod guard;
mod links;
mod neighbours;
mod netlink;
mod numbers;
mod onlink;
mod qdisc;
mod rules;
mod table;

pub use addresses::{AddressSet, local_addresses, watch_addresses};
pub use ask::{Arriving, Onward, Standing, onward, seen_on, standing, way_back};
pub use error::RouteError;
pub use guard::{RouteGuard, RoutePlan, purge};
pub use links::{Link, LinkLayer, find_link, links};
pub use neighbours::Neighbours;
pub use numbers::{Claim, INSTANCES_MAX, Numbers, choose_numbers, claims};
pub use onlink::{OnLink, watch_on_link};
pub use qdisc::remove_unused_clsact;

/// The `rtm_protocol` / `FRA_PROTOCOL` number on every route and rule of ours (`ip rule show protocol 83`).
///
/// The kernel gives no meaning to numbers from `RTPROT_STATIC` (4) up (rtnetlink(7), linux/rtnetlink.h). 83 is in
/// neither linux/rtnetlink.h nor iproute2's `rt_protos`; Calico uses 80, OpenR 99, FRR 186 to 198.
pub const PROTOCOL: u8 = 83;

/// The two address families, each with rules and tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}
