use std::{env, fs, net::SocketAddrV4, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{haproxy, load::Outcome};
use crate::{
    lab::{CLIENT_V4, Lab, Namespace, SERVER_V4, TO_CLIENT, TO_SERVER},
    peer::Seen,
    process,
    service::{Service, Stream},
};

/// Ports of the server: a web server for the check, those of the load, and one past every proxy.
const WEB: u16 = 80;
const READ: u16 = 9001;
const DISCARD: u16 = 9002;
const ECHO: u16 = 9003;
const TALLY: u16 = 9004;

/// What the proxies intercept.
const INTERCEPTED: [u16; 4] = [WEB, READ, DISCARD, ECHO];

/// Client addresses beside the first one.
const MORE_CLIENTS: u8 = 31;

const INSTANCE: &str = "bench";

/// Beyond what a load takes itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    Routing,
    Sheer,
    Haproxy { threads: u8, splice: bool },
}

impl Contestant {
    pub const ALL: [Self; 6] = [
        Self::Routing,
        Self::Sheer,
        Self::Haproxy { threads: 1, splice: false },
        Self::Haproxy { threads: 1, splice: true },
        Self::Haproxy { threads: 2, splice: false },
        Self::Haproxy { threads: 2, splice: true },
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Routing => "plain routing",
            Self::Sheer => "Sheer",
            Self::Haproxy { threads: 1, splice: false } => "HAProxy, 1 thread",
            Self::Haproxy { threads: 1, splice: true } => "HAProxy, 1 thread, splice",
            Self::Haproxy { splice: false, .. } => "HAProxy, 2 threads",
            Self::Haproxy { splice: true, .. } => "HAProxy, 2 threads, splice",
        }
    }

    pub fn is_haproxy(self) -> bool {
        matches!(self, Self::Haproxy { .. })
    }

    fn slug(self) -> String {
        match self {
            Self::Routing => "routing".into(),
            Self::Sheer => "sheer".into(),
            Self::Haproxy { threads, splice } => format!("haproxy{threads}{}", if splice { "s" } else { "" }),
        }
    }
}

/// A contestant in a lab of its own, ready to be loaded. The lab stands for the whole benchmark; it idles while others
/// are measured.
pub struct Arena {
    pub contestant: Contestant,
    lab: Lab,
    sheer: std::path::PathBuf,
    proxy: Option<Service>,
    _target: Service,
    _web: Service,
    /// Client addresses, for loads that need more ports than one has.
    clients: String,
    /// Connections made by such loads: their ports rest.
    used: u64,
}

impl Arena {
    /// Makes the lab and starts everything in it but the proxy.
    pub fn build(contestant: Contestant, sheer: &Path, congestion: &str) -> Result<Self> {
        let lab = Lab::up(&format!("sheer-bench-{}", contestant.slug()))?;
        let clients = lab.add_client_addresses(MORE_CLIENTS)?;
        for namespace in lab.namespaces() {
            namespace.set_sysctls(&[&format!("net/ipv4/tcp_congestion_control={congestion}")])?;
        }
        if let Contestant::Haproxy { .. } = contestant {
            haproxy::intercept(&lab.proxy, &INTERCEPTED)?;
        }
        let own = env::current_exe()?;
        let mut target = lab.server.command(&own);
        target.arg("__target");
        for (duty, port) in [("--read", READ), ("--discard", DISCARD), ("--echo", ECHO), ("--tally", TALLY)] {
            target.args([duty, &server(port)]);
        }
        let target = start_ready("the load's server", &mut target)?;
        let mut web = lab.server.command(&own);
        let web = start_ready("the web server", web.args(["__serve", &server(WEB)]))?;
        let clients: Vec<_> = clients.iter().map(ToString::to_string).collect();
        Ok(Self {
            contestant,
            lab,
            sheer: sheer.to_owned(),
            proxy: None,
            _target: target,
            _web: web,
            clients: clients.join(","),
            used: 0,
        })
    }

    /// Starts the proxy, afresh if it runs already, and checks that it is in the way and keeps the client's address.
    pub fn start_proxy(&mut self) -> Result<()> {
        if let Some(old) = self.proxy.take() {
            old.stop()?;
        }
        self.proxy = match self.contestant {
            Contestant::Routing => None,
            Contestant::Sheer => Some(self.start_sheer()?),
            Contestant::Haproxy { threads, splice } => {
                Some(haproxy::start(&self.lab.proxy, threads, splice)?)
            }
        };
        self.check().with_context(|| format!("{} cannot be measured", self.contestant.name()))
    }

