//! Kinds of devices: what Sheer takes on each has to arrive as it was sent, from the client's own address.
//!
//! In each scenario the client's packets reach the middle by a device of that kind, which is listed, and go on to the lab's
//! server. Devices that this kernel does not have are named as skipped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr};

use sheer_tests::{
    Dial, Ended, Family, Feature, Lab, Namespace, PATIENCE, Pattern, Server, Sheer, TunPair, missing,
    wait_until, wire,
};

const BYTES: u64 = 2_000_000;

/// The client's addresses on the network that the device makes.
fn client_on(net: u8, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.{net}.0.2"),
        Family::V6 => format!("2001:db8:{net}::2"),
    };
    text.parse().unwrap()
}

/// Gives both ends of a device their addresses, the middle .1 and ::1, the client .2 and ::2, and sends the client's packets
/// for the server that way.
fn address(lab: &Lab, here: &str, there: (&Namespace, &str), net: u8) {
    let (client, device) = there;
    let lines = |device: &str, host: u8| {
        format!(
            "link set {device} up\n\
             addr add 10.{net}.0.{host}/24 dev {device}\n\
             addr add 2001:db8:{net}::{host}/64 dev {device} nodad\n"
        )
    };
    lab.middle().configure(&lines(here, 1));
    client.configure(&lines(device, 2));
    lead(client, net);
}

/// As [`address`], for devices with an Ethernet header.
fn address_ethernet(lab: &Lab, here: &str, there: &str, net: u8) {
    address(lab, here, (lab.client(), there), net);
    lab.middle().wait_for_ipv6(here);
    lab.client().wait_for_ipv6(there);
}

/// Sends the client's packets for the server by the gateway of that network.
fn lead(client: &Namespace, net: u8) {
    client.configure(&format!(
        "route replace 198.51.100.0/24 via 10.{net}.0.1 src 10.{net}.0.2\n\
         route replace 2001:db8:2::/48 via 2001:db8:{net}::1 src 2001:db8:{net}::2\n"
    ));
}

