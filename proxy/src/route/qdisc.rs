//! The clsact qdisc, which holds tc filters on kernels without TCX.

use netlink_packet_route::tc::{TcHandle, TcMessage};
use rustix::io::Errno;

use super::{
    RouteError, find_link, links,
    netlink::{Netlink, collect, is_errno, refused},
};

/// Removes the clsact qdisc of an interface, unless it holds a filter.
///
/// That the interface or its qdisc is gone is no error.
///
/// # Errors
/// When the filters cannot be listed, or the kernel refuses.
pub async fn remove_unused_clsact(interface: &str) -> Result<(), RouteError> {
    let netlink = Netlink::open()?;
    let links = links::list(&netlink).await?;
    let Ok(link) = find_link(&links, interface) else { return Ok(()) };
    let Ok(index) = i32::try_from(link.index) else { return Ok(()) };
    for egress in [false, true] {
        let request = netlink.handle.traffic_filter(index).get();
        let request = if egress { request.egress() } else { request.ingress() };
        if !collect::<TcMessage>("tc filters", request.execute()).await?.is_empty() {
            return Ok(());
        }
    }
    let mut request = netlink.handle.qdisc().del(index);
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.message_mut().header.handle = TcHandle { major: u16::MAX, minor: 0 };
    match request.execute().await {
        Err(e) if is_errno(&e, Errno::NOENT) || is_errno(&e, Errno::INVAL) => Ok(()),
        Err(e) => Err(refused("remove", format!("the clsact qdisc of {interface}"), e)),
        Ok(()) => Ok(()),
    }
}
