//! Links between namespaces beside those that the lab has.

use std::process::Command;

use tempfile::TempDir;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

/// A veth pair of this MTU, up, with the addresses 10.NET.0.1 and .2, and 2001:db8:NET::1 and ::2.
pub fn wire(one: (&Namespace, &str), other: (&Namespace, &str), mtu: u16, net: u8) {
    let ((near, name), (far, peer)) = (one, other);
    // Unlike its peer's, as between the lab's hosts.
    let index = 700 + u32::from(net);
    near.configure(&format!(
        "link add {name} index {index} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {}\n",
        far.path()
    ));
    near.configure(&end_of_wire(name, net, 1));
    far.configure(&end_of_wire(peer, net, 2));
    near.wait_for_ipv6(name);
    far.wait_for_ipv6(peer);
}

fn end_of_wire(name: &str, net: u8, host: u8) -> String {
    format!(
        "addr add 10.{net}.0.{host}/24 dev {name}\n\
         addr add 2001:db8:{net}::{host}/64 dev {name} nodad\n\
         link set {name} up\n"
    )
}

/// Two tun devices, `tun0` in each of two namespaces: what is sent into the one comes out of the other. Their packets have
/// no Ethernet header.
#[derive(Debug)]
pub struct TunPair {
    _pumps: [Process; 2],
    _directory: TempDir,
}

impl TunPair {
    /// Joins them, with the addresses of [`wire`].
    ///
    /// # Panics
    /// Without socat.
    #[must_use]
    pub fn between(one: &Namespace, other: &Namespace, net: u8) -> Self {
        let directory = TempDir::with_prefix("sheer-tun-").unwrap();
        let socket = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let (here, there) = (socket("one"), socket("other"));
        let ends = [(one, &here, &there, 1), (other, &there, &here, 2)];
        let pumps = ends.map(|(namespace, own, others, _)| {
            // A packet that meets an end which is not up yet would end the pump: none may be sent unasked.
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
            Process::start("socat (package socat)", pump(namespace, own, others))
        });
        for (namespace, ..) in ends {
            wait_until("tun0 is up", PATIENCE, || {
                let output = namespace.command("ip").args(["link", "show", "tun0", "up"]).output().unwrap();
                (output.status.success() && !output.stdout.is_empty()).then_some(())
            });
        }
        for (namespace, _, _, host) in ends {
            for name in ["default", "tun0"] {
                namespace.sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6"), "0");
            }
            namespace.configure(&end_of_wire("tun0", net, host));
        }
        Self { _pumps: pumps, _directory: directory }
    }
}

/// A datagram for each packet. Sockets in the file system do not belong to a network namespace.
fn pump(namespace: &Namespace, own: &str, others: &str) -> Command {
    let mut command = namespace.command("socat");
    command.args(["-b", "65536", "TUN,tun-name=tun0,iff-no-pi,iff-up"]);
    command.arg(format!("UNIX-SENDTO:{others},bind={own}"));
    command
}
