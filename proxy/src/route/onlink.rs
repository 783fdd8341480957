//! Which addresses are reached on a link without a router in between, as the routing tables say it roughly.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteProtocol, RouteType,
};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use super::follow::{Followed, follow};
use super::netlink::{Netlink, collect, refused};
use super::{Family, RouteError};

/// The prefixes of all tables whose hosts are neighbours on a link, with the numbers of the links.
///
/// It says too much rather than too little: a rule may never ask a table, a longer prefix may lead to a router. The
/// exact answer is [`super::Neighbours`]'s. Only links whose hosts find each other by themselves count (ARP, neighbour
/// discovery): on a tunnel or a point-to-point link everything goes through this host, or its other end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OnLink {
    links: HashMap<IpNet, BTreeSet<u32>>,
    /// Lengths of prefixes that there are, per family.
    lengths: [BTreeSet<u8>; 2],
}

impl OnLink {
    /// Whether both may be neighbours on one link.
    #[must_use]
    pub fn may_share(&self, a: IpAddr, b: IpAddr) -> bool {
        if a.is_ipv4() != b.is_ipv4() {
            return false;
        }
        let mut of_b = self.links_of(b).peekable();
        // Most hosts have one link at most in common with a stranger: none.
        of_b.peek().is_some() && of_b.any(|link| self.links_of(a).any(|other| other == link))
    }

    fn links_of(&self, ip: IpAddr) -> impl Iterator<Item = u32> + '_ {
        let lengths = &self.lengths[family(ip)];
        let covering = lengths.iter().filter_map(move |length| IpNet::new(ip, *length).ok());
        covering.filter_map(|net| self.links.get(&net.trunc())).flatten().copied()
    }

    fn add(&mut self, net: IpNet, link: u32) {
        self.links.entry(net).or_default().insert(link);
        self.lengths[family(net.addr())].insert(net.prefix_len());
    }
}

fn family(ip: IpAddr) -> usize {
    usize::from(ip.is_ipv6())
}

/// Follows them: the receiver holds the present set and is told of each new one. The task behind it ends when the last
/// receiver is dropped.
///
/// # Errors
/// When the routes cannot be read or followed at the start. Later errors are logged and tried again.
pub async fn watch_on_link() -> Result<watch::Receiver<Arc<OnLink>>, RouteError> {
    follow().await
}

impl Followed for Arc<OnLink> {
    const OBJECT: &str = "the routes of this host";
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

    /// A router hears of thousands of routes through other routers: none of them is worth a look at all tables.
    fn concerned_by(news: &RouteNetlinkMessage) -> bool {
        match news {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                neighbours(route).is_some()
            }
            _ => true,
        }
    }

    async fn read(netlink: &Netlink) -> Result<Self, RouteError> {
        let links = collect("the network devices", netlink.handle.link().get().execute()).await?;
        let meeting: BTreeSet<u32> = links
            .iter()
            .filter(|link| neighbours_meet(link.header.flags))
            .map(|link| link.header.index)
            .collect();
        let mut found = OnLink::default();
        for family in Family::ALL {
            // Looked at one by one: a router may have a million.
            let mut routes = Box::pin(netlink.handle.route().get(all(family)).execute());
            loop {
                match routes.try_next().await {
                    Ok(Some(route)) => {
                        if let Some((net, links)) = neighbours(&route) {
                            links
                                .into_iter()
                                .filter(|link| meeting.contains(link))
                                .for_each(|link| found.add(net, link));
                        }
                    }
                    Ok(None) => break,
                    Err(e) => {
                        let e = refused("list", Self::OBJECT.to_owned(), e);
                        if e.errno().is_some_and(super::table::nothing_there) {
                            break;
                        }
                        return Err(e);
                    }
                }
            }
        }
        Ok(Self::new(found))
    }
}

/// Whether hosts on a link find each other by themselves.
fn neighbours_meet(flags: LinkFlags) -> bool {
    flags.contains(LinkFlags::Broadcast)
        && !flags.intersects(LinkFlags::Noarp | LinkFlags::Pointopoint | LinkFlags::Loopback)
}

