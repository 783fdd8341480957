//! The answer, step by step.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sheer_common::{
    explain::KnownSocket,
    limit::{Block, Limit},
    verdict::Verdict,
};

use super::{reasons::Services, reference::Destination};
use crate::{
    config::{self, Protocol},
    dataplane::explain::KnownClient,
};

/// What becomes of a packet, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked about.
    pub packet: Packet,
    /// Where it comes in.
    pub interface: Interface,
    /// What kind of address it goes to.
    pub destination: Destination,
    /// Which service takes it.
    pub services: Services,
    /// What socket of this host has its tuple.
    pub socket: Socket,
    /// The client's account with the service, where that has a limit.
    pub limit: Option<Account>,
    /// The block by hand that the client is under.
    pub blocked_by_hand: Option<Blocked>,
    /// What the programs decided.
    #[serde(with = "by_name")]
    pub verdict: Verdict,
    /// Number of the worker whose listener is there for it, as its thread bears it.
    pub worker: Option<u32>,
    /// Whether the proxy is leaving.
    pub draining: bool,
    /// What happens to it behind the programs.
    pub next: Next,
    /// Where the programs and the config contradict each other: always a fault of Sheer's.
    pub disagreements: Vec<Disagreement>,
}

/// A packet as it was asked about.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Packet {
    /// TCP: a SYN. UDP: an empty datagram.
    pub protocol: Protocol,
    /// The client.
    pub from: SocketAddr,
    /// Whom it asks for.
    pub to: SocketAddr,
}

/// The interface by which it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Who says so.
    pub chosen: Chosen,
    /// Whether packets are looked at there.
    pub seen: Seen,
    /// How they are read.
    pub frames: Frames,
}

/// Who chose an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chosen {
    /// Whoever asked.
    Asked,
    /// The route by which this host answers the client.
    WayBack,
}

/// Whether packets are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum Seen {
    /// On the interface itself.
    Here {
        /// `tcx` or `clsact`.
        by: String,
    },
    /// On one below it, which is listed: the trunk of a VLAN device, the port of a bridge.
    Below {
        /// The listed one.
        interface: String,
        /// `tcx` or `clsact`.
        by: String,
    },
    /// Nowhere: no interface of the config has anything to do with it.
    Not,
}

/// How packets begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// With an Ethernet header.
    Ethernet,
    /// With the IP header.
    Ip,
    /// With something that Sheer does not read.
    Unreadable,
}

/// What socket of this host has the packet's tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Socket {
    /// It was not looked for.
    NotAsked,
    /// None.
    None,
    /// One in TIME_WAIT.
    TimeWait,
    /// A handshake under way.
    Request,
    /// A listener that is bound to every address.
    Listener,
    /// One of the proxy's.
    Proxys,
    /// One of another process.
    Foreign,
}

impl From<KnownSocket> for Socket {
    fn from(socket: KnownSocket) -> Self {
        match socket {
            KnownSocket::NotAsked => Self::NotAsked,
            KnownSocket::None => Self::None,
            KnownSocket::TimeWait => Self::TimeWait,
            KnownSocket::Request => Self::Request,
            KnownSocket::Listener => Self::Listener,
            KnownSocket::Proxys => Self::Proxys,
            KnownSocket::Foreign => Self::Foreign,
        }
    }
}

/// A client's account with a service that has a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Whose: the client's address, or the prefix by which the service tells clients apart.
    pub client: IpNet,
    /// What it may open.
    pub rate: Option<Rate>,
    /// What it may have.
    pub concurrent: Option<Concurrent>,
    /// Whether the limit has shut it out.
    pub blocked: Option<Blocked>,
}

/// New connections in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// In a second, in the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
    /// At once, at this moment.
    pub left: u32,
    /// Let in while the client has been known.
    pub admitted: u64,
    /// Refused since then.
    pub refused: u64,
}

/// Connections at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrent {
    /// That there are.
    pub held: u32,
    /// That there may be.
    pub allowed: u32,
}

/// A block that stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blocked {
    /// Seconds until it ends.
    pub remaining_s: f64,
    /// Seconds since it began.
    pub since_s: f64,
    /// Connections refused since.
    pub refused: u64,
}

impl Blocked {
    pub(super) fn of(block: &Block, now_ns: u64) -> Self {
        Self {
            remaining_s: block.until_ns.saturating_sub(now_ns) as f64 / 1e9,
            since_s: now_ns.saturating_sub(block.since_ns) as f64 / 1e9,
            refused: block.refused,
        }
    }
}

