use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        ground::{ECHO, Ground, Instance, counter},
        haproxy,
        load::Outcome,
    },
    Discipline,
    lists::Lists,
};
use crate::{
    lab::{Namespace, SERVER_V4},
    process,
    service::Service,
};

/// Another address of the server, that no rule names.
const BESIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);

/// A net behind the server, that no rule names, and that swallows what comes.
const SWALLOWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);

/// Who has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    Routing,
    OneService,
    ManyServices,
    Set,
    Chain,
}

impl Contestant {
    pub const ALL: [Self; 5] = [Self::Routing, Self::OneService, Self::ManyServices, Self::Set, Self::Chain];

    pub fn name(self) -> &'static str {
        match self {
            Self::Routing => "plain routing",
            Self::OneService => "Sheer, 1 service",
            Self::ManyServices => "Sheer, 4,096 services",
            Self::Set => "nftables, a set",
            Self::Chain => "iptables, a chain",
        }
    }

    /// In the headers of ratios.
    pub fn short(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::OneService => "1 service",
            Self::ManyServices => "4,096 services",
            Self::Set => "set",
            Self::Chain => "chain",
        }
    }

    pub fn is_sheer(self) -> bool {
        matches!(self, Self::OneService | Self::ManyServices)
    }

    fn slug(self) -> &'static str {
        match self {
            Self::Routing => "rules-none",
            Self::OneService => "rules-one",
            Self::ManyServices => "rules-many",
            Self::Set => "rules-set",
            Self::Chain => "rules-chain",
        }
    }
}

/// A contestant in a lab of its own, with its rules loaded and its proxy running.
pub struct Stand {
    pub contestant: Contestant,
    // Before the ground: the proxy ends first.
    proxy: Option<Service>,
    ground: Ground,
    sheer: PathBuf,
}

impl Stand {
    pub fn build(contestant: Contestant, lists: &Lists, sheer: &Path, congestion: &str) -> Result<Self> {
        let ground = Ground::build(contestant.slug(), Ipv4Addr::UNSPECIFIED, congestion)?;
        let (router, server) = (&ground.lab.proxy, &ground.lab.server);
        server.ip(&["address", "add", &format!("{BESIDE}/24"), "dev", "eth0"])?;
        server.ip(&["route", "add", "blackhole", &format!("{SWALLOWED}/24")])?;
        router.ip(&["route", "add", &format!("{SWALLOWED}/24"), "via", &SERVER_V4.to_string()])?;
        let mut stand = Self { contestant, proxy: None, ground, sheer: sheer.to_owned() };
        stand.load_rules(lists).with_context(|| format!("{} cannot have its rules", contestant.name()))?;
        Ok(stand)
    }

    fn load_rules(&mut self, lists: &Lists) -> Result<()> {
        let router = &self.ground.lab.proxy;
        self.proxy = match self.contestant {
            Contestant::Routing => None,
            Contestant::OneService => Some(self.start_sheer(&lists.one_service)?),
            Contestant::ManyServices => Some(self.start_sheer(&lists.many_services)?),
            Contestant::Set => {
                process::run(router.command("nft").arg("-f").arg(&lists.nft))?;
                Some(with_haproxy(router)?)
            }
            Contestant::Chain => {
                restore(router, &lists.iptables)?;
                Some(with_haproxy(router)?)
            }
        };
        Ok(())
    }

    fn start_sheer(&self, config: &Path) -> Result<Service> {
        let config = config.to_str().context("the path of the config is not UTF-8")?;
        self.instance().start(&self.ground.lab.proxy, &["-c", config])
    }