    fn start_sheer(&self) -> Result<Service> {
        self.clean_up_sheer()?;
        let mut run = self.lab.proxy.command(&self.sheer);
        run.args([
            "run",
            "-i",
            TO_CLIENT,
            "-i",
            TO_SERVER,
            "--tcp",
            &INTERCEPTED.map(|port| port.to_string()).join(","),
        ]);
        run.args(["--instance", INSTANCE, "--access-log", "off"]);
        let service = Service::start("sheer", &mut run)?;
        service.wait_for("`ready`", PATIENCE, |from, line| {
            (from == Stream::Err && line.trim() == "ready").then_some(())
        })?;
        Ok(service)
    }

    /// A Sheer that was killed, in this run or an earlier one, leaves pins for its successor; there will be none.
    fn clean_up_sheer(&self) -> Result<()> {
        if !Path::new("/sys/fs/bpf/sheer").join(INSTANCE).exists() {
            return Ok(());
        }
        process::run(self.lab.proxy.command(&self.sheer).args(["cleanup", "--instance", INSTANCE]))
    }

    /// A contestant that shows the server another address than the client's does less than the others; one that is not
    /// in the way does nothing.
    fn check(&self) -> Result<()> {
        let mut fetch = self.lab.client.command(env::current_exe()?);
        let client = Service::start("the client", fetch.args(["__fetch", &server(WEB)]))?;
        let seen: Seen = client.wait_for("answer", PATIENCE, |_, line| serde_json::from_str(line).ok())?;
        let server_saw = format!("Hello {CLIENT_V4}:");
        ensure!(
            seen.text.starts_with(&server_saw),
            "the server did not see the client's address: {}",
            seen.text
        );
        let mut sockets = self.lab.proxy.command("ss");
        let sockets = process::capture(sockets.args(["-Htn", "state", "established"]))?;
        let sockets = sockets.lines().count();
        let wanted = if self.contestant == Contestant::Routing { 0 } else { 2 };
        ensure!(sockets == wanted, "{sockets} sockets in the middle instead of {wanted}");
        client.finish(PATIENCE)
    }

    /// Sends `connections` bulk streams between ends that copy every byte, or, with `pages`, between ends that touch none.
    pub fn bulk(&mut self, connections: usize, pages: bool, seconds: f64) -> Result<Outcome> {
        let (kind, port) = if pages { ("bulk-pages", DISCARD) } else { ("bulk", READ) };
        self.load(kind, port, connections, seconds)
    }

    /// Plays ping-pong on `connections`.
    pub fn echo(&mut self, connections: usize, seconds: f64) -> Result<Outcome> {
        self.load("echo", ECHO, connections, seconds)
    }

    /// Opens and closes connections, `connections` at the same time.
    pub fn churn(&mut self, connections: usize, seconds: f64) -> Result<Outcome> {
        let outcome = self.load("churn", ECHO, connections, seconds)?;
        self.used += outcome.connections;
        Ok(outcome)
    }

    /// The process memory, bytes, that each of `connections` idle ones takes. `None` without a process in the middle.
    pub fn idle_memory(&mut self, connections: usize) -> Result<Option<f64>> {
        self.start_proxy()?;
        let Some(proxy) = &self.proxy else { return Ok(None) };
        let before = resident(proxy.pid())?;
        let mut holding = self.loader("idle", ECHO, connections);
        let holding = start_ready("the load", &mut holding)?;
        let after = resident(proxy.pid())?;
        holding.finish(PATIENCE)?;
        Ok(Some((after as f64 - before as f64) / connections as f64))
    }

