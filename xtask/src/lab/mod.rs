//! The lab: a client, a router that runs Sheer, a server, each a network namespace of its own.
//!
//! ```text
//!   sheer-client            sheer-proxy               sheer-server
//!   198.51.100.10    ──    .1      .1      ──        203.0.113.10
//!   2001:db8:c::10         ::1     ::1               2001:db8:5::10
//!            eth0      to-client  to-server      eth0
//! ```
//!
//! The router forwards, so that the two reach each other without Sheer as well. Nothing of the host's own network is
//! touched. The addresses are those that RFC 5737 and RFC 3849 set aside for documentation.

mod exclusive;
mod namespace;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub use self::{exclusive::Exclusive, namespace::Namespace};
use crate::{privilege, process};

pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0x10);
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x10);

/// The router's interfaces, those that Sheer listens on.
pub const TO_CLIENT: &str = "to-client";
pub const TO_SERVER: &str = "to-server";

/// What `cargo xtask run` and `cargo xtask lab` call their lab.
pub const NAME: &str = "sheer";

const NEEDS: &str = "the lab needs root to make network namespaces and to load eBPF programs";

/// Three namespaces and the links between them. Taken down when dropped.
pub struct Lab {
    pub client: Namespace,
    pub proxy: Namespace,
    pub server: Namespace,
    down_on_drop: bool,
}

impl Lab {
    /// The lab of this name, whether it exists or not.
    pub fn named(name: &str) -> Self {
        let namespace = |role: &str| Namespace::new(format!("{name}-{role}"));
        Self {
            client: namespace("client"),
            proxy: namespace("proxy"),
            server: namespace("server"),
            down_on_drop: false,
        }
    }

    /// Makes the lab; one that a crashed run left is taken down first.
    ///
    /// # Errors
    /// When the kernel refuses a step; what was made until then is taken down again.
    pub fn up(name: &str) -> Result<Self> {
        let mut lab = Self::named(name);
        lab.down()?;
        lab.down_on_drop = true;
        for namespace in lab.namespaces() {
            namespace.create()?;
        }
        lab.link(TO_CLIENT, &lab.client, CLIENT_V4, CLIENT_V6)?;
        lab.link(TO_SERVER, &lab.server, SERVER_V4, SERVER_V6)?;
        lab.proxy.set_sysctls(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"])?;
        Ok(lab)
    }

    /// Ends what runs in the namespaces and removes them; links, addresses and rules go with them. Returns whether
    /// there was something to remove.
    ///
    /// # Errors
    /// When a process in a namespace does not end, or the kernel refuses.
    pub fn down(&self) -> Result<bool> {
        let mut removed = false;
        for namespace in self.namespaces() {
            removed |= namespace.remove()?;
        }
        Ok(removed)
    }

    /// Ends what runs in the namespaces, and leaves them.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn end_processes(&self) -> Result<()> {
        let mut existing = self.namespaces().into_iter().filter(|namespace| namespace.exists());
        existing.try_for_each(Namespace::end_processes)
    }

    /// The lab stays when this value is gone.
    fn leave_standing(mut self) {
        self.down_on_drop = false;
    }

    pub fn namespaces(&self) -> [&Namespace; 3] {
        [&self.client, &self.proxy, &self.server]
    }

    /// Joins `end` to the router. The end gets `v4` (/24) and `v6` (/64), the router the first address of each net.
    fn link(&self, interface: &str, end: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        let [a, b, c, _] = v4.octets();
        let router_v4 = Ipv4Addr::new(a, b, c, 1);
        let router_v6 = Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64 | 1);
        self.proxy.ip(&[
            "link",
            "add",
            interface,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            end.name(),
        ])?;
        for (namespace, device, v4, v6) in
            [(&self.proxy, interface, router_v4, router_v6), (end, "eth0", v4, v6)]
        {
            namespace.ip(&["address", "add", &format!("{v4}/24"), "dev", device])?;
            namespace.ip(&["address", "add", &format!("{v6}/64"), "dev", device, "nodad"])?;
            namespace.ip(&["link", "set", device, "up"])?;
        }
        end.ip(&["route", "add", "default", "via", &router_v4.to_string()])?;
        end.ip(&["-6", "route", "add", "default", "via", &router_v6.to_string()])
    }

    /// Gives the client more addresses: `CLIENT_V4 + 1` and so on, and the same in IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_client_addresses(&self, more: u8) -> Result<Vec<IpAddr>> {
        let mut addresses = vec![IpAddr::V4(CLIENT_V4)];
        for step in 1..=more {
            let v4 = Ipv4Addr::from_bits(CLIENT_V4.to_bits() + u32::from(step));
            self.client.ip(&["address", "add", &format!("{v4}/24"), "dev", "eth0"])?;
            addresses.push(IpAddr::V4(v4));
        }
        Ok(addresses)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down_on_drop
            && let Err(error) = self.down()
        {
            eprintln!("the lab was not taken down whole: {error:#}\n  Cure: `cargo xtask lab down`");
        }
    }
}

/// `cargo xtask lab up`.
///
/// # Errors
/// Without root, with a lab in use, or when the kernel refuses.
pub fn up() -> Result<()> {
    privilege::acquire(NEEDS, &["lab", "up"])?;
    let _alone = Exclusive::take(NAME)?;
    let lab = Lab::up(NAME)?;
    println!(
        "sheer-client  {CLIENT_V4}  {CLIENT_V6}\n\
         sheer-proxy   {TO_CLIENT}, {TO_SERVER}\n\
         sheer-server  {SERVER_V4}  {SERVER_V6}\n\
         `cargo xtask lab exec client CMD` runs a command in it, `cargo xtask lab down` removes it"
    );
    lab.leave_standing();
    Ok(())
}

/// `cargo xtask lab down`.
///
/// # Errors
/// Without root, with a lab in use, or when the kernel refuses.
pub fn down() -> Result<()> {
    privilege::acquire(NEEDS, &["lab", "down"])?;
    let _alone = Exclusive::take(NAME)?;
    let removed = Lab::named(NAME).down()?;
    println!("{}", if removed { "the lab is down" } else { "there was no lab" });
    Ok(())
}

/// `cargo xtask lab exec NS CMD`: replaces this process; returns only when it cannot.
///
/// # Errors
/// For a namespace that is not of the lab or does not exist, and when the command does not start.
pub fn exec(namespace: &str, command: &[String]) -> Result<()> {
    let mut arguments = vec!["lab", "exec", namespace, "--"];
    arguments.extend(command.iter().map(String::as_str));
    privilege::acquire(NEEDS, &arguments)?;
    let lab = Lab::named(NAME);
    let Some(namespace) = lab.namespaces().into_iter().find(|known| known.is_called(namespace)) else {
        bail!("`{namespace}` is not in the lab; there are client, proxy and server");
    };
    if !namespace.exists() {
        bail!("there is no lab; `cargo xtask lab up` or `cargo xtask run` makes one");
    }
    let (program, arguments) = command.split_first().context("no command given")?;
    let mut entered = namespace.command(program);
    let error = privilege::replace_process(entered.args(arguments));
    Err(error).with_context(|| format!("cannot start `{}`", process::line(&entered)))
}

/// `ip`, kept away from the terminal's Ctrl-C: a half-made or half-removed lab helps nobody.
fn ip() -> Command {
    let mut command = Command::new("ip");
    process::shield(&mut command);
    command
}
