//! The network devices of this namespace.

use std::collections::BTreeSet;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use super::RouteError;
use super::netlink::{Netlink, collect};
use crate::config::suggest;

/// What stands in front of the network header of a packet at tc ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkLayer {
    /// An Ethernet header (also `lo`, veth, bridges, bonds, VLAN devices).
    Ethernet,
    /// Nothing of a link layer: the packet begins with the IP header (tun, wireguard, ppp, raw IP modems …), or has that
    /// of a tunnel in front, which the kernel has dealt with (ipip, GRE, SIT).
    L3,
    /// Something that Sheer cannot parse: the device's `ARPHRD_` number (linux/if_arp.h).
    Other(u16),
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number, valid in this namespace and until the device goes.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// How packets on it begin.
    pub layer: LinkLayer,
    /// The device below (`IFLA_LINK`), e.g. the trunk of a VLAN device. For a veth it is the peer's index, perhaps
    /// in another namespace.
    pub parent: Option<u32>,
    /// The bridge, bond, team or VRF that it belongs to (`IFLA_MASTER`).
    pub controller: Option<u32>,
    /// Whether it is a VLAN device.
    pub vlan: bool,
    /// Its Ethernet address, if it has one.
    pub address: Option<[u8; 6]>,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            layer: layer(message.header.link_layer_type),
            parent: None,
            controller: None,
            vlan: false,
            address: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Link(index) if *index != 0 => link.parent = Some(*index),
                LinkAttribute::Controller(index) if *index != 0 => link.controller = Some(*index),
                LinkAttribute::Address(bytes) => link.address = bytes.as_slice().try_into().ok(),
                LinkAttribute::LinkInfo(infos) => link.vlan = infos.contains(&LinkInfo::Kind(InfoKind::Vlan)),
                _ => {}
            }
        }
        link
    }
}

fn layer(kind: LinkLayerType) -> LinkLayer {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkLayer::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Slip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => LinkLayer::L3,
        other => LinkLayer::Other(other as u16),
    }
}

/// All devices of the calling thread's network namespace.
///
/// # Errors
/// When they cannot be listed.
pub async fn links() -> Result<Vec<Link>, RouteError> {
    list(&Netlink::open()?).await
}

pub(super) async fn list(netlink: &Netlink) -> Result<Vec<Link>, RouteError> {
    let messages = collect("the network devices", netlink.handle.link().get().execute()).await?;
    Ok(messages.iter().map(Link::from_message).collect())
}

/// The device with this name.
///
/// # Errors
/// [`RouteError::NoSuchLink`], with the names that come closest.
pub fn find_link<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, RouteError> {
    links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| RouteError::NoSuchLink { name: name.to_owned(), suggestion: suggestion(links, name) })
}

fn suggestion(links: &[Link], name: &str) -> String {
    let close = suggest::nearest(name, links.iter().map(|link| link.name.as_str()));
    if !close.is_empty() {
        return format!(": did you mean {}?", close.join(" or "));
    }
    let all: Vec<&str> = links.iter().map(|link| link.name.as_str()).take(20).collect();
    format!(": there are {}. Look with: ip link", all.join(", "))
}

/// The names under which packets seen on `names` can arrive at the route lookup.
///
/// That is the device itself; its VLAN devices, because a tagged packet seen on the trunk is routed with
/// `iif` = the VLAN device; and the bridge, bond, team or VRF above it, for the same reason; and so on upwards.
pub(super) fn routed_as(links: &[Link], names: &[String]) -> BTreeSet<String> {
    let mut members: BTreeSet<u32> =
        links.iter().filter(|link| names.contains(&link.name)).map(|link| link.index).collect();
    loop {
        let above = links.iter().filter(|link| {
            let stacked = link.vlan && link.parent.is_some_and(|parent| members.contains(&parent));
            let controls =
                links.iter().any(|port| port.controller == Some(link.index) && members.contains(&port.index));
            !members.contains(&link.index) && (stacked || controls)
        });
        let found: Vec<u32> = above.map(|link| link.index).collect();
        if found.is_empty() {
            break;
        }
        members.extend(found);
    }
    let known = links.iter().filter(|link| members.contains(&link.index)).map(|link| link.name.clone());
    known.chain(names.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            layer: LinkLayer::Ethernet,
            parent: None,
            controller: None,
            vlan: false,
            address: None,
        }
    }

    fn vlan(index: u32, name: &str, parent: u32) -> Link {
        Link { parent: Some(parent), vlan: true, ..link(index, name) }
    }

    fn routed(links: &[Link], names: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        routed_as(links, &names).into_iter().collect()
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_close_ones() {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "wlan0")];
        let error = find_link(&links, "etho").unwrap_err().to_string();
        assert!(error.ends_with(": did you mean eth0?"), "{error}");
    }

    #[test]
    fn a_name_that_resembles_none_is_answered_with_all() {
        let links = [link(1, "lo"), link(2, "enp3s0")];
        let error = find_link(&links, "bond-of-servers").unwrap_err().to_string();
        assert!(error.contains("there are lo, enp3s0"), "{error}");
    }

    #[test]
    fn vlan_devices_on_a_listed_trunk_are_included_also_stacked_ones() {
        let links = [link(2, "eth0"), vlan(3, "eth0.10", 2), vlan(4, "eth0.10.20", 3), vlan(5, "eth1.7", 9)];
        assert_eq!(routed(&links, &["eth0"]), ["eth0", "eth0.10", "eth0.10.20"]);
    }

    #[test]
    fn the_bridge_above_a_listed_port_is_included_but_not_its_other_ports() {
        let port = |index, name| Link { controller: Some(5), ..link(index, name) };
        let links = [port(2, "eth0"), port(3, "eth1"), link(5, "br0"), vlan(6, "br0.4", 5)];
        assert_eq!(routed(&links, &["eth0"]), ["br0", "br0.4", "eth0"]);
    }

    #[test]
    fn a_veth_whose_peer_has_a_listed_index_is_not_taken_for_a_vlan() {
        let peer = Link { parent: Some(2), ..link(3, "veth1") };
        assert_eq!(routed(&[link(2, "eth0"), peer], &["eth0"]), ["eth0"]);
    }

    #[test]
    fn devices_without_a_link_layer_header_are_told_from_ethernet() {
        assert_eq!(layer(LinkLayerType::Ether), LinkLayer::Ethernet);
        assert_eq!(layer(LinkLayerType::None), LinkLayer::L3);
        assert_eq!(layer(LinkLayerType::Ipgre), LinkLayer::L3);
        assert_eq!(layer(LinkLayerType::Ieee80211), LinkLayer::Other(801));
    }
}