/// What the client sends from its address on that network arrives and comes back whole, by the proxy, from this address.
fn assert_through(lab: &Lab, net: u8, families: &[Family], interfaces: &[&str]) {
    let (client, what) = (lab.client(), format!("{interfaces:?} listed"));
    let sheer = Sheer::on(lab).tcp("7").interfaces(interfaces).start();
    for &family in families {
        let server = Server::echo(lab.server(), family, 7);
        let from = client_on(net, family);
        let dialled = client.dial(Dial::to(server.address()).from(SocketAddr::new(from, 0)));
        let stream = dialled.unwrap_or_else(|e| panic!("{family} from {from}: {e}: {what}"));
        let back = Pattern::new(3).there_and_back(stream, BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{family}: {what}");
        assert_eq!(server.peer_of_last(), from, "{family}: {what}");
    }
    // Without the proxy in between it would look the same.
    assert_eq!(sheer.stop().len(), families.len(), "{what}");
}

/// As [`assert_through`], in both families, with each of these devices listed alone beside the server's.
fn assert_by_each(lab: &Lab, net: u8, devices: &[&str]) {
    for device in devices {
        assert_through(lab, net, &Family::BOTH, &[device, "servers0"]);
    }
}

/// Makes a bridge in the middle with all clients' links as its ports; the clients get addresses on it.
fn bridge(lab: &Lab, net: u8) {
    lab.middle().configure("link add name br0 type bridge\nlink set br0 up\n");
    lab.middle().configure(&format!(
        "addr add 10.{net}.0.1/24 dev br0\naddr add 2001:db8:{net}::1/64 dev br0 nodad\n"
    ));
    for (n, client) in lab.clients().iter().enumerate() {
        lab.middle().configure(&format!("link set {} master br0\n", client.uplink()));
        let host = n + 2;
        client.configure(&format!(
            "addr add 10.{net}.0.{host}/24 dev eth0\n\
             addr add 2001:db8:{net}::{host}/64 dev eth0 nodad\n"
        ));
    }
    lead(lab.client(), net);
    lab.middle().wait_for_ipv6("br0");
}

#[test]
fn a_bridge_and_a_port_of_a_bridge_can_be_listed() {
    if missing(Feature::Bridge, "a bridge and a port of a bridge can be listed") {
        return;
    }
    let lab = Lab::new();
    bridge(&lab, 30);
    assert_by_each(&lab, 30, &["clients0", "br0"]);
    assert_through(&lab, 30, &Family::BOTH, &["clients0", "br0", "servers0"]);
}

/// Packets between two ports are switched: the proxy is not their way, also where it is told to look at them.
#[test]
fn what_is_switched_between_ports_of_a_bridge_goes_on_undisturbed() {
    if missing(Feature::Bridge, "what is switched between ports of a bridge goes on undisturbed") {
        return;
    }
    let lab = Lab::builder().clients(2).build();
    bridge(&lab, 30);
    for interfaces in [&["br0", "servers0"][..], &["clients0", "clients1", "servers0"]] {
        let sheer = Sheer::on(&lab).tcp("80").interfaces(interfaces).start();
        let neighbours = ["10.30.0.3:7", "[2001:db8:30::3]:7"];
        for to in neighbours {
            let server = Server::echo_at(&lab.clients()[1], to.parse().unwrap());
            let stream = lab.client().connect(server.address());
            let from = stream.local_addr().unwrap();
            let back = Pattern::new(3).there_and_back(stream, BYTES);
            assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{to}, {interfaces:?}");
            assert_eq!(server.last(), from, "{to}, {interfaces:?}");
        }
        assert_eq!(sheer.stop().len(), 0);
    }
}

#[test]
fn a_tun_device_has_no_ethernet_header() {
    if missing(Feature::Tun, "a tun device has no Ethernet header") {
        return;
    }
    let lab = Lab::new();
    let _pumps = TunPair::between(lab.middle(), lab.client(), 31);
    lead(lab.client(), 31);
    assert_by_each(&lab, 31, &["tun0"]);
}

#[test]
fn vxlan_is_taken_on_its_own_device_and_left_alone_on_the_one_below() {
    let scenario = "VXLAN is taken on its own device and left alone on the one below";
    if missing(Feature::Vxlan, scenario) {
        return;
    }
    let lab = Lab::new();
    let (outer, gateway) = (lab.client().v4(), lab.client().gateway(Family::V4));
    let tunnel = |device: &str, local: IpAddr, remote: IpAddr| {
        format!("link add {device} type vxlan id 7 dstport 4789 local {local} remote {remote}\n")
    };
    lab.middle().configure(&tunnel("vxlan0", gateway, outer));
    lab.client().configure(&tunnel("vxlan0", outer, gateway));
    address_ethernet(&lab, "vxlan0", "vxlan0", 32);
    assert_by_each(&lab, 32, &["vxlan0"]);
    assert_through(&lab, 32, &Family::BOTH, &["clients0", "vxlan0", "servers0"]);
}

#[test]
fn a_macvlan_device_is_an_interface_like_others() {
    if missing(Feature::Macvlan, "a macvlan device is an interface like others") {
        return;
    }
    let lab = Lab::new();
    // The device below would answer for the address too, and has the client's packets then.
    lab.middle().sysctl("net.ipv4.conf.clients0.arp_ignore", "1");
    lab.middle().configure("link add link clients0 name macvlan0 type macvlan mode bridge\n");
    lab.middle().configure("link set macvlan0 up\naddr add 10.33.0.1/24 dev macvlan0\n");
    lab.middle().configure("addr add 2001:db8:33::1/64 dev macvlan0 nodad\n");
    lab.middle().wait_for_ipv6("macvlan0");
    lab.client().configure("addr add 10.33.0.2/24 dev eth0\naddr add 2001:db8:33::2/64 dev eth0 nodad\n");
    lead(lab.client(), 33);
    assert_by_each(&lab, 33, &["macvlan0"]);
}

#[test]
fn tagged_packets_are_intercepted_on_the_trunk_and_on_the_vlan_device() {
    if missing(Feature::Vlan, "tagged packets are intercepted on the trunk and on the VLAN device") {
        return;
    }
    let lab = Lab::new();
    lab.client().configure("link add link eth0 name eth0.9 type vlan id 9\n");
    lab.middle().configure("link add link clients0 name clients0.9 type vlan id 9\n");
    address_ethernet(&lab, "clients0.9", "eth0.9", 34);
    assert_by_each(&lab, 34, &["clients0", "clients0.9"]);
}

#[test]
fn packets_with_two_tags_are_intercepted_on_the_trunk_and_on_both_devices() {
    if missing(Feature::Qinq, "packets with two tags are intercepted on the trunk and on both devices") {
        return;
    }
    let lab = Lab::new();
    let stack = |trunk: &str| {
        format!(
            "link add link {trunk} name outer type vlan proto 802.1ad id 9\n\
             link set outer up\n\
             link add link outer name inner type vlan id 10\n"
        )
    };
    lab.client().configure(&stack("eth0"));
    lab.middle().configure(&stack("clients0"));
    address_ethernet(&lab, "inner", "inner", 35);
    assert_by_each(&lab, 35, &["clients0", "outer", "inner"]);
}

#[test]
fn a_bond_is_listed_or_its_members_are_and_a_member_may_fail() {
    if missing(Feature::Bond, "a bond is listed or its members are, and a member may fail") {
        return;
    }
    let lab = Lab::new();
    for (n, index) in [(1, 731), (2, 732)] {
        lab.middle().configure(&format!(
            "link add one{n} index {index} type veth peer name one{n} netns {}\n",
            lab.client().path()
        ));
    }
    let bond = "link add bond0 type bond mode active-backup miimon 20\n\
                link set one1 down\nlink set one2 down\n\
                link set one1 master bond0\nlink set one2 master bond0\n\
                link set bond0 up\n";
    let ends = [lab.middle(), lab.client() as &Namespace];
    for namespace in ends {
        namespace.configure(bond);
    }
    for namespace in ends {
        wait_until("the bond has an active member", PATIENCE, || active(namespace, "one").then_some(()));
        namespace.wait_for_ipv6("bond0");
    }
    address_ethernet(&lab, "bond0", "bond0", 36);
    assert_by_each(&lab, 36, &["bond0"]);
    assert_through(&lab, 36, &Family::BOTH, &["one1", "one2", "servers0"]);
    lab.client().configure("link set one1 down\n");
    for namespace in ends {
        wait_until("the other member has taken over", PATIENCE, || active(namespace, "one2").then_some(()));
    }
    assert_by_each(&lab, 36, &["bond0"]);
}

/// Whether the active member of the bond has a name that begins so.
fn active(namespace: &Namespace, name: &str) -> bool {
    namespace.sh("ip -d link show bond0").contains(&format!("active_slave {name}"))
}

#[test]
fn wireguard_is_an_interface_without_an_ethernet_header() {
    if missing(Feature::Wireguard, "wireguard is an interface without an Ethernet header") {
        return;
    }
    let lab = Lab::new();
    let keys = tempfile::tempdir().unwrap();
    let ends = [(lab.middle(), "middle"), (lab.client() as &Namespace, "client")];
    let public = ends.map(|(namespace, name)| {
        let file = keys.path().join(name);
        std::fs::write(&file, namespace.sh("wg genkey")).unwrap();
        namespace.configure("link add wg0 type wireguard\n");
        namespace.sh(&format!("wg set wg0 listen-port 51820 private-key {}", file.display()));
        namespace.sh("wg show wg0 public-key").trim().to_owned()
    });
    let outer = [lab.client().gateway(Family::V4), lab.client().v4()];
    for (n, (namespace, _)) in ends.into_iter().enumerate() {
        let (key, endpoint) = (&public[1 - n], outer[1 - n]);
        namespace.sh(&format!("wg set wg0 peer {key} endpoint {endpoint}:51820 allowed-ips 0.0.0.0/0,::/0"));
    }
    address(&lab, "wg0", (lab.client(), "wg0"), 37);
    assert_by_each(&lab, 37, &["wg0"]);
}

/// A tunnel over the link between client and middle, of a kind that `ip link` makes of two addresses.
fn tunnel(kind: &str, net: u8) -> Lab {
    let lab = Lab::new();
    let (outer, gateway) = (lab.client().v4(), lab.client().gateway(Family::V4));
    lab.middle().configure(&format!("link add tunnel type {kind} local {gateway} remote {outer}\n"));
    lab.client().configure(&format!("link add tunnel type {kind} local {outer} remote {gateway}\n"));
    for (namespace, host) in [(lab.middle(), 1), (lab.client() as &Namespace, 2)] {
        namespace.configure("link set tunnel up\n");
        if kind != "sit" {
            namespace.configure(&format!("addr add 10.{net}.0.{host}/24 dev tunnel\n"));
        }
        if kind != "ipip" {
            namespace.configure(&format!("addr add 2001:db8:{net}::{host}/64 dev tunnel nodad\n"));
        }
    }
    if kind != "sit" {
        lab.client().configure(&format!("route replace 198.51.100.0/24 via 10.{net}.0.1 src 10.{net}.0.2\n"));
    }
    if kind != "ipip" {
        lab.client().configure(&format!(
            "route replace 2001:db8:2::/48 via 2001:db8:{net}::1 src 2001:db8:{net}::2\n"
        ));
    }
    lab
}

fn assert_tunnelled(kind: &str, net: u8, families: &[Family]) {
    let lab = tunnel(kind, net);
    for interfaces in [&["tunnel", "servers0"][..], &["tunnel", "clients0", "servers0"]] {
        assert_through(&lab, net, families, interfaces);
    }
}

#[test]
fn gre_carries_both_families() {
    if missing(Feature::Gre, "GRE carries both families") {
        return;
    }
    assert_tunnelled("gre", 38, &Family::BOTH);
}

#[test]
fn ipip_carries_ipv4() {
    if missing(Feature::Ipip, "IPIP carries IPv4") {
        return;
    }
    assert_tunnelled("ipip", 39, &[Family::V4]);
}

#[test]
fn sit_carries_ipv6() {
    if missing(Feature::Sit, "SIT carries IPv6") {
        return;
    }
    assert_tunnelled("sit", 40, &[Family::V6]);
}

/// Servers often have the addresses of their services on such a device; and one that is listed never has a packet.
#[test]
fn a_dummy_device_may_hold_the_servers_address_and_may_be_listed() {
    if missing(Feature::Dummy, "a dummy device may hold the server's address, and may be listed") {
        return;
    }
    let lab = Lab::new();
    lab.server().configure("link add dummy0 type dummy\nlink set dummy0 up\n");
    lab.server()
        .configure("addr add 10.41.0.7/32 dev dummy0\naddr add 2001:db8:41::7/128 dev dummy0 nodad\n");
    let (v4, v6) = (lab.server().v4(), lab.server().v6());
    lab.middle().configure(&format!("route add 10.41.0.7 via {v4}\nroute add 2001:db8:41::7 via {v6}\n"));
    lab.middle().configure("link add dummy0 type dummy\nlink set dummy0 up\n");
    let sheer = Sheer::on(&lab).tcp("7").interfaces(&["clients0", "servers0", "dummy0"]).start();
    for (family, to) in Family::BOTH.into_iter().zip(["10.41.0.7:7", "[2001:db8:41::7]:7"]) {
        let server = Server::echo_at(lab.server(), to.parse().unwrap());
        let back = Pattern::new(3).there_and_back(lab.client().connect(server.address()), BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{to}");
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{to}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

/// On both links, in both directions.
fn troubled(trouble: &str) {
    let lab = Lab::new();
    for host in [lab.client(), lab.server()] {
        host.sh(&format!("tc qdisc add dev eth0 root netem {trouble}"));
        lab.middle().sh(&format!("tc qdisc add dev {} root netem {trouble}", host.uplink()));
    }
    let sheer = Sheer::on(&lab).tcp("7").start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let back = Pattern::new(3).there_and_back(lab.client().connect(server.address()), BYTES);
        assert_eq!(back.map_err(|e| e.to_string()), Ok(BYTES), "{family}: {trouble}");
        assert_eq!(server.peer_of_last(), lab.client().ip(family), "{family}: {trouble}");
        // A segment that comes after all has ended may be answered by a reset, with a proxy as without.
        assert_eq!(server.ended(), Ended::Well, "{family}: {trouble}");
    }
    // Its qdiscs are no traces of Sheer's.
    assert_eq!(sheer.stop_beside_others().len(), 2, "{trouble}");
}

#[test]
fn with_loss_every_byte_arrives() {
    if missing(Feature::Netem, "with loss every byte arrives") {
        return;
    }
    troubled("loss 1%");
}

#[test]
fn with_delay_every_byte_arrives() {
    if missing(Feature::Netem, "with delay every byte arrives") {
        return;
    }
    troubled("delay 10ms 3ms");
}

#[test]
fn with_packets_out_of_order_every_byte_arrives() {
    if missing(Feature::Netem, "with packets out of order every byte arrives") {
        return;
    }
    troubled("delay 5ms reorder 25% 50%");
}

#[test]
fn with_packets_that_come_twice_every_byte_arrives() {
    if missing(Feature::Netem, "with packets that come twice every byte arrives") {
        return;
    }
    troubled("duplicate 5%");
}

#[test]
fn links_of_different_widths_carry_every_byte() {
    let lab = Lab::new();
    wire((lab.middle(), "wide"), (lab.client(), "eth1"), 9000, 42);
    lead(lab.client(), 42);
    assert_by_each(&lab, 42, &["wide"]);
}
