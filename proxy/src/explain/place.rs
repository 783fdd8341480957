//! Where a packet comes in, and where it goes from there.

use std::net::IpAddr;

use sheer_common::abi::Settings;

use super::{
    ExplainError, Question,
    answer::{Chosen, Delivery, Frames, Interface, Next, Onward, Packet, PolicyRoute, Seen},
};
use crate::route::{self, Arriving, Family, Link, LinkLayer, Numbers, RouteError, find_link, seen_on};

/// An interface by which a packet comes in.
pub struct Place {
    links: Vec<Link>,
    /// By which the packet comes to this host.
    link: Link,
    chosen: Chosen,
    /// On which it is looked at: the one above, or one below that.
    seen: Option<(Link, String)>,
    /// By which it comes to the route lookup: the one above, or the bridge over it.
    routed: Link,
}

impl Place {
    /// The place that a question means. `listed` are the config's interfaces, `attached` says how each one is attached.
    ///
    /// # Errors
    /// When there is no such interface, or no way back to the client.
    pub async fn of(
        question: &Question,
        listed: &[String],
        attached: &[&'static str],
    ) -> Result<Self, ExplainError> {
        let links = route::links().await?;
        let (link, chosen) = match &question.interface {
            Some(name) => (find_link(&links, name)?.clone(), Chosen::Asked),
            None => (way_back(&links, question.from).await?, Chosen::WayBack),
        };
        let seen = seen_on(&links, listed, &link.name).and_then(|name| {
            let at = listed.iter().position(|listed| listed == name)?;
            Some((find_link(&links, name).ok()?.clone(), (*attached.get(at)?).to_owned()))
        });
        let routed = top(&links, &link).clone();
        Ok(Self { links, link, chosen, seen, routed })
    }

    /// The kernel's number of the interface on which the programs look at the packet, or would.
    pub(super) fn looked_at(&self) -> u32 {
        self.seen.as_ref().map_or(self.link.index, |(link, _)| link.index)
    }

    /// The config's name of it; nothing where no program looks.
    pub(super) fn listed(&self) -> Option<&str> {
        self.seen.as_ref().map(|(link, _)| link.name.as_str())
    }

    pub(super) fn shown(&self) -> Interface {
        let (frames, seen) = match &self.seen {
            None => (self.link.layer, Seen::Not),
            Some((link, by)) if link.index == self.link.index => (link.layer, Seen::Here { by: by.clone() }),
            Some((link, by)) => (link.layer, Seen::Below { interface: link.name.clone(), by: by.clone() }),
        };
        Interface {
            name: self.link.name.clone(),
            chosen: self.chosen,
            seen,
            frames: match frames {
                LinkLayer::Ethernet => Frames::Ethernet,
                LinkLayer::L3 => Frames::Ip,
                LinkLayer::Other(_) => Frames::Unreadable,
            },
        }
    }

    /// Where the kernel sends a packet with this mark.
    pub(super) async fn onward(&self, packet: &Packet, mark: u32) -> Result<Onward, RouteError> {
        let interface = self.routed.index;
        let arriving = Arriving { from: packet.from.ip(), to: packet.to.ip(), interface, mark };
        Ok(match route::onward(&arriving).await? {
            route::Onward::Here { table } => Onward::Here { table },
            route::Onward::There { interface, gateway } => {
                let name = self.links.iter().find(|link| link.index == interface);
                let interface =
                    name.map_or_else(|| format!("interface {interface}"), |link| link.name.clone());
                Onward::There { interface, gateway }
            }
            route::Onward::Nowhere(why) => Onward::nowhere(&why),
        })
    }

    /// What the policy route does with a steered packet.
    pub(super) async fn policy_route(&self, packet: &Packet, now: &Settings) -> Result<Next, RouteError> {
        let numbers = Numbers { mark: now.mark, table: now.table, priority: now.priority };
        let family = if packet.to.is_ipv4() { Family::V4 } else { Family::V6 };
        let standing = route::standing(family, numbers, &self.routed.name).await?;
        let delivery = match self.onward(packet, now.mark).await? {
            Onward::Here { table } => Delivery::Here { table },
            onward if !standing.rule => Delivery::NoRule { onward },
            onward if !standing.route => Delivery::NoRoute { onward },
            onward => Delivery::Astray { onward },
        };
        let Numbers { mark, table, priority } = numbers;
        let route = PolicyRoute { mark, priority, interface: self.routed.name.clone(), table };
        Ok(Next::PolicyRoute { route, delivery })
    }
}

async fn way_back(links: &[Link], client: IpAddr) -> Result<Link, ExplainError> {
    let index = route::way_back(client).await?;
    let link = links.iter().find(|link| Some(link.index) == index);
    link.cloned().ok_or(ExplainError::NoWayBack(client))
}

/// The bridge, bond, team or VRF over an interface, and over that: packets are routed as coming in by the last.
fn top<'a>(links: &'a [Link], link: &'a Link) -> &'a Link {
    let mut top = link;
    // A controller is never below its own ports; the bound is there for links that changed while they were listed.
    for _ in links {
        let above = top.controller.and_then(|index| links.iter().find(|link| link.index == index));
        match above {
            Some(link) => top = link,
            None => break,
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, controller: Option<u32>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            layer: LinkLayer::Ethernet,
            parent: None,
            controller,
            vlan: false,
            address: None,
        }
    }

    #[test]
    fn packets_on_a_port_are_routed_as_coming_by_the_bridge_over_it() {
        let links = [link(2, "eth0", Some(3)), link(3, "bond0", Some(4)), link(4, "br0", None)];
        assert_eq!(top(&links, &links[0]).name, "br0");
        assert_eq!(top(&links, &links[2]).name, "br0");
        assert_eq!(seen_on(&links, &["eth0".to_owned()], "br0").map(String::as_str), Some("eth0"));
        assert_eq!(seen_on(&links, &["br0".to_owned()], "eth0"), None);
    }
}
