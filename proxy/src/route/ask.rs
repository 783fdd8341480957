//! Questions to the kernel about where packets go.

use std::{io, net::IpAddr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;
use rustix::io::Errno;

use super::{
    Family, Numbers, RouteError, links,
    links::Link,
    netlink::{Netlink, refused},
    rules::{self, Rule},
    table,
};

/// A packet that came in, as the route lookup sees it.
#[derive(Clone, Copy, Debug)]
pub struct Arriving {
    /// From whom.
    pub from: IpAddr,
    /// To whom.
    pub to: IpAddr,
    /// By which interface, as the kernel numbers it.
    pub interface: u32,
    /// Its mark; 0: none.
    pub mark: u32,
}

/// Where the kernel sends a packet.
#[derive(Debug)]
pub enum Onward {
    /// To this host.
    Here {
        /// The table that says so.
        table: u32,
    },
    /// To another host.
    There {
        /// By the interface of this number.
        interface: u32,
        /// By this router.
        gateway: Option<IpAddr>,
    },
    /// Nowhere.
    Nowhere(io::Error),
}

/// What stands of the policy route for one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The rule.
    pub rule: bool,
    /// The table's route.
    pub route: bool,
}

/// The number of the interface by which packets leave for an address; nothing where there is no route.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn way_back(client: IpAddr) -> Result<Option<u32>, RouteError> {
    match lookup(request(client), &format!("the route to {client}")).await {
        Ok(found) => Ok(outgoing(&found)),
        Err(e) if e.errno().is_some_and(leads_nowhere) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where a packet that came in goes.
///
/// # Errors
/// When the kernel cannot be asked. That it sends the packet nowhere is an answer.
pub async fn onward(packet: &Arriving) -> Result<Onward, RouteError> {
    let mut asked = request(packet.to);
    let whole = if packet.from.is_ipv4() { 32 } else { 128 };
    asked.header.source_prefix_length = whole;
    asked.attributes.push(RouteAttribute::Source(route_address(packet.from)));
    asked.attributes.push(RouteAttribute::Iif(packet.interface));
    if packet.mark != 0 {
        asked.attributes.push(RouteAttribute::Mark(packet.mark));
    }
    let object = format!("the route from {} to {}", packet.from, packet.to);
    let found = match lookup(asked, &object).await {
        Ok(found) => found,
        Err(RouteError::Refused { source, .. }) => return Ok(Onward::Nowhere(source)),
        Err(e) => return Err(e),
    };
    Ok(match (found.header.kind, outgoing(&found)) {
        (RouteType::Local, _) => Onward::Here { table: table::table_of(&found) },
        (RouteType::Unicast, Some(interface)) => Onward::There { interface, gateway: gateway(&found) },
        (kind, _) => Onward::Nowhere(io::Error::other(format!("{kind:?} route").to_lowercase())),
    })
}

/// Whether rule and route are there for packets that are routed as coming in by an interface.
///
/// # Errors
/// When they cannot be listed.
pub async fn standing(family: Family, numbers: Numbers, interface: &str) -> Result<Standing, RouteError> {
    let netlink = Netlink::open()?;
    let wanted = Rule::ours(family, numbers.priority, numbers.mark, interface, numbers.table);
    let rules = rules::list(&netlink, family).await?;
    let links = links::list(&netlink).await?;
    let loopback = links.iter().find(|link| link.name == "lo").map_or(0, |link| link.index);
    let routes = table::list(&netlink, family, numbers.table, loopback).await?;
    Ok(Standing {
        rule: rules::difference(&rules, &[wanted], numbers.mark, numbers.table).add.is_empty(),
        route: routes.iter().any(|found| found.wanted),
    })
}

/// The first of `listed` whose packets are routed as coming in by an interface: itself, the trunk of a VLAN device, the
/// port of a bridge.
#[must_use]
pub fn seen_on<'a>(links: &[Link], listed: &'a [String], interface: &str) -> Option<&'a String> {
    let routed = |name: &&String| links::routed_as(links, std::slice::from_ref(*name)).contains(interface);
    listed.iter().find(|name| *name == interface).or_else(|| listed.iter().find(routed))
}

/// No route, or one that says unreachable or prohibit.
fn leads_nowhere(errno: i32) -> bool {
    matches!(Errno::from_raw_os_error(errno), Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS)
}

async fn lookup(asked: RouteMessage, object: &str) -> Result<RouteMessage, RouteError> {
    let netlink = Netlink::open()?;
    let mut answers = Box::pin(netlink.handle.route().get(asked).execute());
    let answer = answers.try_next().await.map_err(|e| refused("ask for", object.to_owned(), e))?;
    answer.ok_or_else(|| RouteError::Netlink {
        action: "ask for",
        object: object.to_owned(),
        reason: "no answer".to_owned(),
    })
}

/// `ip route get TO`. Under strict checking the header must say nothing else.
pub(super) fn request(to: IpAddr) -> RouteMessage {
    let whole = if to.is_ipv4() { 32 } else { 128 };
    // A whole address is a valid prefix of its family, so that the builder cannot refuse it.
    let builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, whole);
    let mut message = builder.map(RouteMessageBuilder::build).unwrap_or_default();
    message.header.table = 0;
    message.header.protocol = RouteProtocol::Unspec;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unspec;
    // IPv6 knows no such flag, and names the table unasked.
    message.header.flags = if to.is_ipv4() { RouteFlags::LookupTable } else { RouteFlags::empty() };
    message
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

pub(super) fn outgoing(found: &RouteMessage) -> Option<u32> {
    found.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(found: &RouteMessage) -> Option<IpAddr> {
    found.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })
}
