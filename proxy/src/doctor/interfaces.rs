//! The interfaces: there, up, readable, and delivering what they carry to the stack.

use std::fs;

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp};

use super::{
    Finding, Fix, Options,
    netlink::{Netlink, collect},
    offload::Ethtool,
};
use crate::route::{self, Link, LinkLayer, RouteError};

const BRIDGE_NF: &str = "net.bridge.bridge-nf-call-iptables";

/// An interface that is examined.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) link: Link,
    /// Something is at the other end of the cable.
    pub(super) carrier: bool,
    pub(super) mtu: Option<u32>,
    /// `bridge`, `bond`, `vlan` …
    pub(super) kind: Option<String>,
    /// Name and kind of the bridge, bond, team or VRF that it belongs to.
    pub(super) controller: Option<(String, String)>,
    /// The id of an XDP program on it.
    pub(super) xdp: Option<u32>,
    /// Whether the card joins TCP segments in a way that cannot be undone.
    pub(super) lro: bool,
    /// None where the kernel has no IPv6.
    pub(super) ipv6: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) devices: Vec<Device>,
    /// Names that no interface has, with those that come close.
    pub(super) missing: Vec<(String, String)>,
    pub(super) loopback_up: bool,
    pub(super) loopback_ipv6: Option<bool>,
    pub(super) bridge_nf: bool,
}

impl Facts {
    pub(super) async fn gather(netlink: &Netlink, options: &Options) -> Result<Self, RouteError> {
        let links = route::links().await?;
        let messages = collect(netlink.handle.link().get().execute()).await.unwrap_or_default();
        let ethtool = Ethtool::open().ok();
        let mut facts = Self {
            loopback_up: links.iter().any(|link| link.name == "lo" && link.up),
            loopback_ipv6: ipv6("lo"),
            bridge_nf: fs::read_to_string(super::sysctl::path(BRIDGE_NF)).is_ok_and(|t| t.trim() == "1"),
            ..Self::default()
        };
        let device = |link: &Link| Device::of(link, &links, &messages, ethtool.as_ref());
        if options.interfaces.is_empty() {
            facts.devices = links.iter().map(device).filter(Device::would_be_listed).collect();
            return Ok(facts);
        }
        for name in &options.interfaces {
            match route::find_link(&links, name) {
                Ok(link) => facts.devices.push(device(link)),
                Err(RouteError::NoSuchLink { name, suggestion }) => facts.missing.push((name, suggestion)),
                Err(other) => return Err(other),
            }
        }
        Ok(facts)
    }

    /// The names of those that exist.
    pub(super) fn names(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.link.name.clone()).collect()
    }
}

impl Device {
    fn of(link: &Link, links: &[Link], messages: &[LinkMessage], ethtool: Option<&Ethtool>) -> Self {
        let message = |index: u32| messages.iter().find(|message| message.header.index == index);
        let controller = link.controller.and_then(|index| {
            let name = links.iter().find(|link| link.index == index)?.name.clone();
            Some((name, message(index).and_then(kind).unwrap_or_default()))
        });
        let own = message(link.index);
        let attributes = || own.into_iter().flat_map(|message| &message.attributes);
        let active = ethtool.and_then(|ethtool| ethtool.active(&link.name).ok()).unwrap_or_default();
        Self {
            carrier: own.is_none_or(|message| message.header.flags.contains(LinkFlags::LowerUp)),
            mtu: attributes().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None }),
            kind: own.and_then(kind),
            controller,
            xdp: attributes().find_map(|a| if let LinkAttribute::Xdp(xdp) = a { program(xdp) } else { None }),
            lro: active.iter().any(|name| name == "rx-lro"),
            ipv6: ipv6(&link.name),
            link: link.clone(),
        }
    }

    /// Where none are named: those that somebody could sensibly name.
    fn would_be_listed(&self) -> bool {
        let routed = !matches!(
            self.controller.as_ref().map(|(_, kind)| kind.as_str()),
            Some("bridge" | "bond" | "team")
        );
        self.link.up && self.link.name != "lo" && routed && !matches!(self.link.layer, LinkLayer::Other(_))
    }
}

