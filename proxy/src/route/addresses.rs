//! This host's own addresses, and how they change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::RouteError;
use super::follow::{Followed, follow};
use super::netlink::{Netlink, collect};

/// Addresses of this host, without prefix lengths or scopes.
pub type AddressSet = BTreeSet<IpAddr>;

/// The addresses on all devices of the calling thread's network namespace, tentative ones included.
///
/// Whole prefixes that a `local` route makes this host's own (127.0.0.0/8, AnyIP) are not spelt out.
///
/// # Errors
/// When they cannot be listed.
pub async fn local_addresses() -> Result<AddressSet, RouteError> {
    AddressSet::read(&Netlink::open()?).await
}

/// `IFA_LOCAL` where there is one: on a point-to-point link `IFA_ADDRESS` is the other side's.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// Follows this host's addresses: the receiver holds the present set and is told of each new one. The task behind it
/// ends when the last receiver is dropped.
///
/// # Errors
/// When the addresses cannot be read or followed at the start. Later errors are logged and tried again.
pub async fn watch_addresses() -> Result<watch::Receiver<AddressSet>, RouteError> {
    follow().await
}

impl Followed for AddressSet {
    const OBJECT: &str = "the addresses of this host";
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

    fn concerned_by(_: &RouteNetlinkMessage) -> bool {
        true
    }

    async fn read(netlink: &Netlink) -> Result<Self, RouteError> {
        let messages = collect(Self::OBJECT, netlink.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(own_address).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.attributes = attributes;
        message
    }

    #[test]
    fn on_a_point_to_point_link_the_own_side_counts() {
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        let peer: IpAddr = "10.0.0.2".parse().unwrap();
        let both = message(vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)]);
        assert_eq!(own_address(&both), Some(own));
    }

    #[test]
    fn ipv6_names_its_address_without_local() {
        let own: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(own_address(&message(vec![AddressAttribute::Address(own)])), Some(own));
    }
}
