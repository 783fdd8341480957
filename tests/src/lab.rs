//! client — sheer — server, each a namespace of its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::namespace::Namespace;

/// An address family; most scenarios are played in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A client or a server: a namespace with an interface `eth0` towards the middle.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// The name of the middle's interface towards this host.
    uplink: String,
}

impl Deref for Host {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Host {
    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        self.v4.into()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        self.v6.into()
    }

    /// Its address of that family.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4(),
            Family::V6 => self.v6(),
        }
    }

    /// The middle's address on the link to this host.
    #[must_use]
    pub fn gateway(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => gateway_v4(self.v4).into(),
            Family::V6 => gateway_v6(self.v6).into(),
        }
    }

    /// The name of the middle's interface towards this host.
    #[must_use]
    pub fn uplink(&self) -> &str {
        &self.uplink
    }
}

/// The whole arrangement.
///
/// ```text
/// client0  192.0.2.2 ─────── clients0 ┐           ┌ servers0 ─────── 198.51.100.2  server0
/// client1  192.0.2.6 ─────── clients1 ┤   sheer   ├ servers1 ─────── 198.51.100.6  server1
///          2001:db8:1::/48            ┘           └                  2001:db8:2::/48
/// ```
#[derive(Debug)]
pub struct Lab {
    clients: Vec<Host>,
    servers: Vec<Host>,
    middle: Namespace,
}

/// How many hosts the lab shall have.
#[derive(Debug, Clone, Copy)]
pub struct LabBuilder {
    clients: u8,
    servers: u8,
}

impl LabBuilder {
    /// So many clients, each on a link of its own.
    #[must_use]
    pub fn clients(mut self, clients: u8) -> Self {
        self.clients = clients;
        self
    }

    /// So many servers, each on a link of its own.
    #[must_use]
    pub fn servers(mut self, servers: u8) -> Self {
        self.servers = servers;
        self
    }

    /// Makes it.
    ///
    /// # Panics
    /// Without root, or when the kernel refuses.
    #[must_use]
    pub fn build(self) -> Lab {
        let middle = Namespace::new("sheer");
        middle.sysctl("net.ipv4.ip_forward", "1");
        middle.sysctl("net.ipv6.conf.all.forwarding", "1");
        let hosts = |count: u8, kind: &str, net4: [u8; 3], net6: u16| -> Vec<Host> {
            (0..count).map(|n| Host::attach(&middle, kind, n, net4, net6)).collect()
        };
        let clients = hosts(self.clients, "client", [192, 0, 2], 1);
        let servers = hosts(self.servers, "server", [198, 51, 100], 2);
        Lab { clients, servers, middle }
    }
}

impl Host {
    fn attach(middle: &Namespace, kind: &str, n: u8, net4: [u8; 3], net6: u16) -> Self {
        let namespace = Namespace::new(&format!("{kind}{n}"));
        let uplink = format!("{kind}s{n}");
        let v4 = Ipv4Addr::new(net4[0], net4[1], net4[2], n * 4 + 2);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, net6, n.into(), 0, 0, 0, 2);
        let (gateway4, gateway6) = (gateway_v4(v4), gateway_v6(v6));
        // Unlike its peer's: the kernel delays the news of a veth's carrier by up to a second when both ends happen to
        // have the same index (linkwatch_urgent_event).
        let index = u32::from(net4[0]) * 100 + u32::from(n);
        middle.configure(&format!(
            "link add {uplink} index {index} type veth peer name eth0 netns {}\n\
             addr add {gateway4}/30 dev {uplink}\n\
             addr add {gateway6}/64 dev {uplink} nodad\n\
             link set {uplink} up\n",
            namespace.path()
        ));
        namespace.configure(&format!(
            "addr add {v4}/30 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway4}\n\
             route add default via {gateway6}\n"
        ));
        let host = Self { namespace, v4, v6, uplink };
        host.namespace.wait_for_ipv6("eth0");
        middle.wait_for_ipv6(&host.uplink);
        host
    }
}

/// The other usable address of the /30.
fn gateway_v4(host: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(host) - 1)
}

fn gateway_v6(host: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(host) - 1)
}

impl Lab {
    /// One client, one server.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "making a lab is no default of anything")]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// One client and one server unless said otherwise.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder { clients: 1, servers: 1 }
    }

    /// The first client.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// All clients.
    #[must_use]
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// The first server.
    #[must_use]
    pub fn server(&self) -> &Host {
        &self.servers[0]
    }

    /// All servers.
    #[must_use]
    pub fn servers(&self) -> &[Host] {
        &self.servers
    }

    /// Gives a client or a server one more address, and the middle the way to it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn give(&self, host: &Host, address: IpAddr) {
        host.configure(&format!(
            "addr add {address} dev eth0{}\n",
            if address.is_ipv6() { " nodad" } else { "" }
        ));
        self.middle.configure(&format!("route add {address} dev {}\n", host.uplink()));
    }

    /// The namespace in which `sheer` runs.
    #[must_use]
    pub fn middle(&self) -> &Namespace {
        &self.middle
    }

    /// The middle's interfaces towards clients and servers.
    #[must_use]
    pub fn uplinks(&self) -> Vec<String> {
        self.clients.iter().chain(&self.servers).map(|host| host.uplink.clone()).collect()
    }
}