fn kind(message: &LinkMessage) -> Option<String> {
    let infos = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None })
}

fn program(xdp: &[LinkXdp]) -> Option<u32> {
    xdp.iter().find_map(|x| match x {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    })
}

fn ipv6(interface: &str) -> Option<bool> {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")).ok()?;
    Some(text.trim() == "0")
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![loopback(facts.loopback_up)];
    findings.extend(loopback_ipv6(facts));
    for (name, suggestion) in &facts.missing {
        findings.push(Finding::cannot(
            "no-such-interface",
            name.clone(),
            "no interface of this network namespace has this name",
            "there is nothing to attach to",
            suggestion.trim_start_matches(": ").to_owned(),
        ));
    }
    if facts.devices.is_empty() && facts.missing.is_empty() {
        findings.push(Finding::cannot(
            "no-interface",
            "interfaces",
            "none is up but lo",
            "no packet can come",
            "ip link set IFACE up",
        ));
    }
    for device in &facts.devices {
        findings.extend(one(device, facts));
    }
    findings.extend(mtu(&facts.devices));
    findings
}

fn loopback(up: bool) -> Finding {
    if up {
        return Finding::fine("loopback", "lo", "is up", "");
    }
    let why = "no intercepted packet can be delivered: the route to the proxy leads through it";
    Finding::cannot("loopback", "lo", "is down", why, "ip link set lo up").fixed_by(Fix::LoopbackUp)
}

fn loopback_ipv6(facts: &Facts) -> Option<Finding> {
    let with = facts.devices.iter().find(|device| device.ipv6 == Some(true))?;
    (facts.loopback_ipv6 == Some(false)).then(|| {
        Finding::cannot(
            "loopback-ipv6",
            "lo",
            format!("IPv6 is off on it, but on for {}", with.link.name),
            "intercepted IPv6 packets cannot be delivered",
            format!(
                "sysctl -w net.ipv6.conf.lo.disable_ipv6=0, or turn IPv6 off on {0} too: sysctl -w \
                 net/ipv6/conf/{0}/disable_ipv6=1",
                with.link.name
            ),
        )
    })
}

/// The findings about one interface; a word that it is fine where there are none.
fn one(device: &Device, facts: &Facts) -> Vec<Finding> {
    let name = &device.link.name;
    let mut findings = Vec::new();
    findings.extend(layer(&device.link));
    findings.extend(state(device));
    findings.extend(device.controller.as_ref().map(|(of, kind)| membership(name, of, kind)));
    findings.extend(device.xdp.map(|id| xdp(name, id)));
    findings.extend(device.lro.then(|| lro(name)));
    let bridged = device.kind.as_deref() == Some("bridge")
        || device.controller.as_ref().is_some_and(|(_, kind)| kind == "bridge");
    findings.extend((name == "lo").then(listed_loopback));
    if findings.is_empty() {
        findings.push(Finding::fine("interface", name.clone(), "is up and readable", ""));
    }
    findings.extend((bridged && facts.bridge_nf).then(|| bridge_nf(name)));
    if device.ipv6 == Some(false) {
        findings.push(Finding::fine(
            "interface-ipv6",
            name.clone(),
            "IPv6 is off on it",
            "IPv6 connections from its side are not intercepted, for there are none",
        ));
    }
    findings
}

fn layer(link: &Link) -> Option<Finding> {
    let LinkLayer::Other(kind) = link.layer else { return None };
    Some(Finding::cannot(
        "link-layer",
        link.name.clone(),
        format!("its frames are of link type {kind} (ARPHRD of linux/if_arp.h)"),
        "Sheer reads Ethernet, and devices without a link-layer header",
        "name the device that carries the IP packets instead: for a tunnel, the one that it runs over or the one above it",
    ))
}