    fn load(&self, kind: &str, port: u16, connections: usize, seconds: f64) -> Result<Outcome> {
        let mut loader = self.loader(kind, port, connections);
        loader.args([
            "--seconds",
            &seconds.to_string(),
            "--from",
            &self.clients,
            "--used",
            &self.used.to_string(),
        ]);
        loader.args(["--tally", &server(TALLY)]);
        let before = Opens::of(&self.lab.proxy)?;
        let load = Service::start("the load", &mut loader)?;
        let patience = PATIENCE + Duration::from_secs_f64(seconds);
        let outcome: Outcome = load.wait_for("result", patience, |from, line| {
            (from == Stream::Out).then(|| serde_json::from_str(line).ok())?
        })?;
        load.finish(PATIENCE)?;
        if outcome.units == 0 {
            bail!("nothing came through {} in a load of kind {kind}", self.contestant.name());
        }
        let opens = Opens::of(&self.lab.proxy)?.since(before);
        self.was_in_the_way(opens, outcome.connections, connections as u64).with_context(|| {
            format!("the load {kind} on {} measured something else", self.contestant.name())
        })?;
        Ok(outcome)
    }

    /// A proxy that has stopped, or lets a connection go its way, would be measured as plain routing: very well. The
    /// kernel counts in the router's namespace who opened connections there. `loose` may be unfinished at the end.
    fn was_in_the_way(&self, opens: Opens, connections: u64, loose: u64) -> Result<()> {
        if self.contestant == Contestant::Routing {
            ensure!(opens == Opens::default(), "something in the middle took connections: {opens:?}");
            return Ok(());
        }
        let wanted = if connections > loose { connections - loose } else { connections };
        ensure!(
            opens.accepted >= wanted && opens.connected >= wanted,
            "{connections} connections were made, the proxy's namespace saw only {opens:?}"
        );
        Ok(())
    }

    fn loader(&self, kind: &str, port: u16, connections: usize) -> Command {
        let own = env::current_exe().unwrap_or_else(|_| "xtask".into());
        let mut loader = self.lab.client.command(own);
        loader.args(["__load", kind, "--to", &server(port), "--connections", &connections.to_string()]);
        loader
    }

    /// Ends the proxy and takes the lab down.
    pub fn end(mut self) -> Result<()> {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop()?;
        }
        self.lab.down().map(drop)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        drop(self.proxy.take());
        if self.contestant == Contestant::Sheer
            && let Err(error) = self.clean_up_sheer()
        {
            eprintln!("what the benchmark's sheer left could not be removed: {error:#}");
        }
    }
}

/// Connections accepted and made in a namespace: `PassiveOpens` and `ActiveOpens` of RFC 4022.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Opens {
    accepted: u64,
    connected: u64,
}

impl Opens {
    fn of(namespace: &Namespace) -> Result<Self> {
        let counters = process::capture(namespace.command("cat").arg("/proc/net/snmp"))?;
        // A line of names, then one of values.
        let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let names = lines.next().context("/proc/net/snmp has no line `Tcp:`")?.split(' ');
        let values = lines.next().context("/proc/net/snmp has no values for TCP")?.split(' ');
        let pairs: Vec<_> = names.zip(values).collect();
        let value = |wanted: &str| {
            let found =
                pairs.iter().find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok());
            found.with_context(|| format!("/proc/net/snmp has no {wanted}"))
        };
        Ok(Self { accepted: value("PassiveOpens")?, connected: value("ActiveOpens")? })
    }

    fn since(self, earlier: Self) -> Self {
        Self { accepted: self.accepted - earlier.accepted, connected: self.connected - earlier.connected }
    }
}

/// Lets this process, and all that it starts, open as many files as the idle connections need: two in the proxy for
/// each, and pipes.
///
/// # Errors
/// When the hard limit is too low.
pub fn raise_file_limit() -> Result<()> {
    const FILES: u64 = 16_000;
    let limit = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|files| files >= FILES);
    ensure!(
        enough(limit.maximum),
        "at most {:?} open files are allowed here, {FILES} are needed; raise the limit with `ulimit -Hn {FILES}`",
        limit.maximum
    );
    if enough(limit.current) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files")
}

fn start_ready(name: &'static str, command: &mut Command) -> Result<Service> {
    let service = Service::start(name, command)?;
    service.wait_for("`ready`", PATIENCE, |_, line| (line == "ready").then_some(()))?;
    Ok(service)
}

fn server(port: u16) -> String {
    SocketAddrV4::new(SERVER_V4, port).to_string()
}

/// Resident memory of a process, bytes: `VmRSS` of proc_pid_status(5).
fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kilobytes.map(|kilobytes: u64| kilobytes * 1024).with_context(|| format!("{path} has no VmRSS"))
}