impl Account {
    /// Of a client of a service with this limit, once as the config has it and once as the programs do.
    pub(super) fn of(known: &KnownClient, config: &config::Limit, limit: &Limit) -> Self {
        let account = known.rate.unwrap_or_default();
        let rate = config.new_per_second.map(|per_second| Rate {
            per_second: per_second.get(),
            burst: config.burst.get(),
            left: left(limit, account.allowed_at_ns, known.now_ns),
            admitted: account.admitted,
            refused: account.refused,
        });
        let concurrent = config.concurrent;
        Self {
            // A prefix that was in a map is not longer than an address.
            client: IpNet::new(known.address, known.prefix).unwrap_or_else(|_| known.address.into()),
            rate,
            concurrent: concurrent.map(|n| Concurrent { held: known.concurrent, allowed: n.get() }),
            blocked: known.blocked.map(|block| Blocked::of(&block, known.now_ns)),
        }
    }
}

/// How many connections would be let in at once: how often [`Limit::admit`] would say yes.
fn left(limit: &Limit, allowed_at_ns: u64, now_ns: u64) -> u32 {
    let room = limit.burst_ns.checked_sub(allowed_at_ns.saturating_sub(now_ns));
    let left = room.and_then(|room| room.checked_div(limit.interval_ns)).map_or(0, |more| more + 1);
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// What happens behind the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "next", rename_all = "snake_case")]
pub enum Next {
    /// Nothing: the packet is gone.
    Dropped,
    /// It is routed as if Sheer were not there.
    Routed {
        /// Whereto.
        onward: Onward,
    },
    /// No program sees it, since nobody looks there: it is routed.
    Unseen {
        /// Whereto.
        onward: Onward,
    },
    /// The policy route takes it.
    PolicyRoute {
        /// By this rule and table.
        route: PolicyRoute,
        /// Whether it gets here.
        delivery: Delivery,
    },
}

/// The policy route of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRoute {
    /// The packet's mark.
    pub mark: u32,
    /// The rule's priority.
    pub priority: u32,
    /// The rule's interface.
    pub interface: String,
    /// The table that it leads to.
    pub table: u32,
}

/// Whether a steered packet gets to this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "delivery", rename_all = "snake_case")]
pub enum Delivery {
    /// It does.
    Here {
        /// By this table: the policy route's, or the kernel's own where the address is this host's.
        table: u32,
    },
    /// It does not: somebody removed the rule.
    NoRule {
        /// Where it goes instead.
        onward: Onward,
    },
    /// It does not: somebody removed the table's route.
    NoRoute {
        /// Where it goes instead.
        onward: Onward,
    },
    /// It does not, though rule and route are there: another rule comes first, or the reverse-path check fails.
    Astray {
        /// Where it goes instead.
        onward: Onward,
    },
}

/// Where the kernel sends a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "onward", rename_all = "snake_case")]
pub enum Onward {
    /// To this host.
    Here {
        /// The table that says so.
        table: u32,
    },
    /// To another one.
    There {
        /// By this interface.
        interface: String,
        /// And this router.
        gateway: Option<IpAddr>,
    },
    /// Nowhere.
    Nowhere {
        /// What the kernel says.
        why: String,
    },
}

impl Onward {
    pub(super) fn nowhere(why: &io::Error) -> Self {
        Self::Nowhere { why: why.to_string() }
    }
}

/// Where the programs and the config contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Disagreement {
    /// Which service takes the packet, by their numbers from one.
    Service {
        /// As the programs see it.
        programs: Option<usize>,
        /// As the config says.
        config: Option<usize>,
    },
    /// Whether the destination is this host's own.
    Own {
        /// As the programs see it; this host's list says the opposite.
        programs: bool,
    },
}

/// A verdict goes by its name.
mod by_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use sheer_common::verdict::Verdict;

    pub(super) fn serialize<S: Serializer>(verdict: &Verdict, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(verdict.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Verdict, D::Error> {
        let name = String::deserialize(from)?;
        let found = Verdict::ALL.iter().find(|verdict| verdict.name() == name);
        found.copied().ok_or_else(|| D::Error::custom(format!("no verdict is called {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_burst_is_what_would_be_let_in_at_once() {
        let limit = Limit { interval_ns: 100, burst_ns: 900, ..Limit::default() };
        let admitted = |mut allowed_at: u64| {
            let mut admit = || limit.admit(allowed_at, 5000).map(|next| allowed_at = next);
            std::iter::from_fn(&mut admit).count() as u32
        };
        for (allowed_at, expected) in [(0, 10), (5300, 7), (5350, 6), (5900, 1), (5901, 0)] {
            assert_eq!(left(&limit, allowed_at, 5000), expected);
            assert_eq!(admitted(allowed_at), expected);
        }
        assert_eq!(left(&Limit::default(), 0, 5000), 0);
    }
}