fn state(device: &Device) -> Option<Finding> {
    let name = &device.link.name;
    let (id, why) = ("interface-down", "no packet comes from there; Sheer attaches to it all the same");
    if !device.link.up {
        return Some(Finding::warning(id, name.clone(), "is down", why, format!("ip link set {name} up")));
    }
    (!device.carrier).then(|| {
        let cure = format!("check the cable or the other end: ip -details link show {name}");
        Finding::warning("no-carrier", name.clone(), "has no carrier", why, cure)
    })
}

fn membership(name: &str, of: &str, kind: &str) -> Finding {
    let (id, what) = ("member", format!("belongs to the {kind} {of}"));
    let (why, cure) = match kind {
        "bridge" => (
            "what the bridge only switches is never routed, so that Sheer sees it but cannot take it",
            format!("name {of} instead, if this host routes between the bridge and others: -i {of}"),
        ),
        "vrf" => (
            "the VRF routes by a table of its own, and sockets outside of it do not take its packets by default",
            format!(
                "take it out of the VRF: ip link set {name} nomaster; or run Sheer with: ip vrf exec {of} sheer run …"
            ),
        ),
        _ => ("packets that its other members receive go past Sheer", format!("name {of} instead: -i {of}")),
    };
    Finding::warning(id, name.to_owned(), what, why, cure)
}

fn xdp(name: &str, id: u32) -> Finding {
    Finding::warning(
        "xdp",
        name.to_owned(),
        format!("has the XDP program {id}"),
        "it sees packets before Sheer, and what it drops, answers or redirects never gets here",
        format!(
            "bpftool prog show id {id}, to see whose it is; ip link set dev {name} xdp off, if nobody needs it"
        ),
    )
}

fn lro(name: &str) -> Finding {
    Finding::warning(
        "lro",
        name.to_owned(),
        "large receive offload is on",
        "the card joins segments in a way that cannot be undone, so that what Sheer lets pass breaks when forwarded",
        format!("ethtool -K {name} lro off"),
    )
}

/// On by default wherever br_netfilter is loaded.
fn bridge_nf(name: &str) -> Finding {
    let why = "the host's firewall sees packets from the bridge before Sheer instead of after it; what Sheer takes is the same";
    Finding::fine("bridge-netfilter", name.to_owned(), format!("{BRIDGE_NF} is 1"), why)
}

fn listed_loopback() -> Finding {
    Finding::warning(
        "listed-loopback",
        "lo",
        "is listed",
        "Sheer serves connections that come through this host, not those that begin or end on it",
        "leave lo out of the list",
    )
}