    fn instance(&self) -> Instance<'_> {
        let name = if self.contestant == Contestant::OneService { "bench-one" } else { "bench-many" };
        Instance { sheer: &self.sheer, name }
    }

    /// Plays a discipline and checks that it was one: crossing traffic hits no rule and nothing in the middle takes it,
    /// new connections to the last rule's destination all hit that rule and are all taken.
    pub fn measure(&mut self, discipline: Discipline, seconds: f64) -> Result<Outcome> {
        let play = |stand: &mut Self| match discipline {
            Discipline::Segments => stand.segments(seconds),
            Discipline::PingPong => stand.tcp("echo", BESIDE, 32, seconds),
            Discipline::Crossing => stand.tcp("churn", BESIDE, 64, seconds),
            Discipline::Taken => stand.tcp("churn", SERVER_V4, 64, seconds),
        };
        play(self).with_context(|| format!("{}: {}", self.contestant.name(), discipline.title()))
    }

    fn tcp(&mut self, kind: &str, to: Ipv4Addr, connections: usize, seconds: f64) -> Result<Outcome> {
        let before = self.hits()?;
        let (outcome, opens) = self.ground.load(kind, SocketAddrV4::new(to, ECHO), connections, seconds)?;
        let hits = self.hits()? - before;
        if to == SERVER_V4 && self.contestant != Contestant::Routing {
            let wanted = outcome.finished(connections);
            opens.check_all(wanted)?;
            ensure!(hits >= wanted, "{wanted} connections were made, the last rule was hit {hits} times");
        } else {
            opens.check_none()?;
            ensure!(hits == 0, "the last rule was hit {hits} times by traffic that it does not name");
        }
        Ok(outcome)
    }

    fn segments(&mut self, seconds: f64) -> Result<Outcome> {
        let forwarded = |stand: &Self| counter(&stand.ground.lab.proxy, "Ip", "ForwDatagrams");
        let (hits, before) = (self.hits()?, forwarded(self)?);
        let to = SocketAddrV4::new(SWALLOWED, ECHO);
        let (outcome, opens) = self.ground.load("segments", to, 256, seconds)?;
        opens.check_none()?;
        ensure!(self.hits()? == hits, "the last rule was hit by traffic that it does not name");
        let (forwarded, sent) = (forwarded(self)? - before, outcome.connections);
        ensure!(forwarded >= sent, "{sent} segments were sent, {forwarded} were forwarded");
        Ok(outcome)
    }

    /// How often the last rule matched, as its owner counts.
    fn hits(&self) -> Result<u64> {
        let router = &self.ground.lab.proxy;
        match self.contestant {
            Contestant::Routing => Ok(0),
            Contestant::OneService | Contestant::ManyServices => {
                let mut services = router.command(&self.sheer);
                services.args(["services", "--json", "--instance", self.instance().name]);
                let services: Value = serde_json::from_str(&process::capture(&mut services)?)?;
                let last = services.as_array().and_then(|all| all.last()?.get("hits")?.as_u64());
                last.context("`sheer services --json` has no hits of the last service")
            }
            Contestant::Set => {
                let chain = ["list", "chain", "ip", "rules", "prerouting"];
                let chain = process::capture(router.command("nft").args(chain))?;
                let count = chain.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
                count.and_then(|count| count.parse().ok()).context("`nft list chain` shows no counter")
            }
            Contestant::Chain => {
                let rules = process::capture(router.command("iptables-save").args(["-c", "-t", "mangle"]))?;
                // [PACKETS:BYTES] -A PREROUTING …
                let last = rules.lines().rfind(|line| line.contains("-A PREROUTING"));
                let count = last.and_then(|line| line.strip_prefix('[')?.split(':').next()?.parse().ok());
                count.context("`iptables-save -c` shows no count at the last rule")
            }
        }
    }

    /// Ends the proxy and takes the lab down.
    pub fn end(mut self) -> Result<()> {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop()?;
        }
        self.ground.lab.down().map(drop)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        drop(self.proxy.take());
        if self.contestant.is_sheer()
            && let Err(error) = self.instance().clean_up(&self.ground.lab.proxy)
        {
            eprintln!("what the benchmark's sheer left could not be removed: {error:#}");
        }
    }
}

/// The set-up that opens most connections.
fn with_haproxy(router: &Namespace) -> Result<Service> {
    haproxy::route(router)?;
    haproxy::start(router, 2, false)
}

fn restore(router: &Namespace, rules: &Path) -> Result<()> {
    let file = fs::File::open(rules).with_context(|| format!("cannot read {}", rules.display()))?;
    let mut restore = router.command("iptables-restore");
    process::shield(&mut restore);
    let output = restore.stdin(Stdio::from(file)).output().context("cannot start iptables-restore")?;
    ensure!(
        output.status.success(),
        "iptables-restore refuses {}: {}",
        rules.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
