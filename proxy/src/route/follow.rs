//! Following what the kernel tells of: read once, and again at each piece of news.

use std::future::Future;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::RouteError;
use super::netlink::Netlink;

/// How long to wait before a broken subscription is renewed; doubles as a brake when that fails again and again.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// Something that can be read whole, and that the kernel tells changes of.
pub(super) trait Followed: PartialEq + Send + Sync + 'static {
    /// What it is called in messages.
    const OBJECT: &str;
    /// Where its changes are told.
    const GROUPS: &[MulticastGroup];

    /// Whether this piece of news can be about it.
    fn concerned_by(news: &RouteNetlinkMessage) -> bool;

    /// As it is now.
    fn read(netlink: &Netlink) -> impl Future<Output = Result<Self, RouteError>> + Send
    where
        Self: Sized;
}

/// Follows it: the receiver holds the present state and is told of each new one.
///
/// The task behind it ends when the last receiver is dropped. When the kernel could not keep up with telling (ENOBUFS),
/// or the socket broke, the state is read afresh, so that a change may be seen late but is not lost.
///
/// # Errors
/// When it cannot be read or followed at the start. Later errors are logged and tried again.
pub(super) async fn follow<T: Followed>() -> Result<watch::Receiver<T>, RouteError> {
    let subscription = Subscription::open::<T>()?;
    let netlink = Netlink::open()?;
    let (sender, receiver) = watch::channel(T::read(&netlink).await?);
    tokio::spawn(async move {
        // A broken subscription leaves on its own account; a lost receiver ends the whole task.
        tokio::select! {
            () = sender.closed() => {}
            () = keep(&sender, subscription, netlink) => {}
        }
    });
    Ok(receiver)
}

async fn keep<T: Followed>(sender: &watch::Sender<T>, mut subscription: Subscription, mut netlink: Netlink) {
    loop {
        let alive = subscription.changed().await;
        if !alive {
            log::warn!("the netlink subscription to {} broke off; renewing it", T::OBJECT);
            (subscription, netlink) = renew::<T>().await;
        }
        match T::read(&netlink).await {
            Ok(fresh) => {
                sender.send_if_modified(|known| {
                    let changed = *known != fresh;
                    *known = fresh;
                    changed
                });
            }
            Err(error) => {
                log::warn!("{error}; trying again");
                (subscription, netlink) = renew::<T>().await;
                subscription.pretend_change();
            }
        }
    }
}

async fn renew<T: Followed>() -> (Subscription, Netlink) {
    loop {
        tokio::time::sleep(RENEW_AFTER).await;
        match (Subscription::open::<T>(), Netlink::open()) {
            (Ok(subscription), Ok(netlink)) => return (subscription, netlink),
            (Err(error), _) | (_, Err(error)) => log::warn!("{error}; trying again"),
        }
    }
}

/// A socket in the groups. What it says does not matter, only that it does.
struct Subscription {
    events: BoxStream<'static, ()>,
    task: JoinHandle<()>,
    pretended: bool,
}

impl Subscription {
    fn open<T: Followed>() -> Result<Self, RouteError> {
        let (connection, _handle, messages) =
            rtnetlink::new_multicast_connection(T::GROUPS).map_err(|e| RouteError::Netlink {
                action: "follow",
                object: T::OBJECT.to_owned(),
                reason: e.to_string(),
            })?;
        let events = messages.filter_map(|(message, _)| std::future::ready(concerns::<T>(&message)));
        Ok(Self { events: events.boxed(), task: tokio::spawn(connection), pretended: false })
    }

    /// Waits for news and takes all that is there at once; false when the socket is dead.
    async fn changed(&mut self) -> bool {
        if std::mem::take(&mut self.pretended) {
            return true;
        }
        if self.events.next().await.is_none() {
            return false;
        }
        while let Some(more) = self.events.next().now_or_never() {
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

/// An overrun is news too: of what, nobody knows.
fn concerns<T: Followed>(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<()> {
    match &message.payload {
        NetlinkPayload::InnerMessage(news) => T::concerned_by(news).then_some(()),
        _ => Some(()),
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}