/// A dump of all tables.
fn all(family: Family) -> RouteMessage {
    let mut filter = match family {
        Family::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    };
    filter.header.table = 0;
    filter.header.protocol = RouteProtocol::Unspec;
    filter.header.kind = RouteType::Unspec;
    filter
}

/// The prefix of a route whose hosts are neighbours, and the links on which they are.
fn neighbours(route: &RouteMessage) -> Option<(IpNet, Vec<u32>)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let nowhere = match route.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let destination = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        _ => None,
    });
    let net = IpNet::new(destination.unwrap_or(nowhere), route.header.destination_prefix_length).ok()?;
    if is_link_local(net.addr()) || net.addr().is_multicast() {
        return None;
    }
    let mut links = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) if direct(&route.attributes) => links.push(*link),
            RouteAttribute::MultiPath(hops) => {
                let direct = |hop: &&RouteNextHop| direct(&hop.attributes);
                links.extend(hops.iter().filter(direct).map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    (!links.is_empty()).then_some((net, links))
}

/// Never routed, and not taken unless named.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Without a router.
pub(super) fn direct(attributes: &[RouteAttribute]) -> bool {
    !attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn on_link(prefixes: &[(&str, u32)]) -> OnLink {
        let mut found = OnLink::default();
        for (net, link) in prefixes {
            found.add(net.parse().unwrap(), *link);
        }
        found
    }

    #[test]
    fn hosts_share_a_link_by_prefixes_of_any_length() {
        let found = on_link(&[("192.0.2.0/24", 2), ("198.51.100.0/24", 3), ("198.51.100.7/32", 2)]);
        assert!(found.may_share(ip("192.0.2.1"), ip("192.0.2.9")));
        assert!(!found.may_share(ip("192.0.2.1"), ip("198.51.100.9")));
        assert!(found.may_share(ip("192.0.2.1"), ip("198.51.100.7")));
        assert!(!found.may_share(ip("192.0.2.1"), ip("203.0.113.1")));
        assert!(!OnLink::default().may_share(ip("192.0.2.1"), ip("192.0.2.9")));
    }

    #[test]
    fn families_do_not_mix() {
        let found = on_link(&[("0.0.0.0/0", 2), ("::/0", 2)]);
        assert!(found.may_share(ip("192.0.2.1"), ip("203.0.113.1")));
        assert!(found.may_share(ip("2001:db8::1"), ip("2001:db8:9::1")));
        assert!(!found.may_share(ip("192.0.2.1"), ip("2001:db8::1")));
    }

    fn route(destination: &str, length: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let net: std::net::Ipv4Addr = destination.parse().unwrap();
        let mut message = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        message.header.kind = RouteType::Unicast;
        message.header.destination_prefix_length = length;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(net))];
        message.attributes.extend(attributes);
        message
    }

    #[test]
    fn a_route_through_a_router_makes_no_neighbours() {
        let router = RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, 254].into()));
        let far = route("10.0.0.0", 8, vec![router, RouteAttribute::Oif(2)]);
        assert_eq!(neighbours(&far), None);
        let near = route("10.0.0.0", 8, vec![RouteAttribute::Oif(2)]);
        assert_eq!(neighbours(&near), Some(("10.0.0.0/8".parse().unwrap(), vec![2])));
    }

    #[test]
    fn own_addresses_and_link_local_ones_are_no_neighbours() {
        let mut own = route("192.0.2.1", 32, vec![RouteAttribute::Oif(2)]);
        own.header.kind = RouteType::Local;
        assert_eq!(neighbours(&own), None);
        assert_eq!(neighbours(&route("169.254.0.0", 16, vec![RouteAttribute::Oif(2)])), None);
    }

    #[test]
    fn only_links_with_neighbour_discovery_count() {
        let ethernet = LinkFlags::Broadcast | LinkFlags::Multicast | LinkFlags::Up;
        assert!(neighbours_meet(ethernet));
        for other in [LinkFlags::Pointopoint | LinkFlags::Noarp, LinkFlags::Loopback | LinkFlags::Broadcast] {
            assert!(!neighbours_meet(other));
        }
    }
}
