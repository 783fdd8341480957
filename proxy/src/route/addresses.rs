//! This host's own addresses, and how they change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::RouteError;
use super::netlink::{Netlink, collect};

/// Addresses of this host, without prefix lengths or scopes.
pub type AddressSet = BTreeSet<IpAddr>;

/// How long to wait before a broken subscription is renewed; doubles as a brake when that fails again and again.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// The addresses on all devices of the calling thread's network namespace, tentative ones included.
///
/// Whole prefixes that a `local` route makes this host's own (127.0.0.0/8, AnyIP) are not spelt out.
///
/// # Errors
/// When they cannot be listed.
pub async fn local_addresses() -> Result<AddressSet, RouteError> {
    read(&Netlink::open()?).await
}

async fn read(netlink: &Netlink) -> Result<AddressSet, RouteError> {
    let messages = collect("the addresses of this host", netlink.handle.address().get().execute()).await?;
    Ok(messages.iter().filter_map(own_address).collect())
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

/// Follows this host's addresses: the receiver holds the present set and is told of each new one.
///
/// The task behind it ends when the last receiver is dropped. When the kernel could not keep up with telling (ENOBUFS),
/// or the socket broke, the set is read afresh, so that a change may be seen late but is not lost.
///
/// # Errors
/// When the addresses cannot be read or followed at the start. Later errors are logged and tried again.
pub async fn watch_addresses() -> Result<watch::Receiver<AddressSet>, RouteError> {
    let subscription = Subscription::open()?;
    let netlink = Netlink::open()?;
    let (sender, receiver) = watch::channel(read(&netlink).await?);
    tokio::spawn(async move {
        // A broken subscription leaves on its own account; a lost receiver ends the whole task.
        tokio::select! {
            () = sender.closed() => {}
            () = follow(&sender, subscription, netlink) => {}
        }
    });
    Ok(receiver)
}

async fn follow(sender: &watch::Sender<AddressSet>, mut subscription: Subscription, mut netlink: Netlink) {
    loop {
        let alive = subscription.changed().await;
        if !alive {
            log::warn!("the netlink subscription to address changes broke off; renewing it");
            (subscription, netlink) = renew().await;
        }
        match read(&netlink).await {
            Ok(fresh) => {
                sender.send_if_modified(|known| {
                    let changed = *known != fresh;
                    *known = fresh;
                    changed
                });
            }
            Err(error) => {
                log::warn!("{error}; trying again");
                (subscription, netlink) = renew().await;
                subscription.pretend_change();
            }
        }
    }
}

async fn renew() -> (Subscription, Netlink) {
    loop {
        tokio::time::sleep(RENEW_AFTER).await;
        match (Subscription::open(), Netlink::open()) {
            (Ok(subscription), Ok(netlink)) => return (subscription, netlink),
            (Err(error), _) | (_, Err(error)) => log::warn!("{error}; trying again"),
        }
    }
}

type Events = futures_util::stream::BoxStream<'static, ()>;

/// A socket in RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR. What it says does not matter, only that it does.
struct Subscription {
    events: Events,
    task: tokio::task::JoinHandle<()>,
    pretended: bool,
}

impl Subscription {
    fn open() -> Result<Self, RouteError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(|e| RouteError::Netlink {
                action: "follow",
                object: "the addresses of this host".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self { events: messages.map(|_| ()).boxed(), task: tokio::spawn(connection), pretended: false })
    }

    /// Waits for news and takes all that is there at once; false when the socket is dead. An overrun is news too.
    async fn changed(&mut self) -> bool {
        if std::mem::take(&mut self.pretended) {
            return true;
        }
        if self.events.next().await.is_none() {
            return false;
        }
        while let Some(more) = futures_util::FutureExt::now_or_never(self.events.next()) {
            if more.is_none() {
                return false;
            }
        }
        true
    }

    fn pretend_change(&mut self) {
        self.pretended = true;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
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
