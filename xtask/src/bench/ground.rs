//! What every contestant stands on: a lab of its own with the load's server in it, and the load.

use std::{
    env,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::load::Outcome;
use crate::{
    lab::{Lab, Namespace},
    process,
    service::{Service, Stream},
};

/// Ports of the server.
pub const READ: u16 = 9001;
pub const DISCARD: u16 = 9002;
pub const ECHO: u16 = 9003;
/// Past every proxy.
pub const TALLY: u16 = 9004;

/// Client addresses beside the first one.
const MORE_CLIENTS: u8 = 31;

/// Beyond what a load takes itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A lab that stands until it is dropped; it idles while others are measured.
pub struct Ground {
    pub lab: Lab,
    _target: Service,
    /// Client addresses, for loads that need more ports than one has.
    clients: String,
    /// Connections made by such loads: their ports rest.
    used: u64,
}

impl Ground {
    /// Makes the lab and starts the load's server in it, on `listen`.
    pub fn build(slug: &str, listen: Ipv4Addr, congestion: &str) -> Result<Self> {
        let lab = Lab::up(&format!("sheer-bench-{slug}"))?;
        let clients = lab.add_client_addresses(MORE_CLIENTS)?;
        for namespace in lab.namespaces() {
            namespace.set_sysctls(&[&format!("net/ipv4/tcp_congestion_control={congestion}")])?;
        }
        let mut target = lab.server.command(env::current_exe()?);
        target.arg("__target");
        for (duty, port) in [("--read", READ), ("--discard", DISCARD), ("--echo", ECHO), ("--tally", TALLY)] {
            target.args([duty, &SocketAddrV4::new(listen, port).to_string()]);
        }
        let target = start_ready("the load's server", &mut target)?;
        let clients: Vec<_> = clients.iter().map(ToString::to_string).collect();
        Ok(Self { lab, _target: target, clients: clients.join(","), used: 0 })
    }

    /// Plays a load, and says what the router's namespace opened meanwhile.
    pub fn load(
        &mut self,
        kind: &str,
        to: SocketAddrV4,
        connections: usize,
        seconds: f64,
    ) -> Result<(Outcome, Opens)> {
        let mut loader = self.loader(kind, to, connections);
        let warm = seconds.min(0.5);
        loader.args(["--warm", &warm.to_string(), "--seconds", &seconds.to_string()]);
        loader.args(["--from", &self.clients]);
        loader.args(["--used", &self.used.to_string()]);
        loader.args(["--tally", &SocketAddrV4::new(*to.ip(), TALLY).to_string()]);
        let before = Opens::of(&self.lab.proxy)?;
        let load = Service::start("the load", &mut loader)?;
        let patience = PATIENCE + Duration::from_secs_f64(seconds);
        let outcome: Outcome = load.wait_for("result", patience, |from, line| {
            (from == Stream::Out).then(|| serde_json::from_str(line).ok())?
        })?;
        load.finish(PATIENCE)?;
        ensure!(outcome.units > 0, "nothing came through in a load of kind {kind}");
        if kind == "churn" {
            self.used += outcome.connections;
        }
        Ok((outcome, Opens::of(&self.lab.proxy)?.since(before)))
    }

    /// The load generator, without what only timed loads need.
    pub fn loader(&self, kind: &str, to: SocketAddrV4, connections: usize) -> Command {
        let own = env::current_exe().unwrap_or_else(|_| "xtask".into());
        let mut loader = self.lab.client.command(own);
        let (to, connections) = (to.to_string(), connections.to_string());
        loader.args(["__load", kind, "--to", &to, "--connections", &connections]);
        loader
    }
}

/// Connections accepted and made in a namespace: `PassiveOpens` and `ActiveOpens` of RFC 4022.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opens {
    accepted: u64,
    connected: u64,
}

impl Opens {
    fn of(namespace: &Namespace) -> Result<Self> {
        Ok(Self {
            accepted: counter(namespace, "Tcp", "PassiveOpens")?,
            connected: counter(namespace, "Tcp", "ActiveOpens")?,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self { accepted: self.accepted - earlier.accepted, connected: self.connected - earlier.connected }
    }

    /// That nothing in the middle took a connection.
    pub fn check_none(self) -> Result<()> {
        ensure!(self == Self::default(), "something in the middle took connections: {self:?}");
        Ok(())
    }

    /// That all connections of a load were taken. A proxy that has stopped, or lets a connection go its way, would be
    /// measured as plain routing: very well.
    pub fn check_all(self, connections: u64) -> Result<()> {
        ensure!(
            self.accepted >= connections && self.connected >= connections,
            "{connections} connections were made, the proxy's namespace saw only {self:?}"
        );
        Ok(())
    }
}

/// A counter of a namespace: from /proc/net/snmp, by the names of RFC 4022, 4113 and 4293.
pub fn counter(namespace: &Namespace, protocol: &str, name: &str) -> Result<u64> {
    let counters = process::capture(namespace.command("cat").arg("/proc/net/snmp"))?;
    // A line of names, then one of values.
    let prefix = format!("{protocol}: ");
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix(&prefix));
    let names = lines.next().with_context(|| format!("/proc/net/snmp has no line `{protocol}:`"))?;
    let values = lines.next().with_context(|| format!("/proc/net/snmp has no values for {protocol}"))?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find(|(known, _)| *known == name).and_then(|(_, value)| value.parse().ok());
    value.with_context(|| format!("/proc/net/snmp has no {name}"))
}

/// Starts a program that says `ready`.
pub fn start_ready(name: &'static str, command: &mut Command) -> Result<Service> {
    let service = Service::start(name, command)?;
    service.wait_for("`ready`", PATIENCE, |_, line| (line == "ready").then_some(()))?;
    Ok(service)
}

/// Sheer as an instance in a namespace.
pub struct Instance<'a> {
    pub sheer: &'a Path,
    pub name: &'a str,
}

impl Instance<'_> {
    /// Starts it with these arguments of `sheer run`, and waits until packets reach it.
    pub fn start(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Service> {
        self.clean_up(namespace)?;
        let mut run = namespace.command(self.sheer);
        run.arg("run").args(arguments).args(["--instance", self.name]);
        let service = Service::start("sheer", &mut run)?;
        service.wait_for("`ready`", PATIENCE, |from, line| {
            (from == Stream::Err && line.trim() == "ready").then_some(())
        })?;
        Ok(service)
    }

    /// A Sheer that was killed, in this run or an earlier one, leaves pins for its successor; there will be none.
    pub fn clean_up(&self, namespace: &Namespace) -> Result<()> {
        if !Path::new("/sys/fs/bpf/sheer").join(self.name).exists() {
            return Ok(());
        }
        process::run(namespace.command(self.sheer).args(["cleanup", "--instance", self.name]))
    }
}
