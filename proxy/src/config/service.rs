//! What a service is, checked.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sheer_common::{abi, policy};

use super::Ports;
use crate::{socket::SourceMode, upstream::Destination};

/// One service: which connections it takes, and what becomes of them. `None` in a condition means any.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name in records, maps and messages; unique.
    pub name: String,
    /// What it looks at.
    pub protocol: Protocol,
    /// Whom clients ask for. This host's own addresses and special ones are taken only where an entry names nothing
    /// else: see [`sheer_common::policy::SPECIAL_V4`].
    pub destinations: Option<Prefixes>,
    /// The ports that they ask for.
    pub ports: Option<Ports>,
    /// Who asks.
    pub clients: Option<Prefixes>,
    /// Where the packets come in: a part of the config's interfaces.
    pub interfaces: Option<Vec<String>>,
    /// What is done with them.
    pub action: Action,
    /// From where the proxy connects to the server.
    pub source: SourceMode,
    /// Where it connects to.
    pub upstream: Destination,
    /// What happens to its new connections while the proxy is down.
    pub when_down: WhenDown,
    /// By which way answers go to the client.
    pub reply: Reply,
    /// What becomes of a connection whose client and server would speak past the proxy.
    pub same_subnet: SameSubnet,
    /// Connections that processes of this host open are taken too.
    pub intercept_local: bool,
    /// Pings to its addresses are answered here, while their server can be reached.
    pub answer_ping: bool,
    /// How much one client may take.
    pub limit: Option<Limit>,
}

impl Service {
    /// A service that takes every TCP connection, and says nothing else.
    #[must_use]
    pub fn any(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            protocol: Protocol::default(),
            destinations: None,
            ports: None,
            clients: None,
            interfaces: None,
            action: Action::default(),
            source: SourceMode::default(),
            upstream: Destination::default(),
            when_down: WhenDown::default(),
            reply: Reply::default(),
            same_subnet: SameSubnet::default(),
            intercept_local: false,
            answer_ping: false,
            limit: None,
        }
    }
}

impl Service {
    /// Whether packets that this host itself sends may concern it: those of a server or of a client on this host, or
    /// answers that take another way than the routes say. Whether an address is this host's own may change at any time.
    #[must_use]
    pub fn concerns_output(&self) -> bool {
        let names_single = |listed: &Prefixes| {
            listed.v4.iter().any(|net| net.prefix_len() == 32)
                || listed.v6.iter().any(|net| net.prefix_len() == 128)
        };
        self.action == Action::Proxy
            && (self.reply == Reply::SameWay
                || self.intercept_local
                || self.upstream != Destination::Original
                || self.destinations.as_ref().is_some_and(names_single))
    }
}

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP: passed or dropped, not proxied.
    Udp,
}

impl From<Protocol> for abi::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// What is done with the connections of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The proxy takes them.
    #[default]
    Proxy,
    /// They go their way.
    Pass,
    /// They are dropped.
    Drop,
}

impl From<Action> for policy::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Proxy => Self::Proxy,
            Action::Pass => Self::Pass,
            Action::Drop => Self::Drop,
        }
    }
}

/// What happens to new connections while no proxy is behind the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WhenDown {
    /// They go to the real server, unproxied.
    #[default]
    Open,
    /// They are dropped.
    Closed,
}

impl From<WhenDown> for policy::WhenDown {
    fn from(when_down: WhenDown) -> Self {
        match when_down {
            WhenDown::Open => Self::Open,
            WhenDown::Closed => Self::Closed,
        }
    }
}

/// By which way answers go to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// By this host's routes.
    #[default]
    Route,
    /// By the interface and to the neighbour by which the client's packets come.
    SameWay,
}

/// What becomes of a connection whose server would answer the client directly, because both are in one subnet: the
/// client would not know that answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameSubnet {
    /// It is refused.
    #[default]
    Refuse,
    /// The proxy connects from its own address.
    Proxy,
    /// As everywhere: the server's frames to the client come through a listed port of a bridge, and are taken there.
    Redirect,
}

impl SameSubnet {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Refuse, Self::Proxy, Self::Redirect];

    /// As the config, records and counters write it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Proxy => "proxy",
            Self::Redirect => "redirect",
        }
    }
}

/// How much one client may take of a service; checked by the kernel before a SYN is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Connections that it may open in a second, in the long run.
    pub new_per_second: Option<NonZeroU32>,
    /// How many of them at once.
    pub burst: NonZeroU32,
    /// Connections that it may have at the same time.
    pub concurrent: Option<NonZeroU32>,
    /// For how long it is shut out once it has opened too many too fast.
    pub block: Option<Duration>,
    /// Who counts as one client: addresses that share so many leading bits.
    pub per: PerClient,
}

/// Prefix lengths by which clients are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PerClient {
    /// Of IPv4 addresses, 1 to 32.
    pub v4: u8,
    /// Of IPv6 addresses, 1 to 128.
    pub v6: u8,
}

impl Default for PerClient {
    fn default() -> Self {
        Self { v4: 32, v6: 128 }
    }
}

/// Prefixes of both families, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// IPv4.
    pub v4: Vec<Ipv4Net>,
    /// IPv6.
    pub v6: Vec<Ipv6Net>,
}

impl Prefixes {
    /// One more.
    pub fn push(&mut self, prefix: IpNet) {
        match prefix {
            IpNet::V4(net) => self.v4.push(net),
            IpNet::V6(net) => self.v6.push(net),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest one that covers an address.
    #[must_use]
    pub fn covering(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(a) => {
                let covering = self.v4.iter().filter(|net| net.contains(&a));
                covering.max_by_key(|net| net.prefix_len()).map(|net| IpNet::V4(*net))
            }
            IpAddr::V6(a) => {
                let covering = self.v6.iter().filter(|net| net.contains(&a));
                covering.max_by_key(|net| net.prefix_len()).map(|net| IpNet::V6(*net))
            }
        }
    }
}
