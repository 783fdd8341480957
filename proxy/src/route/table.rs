//! The one route of our table: everything is local.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;
use rustix::io::Errno;

use super::netlink::{Netlink, collect, is_errno, refused};
use super::{Family, PROTOCOL, RouteError};

/// A route found in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    message: RouteMessage,
    protocol: u8,
    /// Whether it is `local default dev lo`, whoever made it.
    pub(super) wanted: bool,
}

impl Found {
    fn from_message(message: RouteMessage, loopback: u32) -> Self {
        let header = &message.header;
        let through_loopback =
            message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if *index == loopback));
        let wanted = header.kind == RouteType::Local
            && header.destination_prefix_length == 0
            && header.source_prefix_length == 0
            && header.tos == 0
            && through_loopback;
        Self { protocol: u8::from(header.protocol), wanted, message }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let header = &self.message.header;
        let kind = format!("{:?}", header.kind).to_lowercase();
        let destination = self.message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
            _ => None,
        });
        match destination {
            Some(address) => write!(f, "{kind} {address}/{}", header.destination_prefix_length)?,
            None => write!(f, "{kind} default")?,
        }
        write!(f, " protocol {}", self.protocol)
    }
}

/// `local default dev lo table T`: every address counts as this host's own.
fn local_default(family: Family, table: u32, loopback: u32) -> RouteMessage {
    let builder = match family {
        Family::V4 => {
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(Ipv4Addr::UNSPECIFIED.into(), 0)
        }
        Family::V6 => {
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(Ipv6Addr::UNSPECIFIED.into(), 0)
        }
    };
    // A prefix of length 0 is valid for both families, so that the builder cannot refuse it.
    let mut message = builder.map(RouteMessageBuilder::build).unwrap_or_default();
    message.header.table = 0;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Local;
    message.header.scope = match family {
        Family::V4 => RouteScope::Host,
        Family::V6 => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Oif(loopback));
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn name(family: Family, table: u32) -> String {
    format!("the {family} route \"local default dev lo table {table}\"")
}

/// The routes of one table; none when the table or the family does not exist.
pub(super) async fn list(
    netlink: &Netlink,
    family: Family,
    table: u32,
    loopback: u32,
) -> Result<Vec<Found>, RouteError> {
    let mut filter = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    filter.header.table = 0;
    filter.header.protocol = RouteProtocol::Unspec;
    filter.header.kind = RouteType::Unspec;
    filter.attributes = vec![RouteAttribute::Table(table)];
    let object = format!("the {family} routes of table {table}");
    match collect(&object, netlink.handle.route().get(filter).execute()).await {
        Ok(messages) => Ok(messages
            .into_iter()
            .filter(|message| table_of(message) == table)
            .map(|message| Found::from_message(message, loopback))
            .collect()),
        Err(error) if error.errno().is_some_and(nothing_there) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

pub(super) fn nothing_there(errno: i32) -> bool {
    matches!(Errno::from_raw_os_error(errno), Errno::NOENT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP)
}

pub(super) fn table_of(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(message.header.table))
}

/// Adds the route; that it exists already is fine.
pub(super) async fn add(
    netlink: &Netlink,
    family: Family,
    table: u32,
    loopback: u32,
) -> Result<(), RouteError> {
    match netlink.handle.route().add(local_default(family, table, loopback)).execute().await {
        Err(error) if !is_errno(&error, Errno::EXIST) => Err(refused("add", name(family, table), error)),
        _ => Ok(()),
    }
}

/// Deletes a route that was found; that it is gone already is fine.
pub(super) async fn delete(
    netlink: &Netlink,
    family: Family,
    table: u32,
    found: &Found,
) -> Result<(), RouteError> {
    let mut message = found.message.clone();
    message.header.flags = Default::default();
    message.attributes.retain(|a| {
        matches!(
            a,
            RouteAttribute::Destination(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Table(_)
                | RouteAttribute::Priority(_)
        )
    });
    match netlink.handle.route().del(message).execute().await {
        Err(error) if !is_errno(&error, Errno::SRCH) => Err(refused("delete", name(family, table), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_route_is_recognised_as_wanted_and_as_ours() {
        for family in Family::ALL {
            let found = Found::from_message(local_default(family, 8300, 1), 1);
            assert!(found.wanted && found.is_ours(), "{found:?}");
            assert_eq!(table_of(&found.message), 8300);
        }
    }

    #[test]
    fn a_route_through_another_device_or_of_another_kind_is_not_wanted() {
        let elsewhere = Found::from_message(local_default(Family::V4, 8300, 7), 1);
        let mut blackhole = local_default(Family::V4, 8300, 1);
        blackhole.header.kind = RouteType::BlackHole;
        assert!(!elsewhere.wanted && !Found::from_message(blackhole, 1).wanted);
    }
}
