//! What a kernel may lack. A scenario without it is skipped, counted and named, never in silence.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::{SchedClassifier, TcAttachType};

use crate::namespace::Namespace;

/// Something a scenario needs from the kernel, with the programs that set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// VLAN devices (8021q).
    Vlan,
    /// VLAN devices within VLAN devices (802.1ad).
    Qinq,
    /// Ethernet bridges.
    Bridge,
    /// Devices that are bound together.
    Bond,
    /// Several addresses of Ethernet on one device.
    Macvlan,
    /// Tun devices.
    Tun,
    /// VXLAN tunnels.
    Vxlan,
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6 in IPv4.
    Sit,
    /// Generic routing encapsulation.
    Gre,
    /// WireGuard, and `wg` (package wireguard-tools).
    Wireguard,
    /// Devices that lead nowhere.
    Dummy,
    /// Loss, delay and reordering on purpose (sch_netem).
    Netem,
    /// Programs at tc that are links of their own (Linux 6.6), not filters under a clsact qdisc.
    Tcx,
}

impl Feature {
    /// Whether the kernel has it: for scenarios that expect something else where it has not.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn is_there(self) -> bool {
        self.lacking().is_none()
    }

    /// Why the kernel cannot, if it cannot.
    fn lacking(self) -> Option<String> {
        let Some(line) = self.probe() else {
            return SchedClassifier::query_tcx("lo", TcAttachType::Ingress).err().map(|e| e.to_string());
        };
        let output = Namespace::new("probe").command("sh").args(["-c", line]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        (!output.status.success()).then_some(said)
    }

    /// A command line for a shell in an empty network namespace; none where no program can tell.
    fn probe(self) -> Option<&'static str> {
        Some(match self {
            // A VLAN device cannot stand on `lo` (NETIF_F_VLAN_CHALLENGED).
            Self::Vlan => {
                "ip link add probe type veth peer name other && ip link add link probe name above type vlan id 7"
            }
            Self::Qinq => {
                "ip link add probe type veth peer name other && \
                 ip link add link probe name outer type vlan proto 802.1ad id 7 && \
                 ip link add link outer name inner type vlan id 8"
            }
            Self::Bridge => "ip link add probe type bridge",
            Self::Bond => "ip link add probe type bond mode active-backup miimon 100",
            Self::Macvlan => {
                "ip link add probe type veth peer name other && ip link add link probe name above type macvlan"
            }
            Self::Tun => "ip tuntap add probe mode tun",
            Self::Vxlan => "ip link add probe type vxlan id 7 dstport 4789 remote 192.0.2.1",
            Self::Ipip => "ip link add probe type ipip remote 192.0.2.1 local 192.0.2.2",
            Self::Sit => "ip link add probe type sit remote 192.0.2.1 local 192.0.2.2",
            Self::Gre => "ip link add probe type gre remote 192.0.2.1 local 192.0.2.2",
            Self::Wireguard => "wg --version && ip link add probe type wireguard",
            Self::Dummy => "ip link add probe type dummy",
            Self::Netem => "tc qdisc add dev lo root netem delay 1ms",
            Self::Tcx => return None,
        })
    }
}

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether the kernel lacks this; if so, the scenario is skipped as by [`skip`].
///
/// # Panics
/// Without root.
#[must_use]
pub fn missing(feature: Feature, scenario: &str) -> bool {
    let Some(reason) = feature.lacking() else { return false };
    skip(scenario, &format!("this kernel lacks {feature:?}: {reason}"));
    true
}

/// Prints the skip of a scenario past the harness's capture, counts it, and adds it to the file named by
/// `SHEER_SKIP_LOG`.
pub fn skip(scenario: &str, reason: &str) {
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("SKIPPED ({count}): {scenario}: {reason}\n");
    // eprint! would be captured by the test harness.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("SHEER_SKIP_LOG") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}
