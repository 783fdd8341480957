//! What can go wrong with links, rules, routes and addresses.

use std::io;

/// A failure of the policy route or of reading links and addresses.
///
/// Each message says what failed, on what, the likely cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel answered EPERM or EACCES.
    #[error(
        "cannot {action} {object}: not permitted. This needs CAP_NET_ADMIN in the network namespace: run as root, \
         or give the service AmbientCapabilities=CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        object: String,
    },

    /// The kernel refused for another reason.
    #[error("cannot {action} {object}: {source}{hint}")]
    Refused {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        object: String,
        /// The kernel's errno.
        source: io::Error,
        /// Likely cause and cure, or empty.
        hint: &'static str,
    },

    /// No netlink socket, or it broke off in the middle.
    #[error(
        "the netlink socket failed ({reason}) while trying to {action} {object}. A sandbox that leaves out AF_NETLINK \
         (RestrictAddressFamilies= in a systemd unit) is the usual cause: allow it"
    )]
    Netlink {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        object: String,
        /// What the netlink library said.
        reason: String,
    },

    /// `lo` is missing or down: a local route through it delivers nothing.
    #[error(
        "the loopback interface is down, so that no intercepted packet can be delivered: ip link set lo up"
    )]
    LoopbackDown,

    /// IPv6 is off on `lo` alone.
    #[error(
        "IPv6 is on for {interface} but off on lo, so that intercepted IPv6 packets could not be delivered: \
         sysctl -w net.ipv6.conf.lo.disable_ipv6=0, or turn IPv6 off on {interface} too"
    )]
    LoopbackWithoutIpv6 {
        /// A listed interface with IPv6.
        interface: String,
    },

    /// No interface has this name.
    #[error("no interface is called {name:?} in this network namespace{suggestion}")]
    NoSuchLink {
        /// The name asked for.
        name: String,
        /// ": did you mean …" or the names that there are.
        suggestion: String,
    },

    /// A number that cannot be used for a mark or a table.
    #[error("{what} cannot be {value}: {why}")]
    BadNumber {
        /// "the mark" or "the table".
        what: &'static str,
        /// The number.
        value: u32,
        /// Why not, and what to do.
        why: &'static str,
    },

    /// Somebody else keeps routes in the table.
    #[error(
        "routing table {table} already holds a route that is not Sheer's ({route}): choose another number for \
         dataplane.table, or remove it with: ip {flag}route flush table {table}"
    )]
    TableInUse {
        /// The table's number.
        table: u32,
        /// What stands there, in the words of `ip route`.
        route: String,
        /// `-6 ` for IPv6.
        flag: &'static str,
    },

    /// All numbers of ours are taken.
    #[error(
        "no free mark, table and priority: all {instances} are taken by instances of Sheer or by other rules. Remove \
         dead instances with sheer cleanup --instance NAME, or set dataplane.mark and dataplane.table"
    )]
    NoFreeNumbers {
        /// How many there are.
        instances: u32,
    },
}

impl RouteError {
    /// The kernel's errno, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