/// No fault: segments are cut anew on either side, and errors about packets too big are steered to the proxy.
fn mtu(devices: &[Device]) -> Option<Finding> {
    let mut sizes: Vec<u32> = devices.iter().filter_map(|device| device.mtu).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let (smallest, largest) = (sizes.first()?, sizes.last()?);
    (smallest != largest).then(|| {
        let why = "the proxy cuts segments anew on each side, and path MTU discovery works through it";
        Finding::fine("mtu", "interfaces", format!("MTU from {smallest} to {largest}"), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn device(name: &str) -> Device {
        Device {
            link: Link {
                index: 2,
                name: name.to_owned(),
                up: true,
                layer: LinkLayer::Ethernet,
                parent: None,
                controller: None,
                vlan: false,
                address: None,
            },
            carrier: true,
            mtu: Some(1500),
            kind: None,
            controller: None,
            xdp: None,
            lro: false,
            ipv6: Some(true),
        }
    }

    fn facts(devices: Vec<Device>) -> Facts {
        Facts { devices, loopback_up: true, loopback_ipv6: Some(true), ..Facts::default() }
    }

    fn bad(facts: &Facts) -> Vec<(&'static str, Severity)> {
        let findings = judge(facts).into_iter().filter(|f| f.severity != Severity::Fine);
        findings.map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn good_interfaces_are_fine() {
        let facts = facts(vec![device("eth0"), device("eth1")]);
        assert_eq!(bad(&facts), []);
        assert_eq!(judge(&facts).iter().filter(|f| f.id == "interface").count(), 2);
    }

    #[test]
    fn a_loopback_that_is_down_or_without_ipv6_cannot_work() {
        let down = Facts { loopback_up: false, ..facts(vec![device("eth0")]) };
        assert_eq!(bad(&down), [("loopback", Severity::CannotWork)]);
        assert_eq!(loopback(false).fix, Some(Fix::LoopbackUp));
        let half = Facts { loopback_ipv6: Some(false), ..facts(vec![device("eth0")]) };
        assert_eq!(bad(&half), [("loopback-ipv6", Severity::CannotWork)]);
        let without = Device { ipv6: Some(false), ..device("eth0") };
        let off = Facts { loopback_ipv6: Some(false), ..facts(vec![without]) };
        assert_eq!(bad(&off), []);
    }

    #[test]
    fn a_name_that_nobody_has_cannot_work_nor_can_a_host_without_interfaces() {
        let missing = vec![("etho".to_owned(), ": did you mean eth0?".to_owned())];
        let judged = judge(&Facts { missing, ..facts(vec![]) });
        assert!(judged.iter().any(|f| f.id == "no-such-interface" && f.cure == "did you mean eth0?"));
        assert_eq!(bad(&facts(vec![])), [("no-interface", Severity::CannotWork)]);
    }

    #[test]
    fn what_cannot_be_read_cannot_work() {
        let mut gre = device("gre1");
        gre.link.layer = LinkLayer::Other(778);
        assert_eq!(bad(&facts(vec![gre.clone()])), [("link-layer", Severity::CannotWork)]);
        assert!(!gre.would_be_listed());
        gre.link.layer = LinkLayer::L3;
        assert_eq!(bad(&facts(vec![gre])), []);
    }

    #[test]
    fn down_or_unplugged_is_a_warning() {
        let mut down = device("eth0");
        down.link.up = false;
        down.carrier = false;
        let unplugged = Device { carrier: false, ..device("eth1") };
        let expected = [("interface-down", Severity::Warning), ("no-carrier", Severity::Warning)];
        assert_eq!(bad(&facts(vec![down, unplugged])), expected);
    }

    #[test]
    fn a_member_of_a_bridge_bond_or_vrf_is_told_whom_to_name() {
        for kind in ["bridge", "bond", "team", "vrf"] {
            let member = Device { controller: Some(("up0".into(), kind.into())), ..device("eth0") };
            assert_eq!(member.would_be_listed(), kind == "vrf");
            let judged = judge(&facts(vec![member]));
            let finding = judged.iter().find(|f| f.id == "member").unwrap();
            assert!(finding.severity == Severity::Warning && finding.cure.contains("up0"), "{finding}");
        }
    }

    #[test]
    fn xdp_and_lro_are_warnings_with_their_cures() {
        let judged = judge(&facts(vec![Device { xdp: Some(17), lro: true, ..device("eth0") }]));
        let cure =
            |id| judged.iter().find(|f| f.id == id && f.severity == Severity::Warning).unwrap().cure.clone();
        assert!(cure("xdp").contains("id 17"));
        assert_eq!(cure("lro"), "ethtool -K eth0 lro off");
    }

    #[test]
    fn bridge_netfilter_is_told_for_bridges_only() {
        let bridge = Device { kind: Some("bridge".into()), ..device("br0") };
        let told = |device| {
            let judged = judge(&Facts { bridge_nf: true, ..facts(vec![device]) });
            judged.iter().any(|f| f.id == "bridge-netfilter" && f.severity == Severity::Fine)
        };
        assert!(told(bridge) && !told(device("eth0")));
    }

    #[test]
    fn a_listed_loopback_is_a_warning_and_different_mtus_are_none() {
        assert_eq!(bad(&facts(vec![device("lo")])), [("listed-loopback", Severity::Warning)]);
        let jumbo = Device { mtu: Some(9000), ..device("eth1") };
        let judged = judge(&facts(vec![device("eth0"), jumbo]));
        assert!(judged.iter().any(|f| f.id == "mtu" && f.severity == Severity::Fine));
    }
}
