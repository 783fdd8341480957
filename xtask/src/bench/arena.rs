use std::{env, fs, net::SocketAddrV4, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    ground::{DISCARD, ECHO, Ground, Instance, PATIENCE, READ, start_ready},
    haproxy,
    load::Outcome,
};
use crate::{
    lab::{CLIENT_V4, SERVER_V4, TO_CLIENT, TO_SERVER},
    peer::Seen,
    process,
    service::Service,
};

/// The port of the web server that the check asks.
const WEB: u16 = 80;

/// What the proxies intercept.
const INTERCEPTED: [u16; 4] = [WEB, READ, DISCARD, ECHO];

const INSTANCE: &str = "bench";

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

/// A contestant in a lab of its own, ready to be loaded.
pub struct Arena {
    pub contestant: Contestant,
    // Before the ground: the proxy ends first.
    proxy: Option<Service>,
    _web: Service,
    ground: Ground,
    sheer: std::path::PathBuf,
}

impl Arena {
    /// Makes the lab and starts everything in it but the proxy.
    pub fn build(contestant: Contestant, sheer: &Path, congestion: &str) -> Result<Self> {
        let ground = Ground::build(&contestant.slug(), SERVER_V4, congestion)?;
        if let Contestant::Haproxy { .. } = contestant {
            haproxy::intercept(&ground.lab.proxy, &INTERCEPTED)?;
        }
        let mut web = ground.lab.server.command(env::current_exe()?);
        let web = start_ready("the web server", web.args(["__serve", &server(WEB).to_string()]))?;
        Ok(Self { contestant, proxy: None, _web: web, ground, sheer: sheer.to_owned() })
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
                Some(haproxy::start(&self.ground.lab.proxy, threads, splice)?)
            }
        };
        self.check().with_context(|| format!("{} cannot be measured", self.contestant.name()))
    }

    fn instance(&self) -> Instance<'_> {
        Instance { sheer: &self.sheer, name: INSTANCE }
    }

    fn start_sheer(&self) -> Result<Service> {
        let ports = INTERCEPTED.map(|port| port.to_string()).join(",");
        let arguments = ["-i", TO_CLIENT, "-i", TO_SERVER, "--tcp", &ports, "--access-log", "off"];
        self.instance().start(&self.ground.lab.proxy, &arguments)
    }

    /// A contestant that shows the server another address than the client's does less than the others; one that is not
    /// in the way does nothing.
    fn check(&self) -> Result<()> {
        let mut fetch = self.ground.lab.client.command(env::current_exe()?);
        let client = Service::start("the client", fetch.args(["__fetch", &server(WEB).to_string()]))?;
        let seen: Seen = client.wait_for("answer", PATIENCE, |_, line| serde_json::from_str(line).ok())?;
        let server_saw = format!("Hello {CLIENT_V4}:");
        ensure!(
            seen.text.starts_with(&server_saw),
            "the server did not see the client's address: {}",
            seen.text
        );
        let mut sockets = self.ground.lab.proxy.command("ss");
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
        self.load("churn", ECHO, connections, seconds)
    }

    /// The process memory, bytes, that each of `connections` idle ones takes. `None` without a process in the middle.
    pub fn idle_memory(&mut self, connections: usize) -> Result<Option<f64>> {
        self.start_proxy()?;
        let Some(proxy) = &self.proxy else { return Ok(None) };
        let before = resident(proxy.pid())?;
        let mut holding = self.ground.loader("idle", server(ECHO), connections);
        let holding = start_ready("the load", &mut holding)?;
        let after = resident(proxy.pid())?;
        holding.finish(PATIENCE)?;
        Ok(Some((after as f64 - before as f64) / connections as f64))
    }

    fn load(&mut self, kind: &str, port: u16, connections: usize, seconds: f64) -> Result<Outcome> {
        let (outcome, opens) = self.ground.load(kind, server(port), connections, seconds)?;
        let checked = match self.contestant {
            Contestant::Routing => opens.check_none(),
            _ => opens.check_all(outcome.finished(connections)),
        };
        checked.with_context(|| {
            format!("the load {kind} on {} measured something else", self.contestant.name())
        })?;
        Ok(outcome)
    }

    /// Ends the proxy and takes the lab down.
    pub fn end(mut self) -> Result<()> {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop()?;
        }
        self.ground.lab.down().map(drop)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        drop(self.proxy.take());
        if self.contestant == Contestant::Sheer
            && let Err(error) = self.instance().clean_up(&self.ground.lab.proxy)
        {
            eprintln!("what the benchmark's sheer left could not be removed: {error:#}");
        }
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

fn server(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER_V4, port)
}

/// Resident memory of a process, bytes: `VmRSS` of proc_pid_status(5).
fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kilobytes.map(|kilobytes: u64| kilobytes * 1024).with_context(|| format!("{path} has no VmRSS"))
}
