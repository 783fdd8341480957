use std::{
    env, fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{show, wait_ready};
use crate::{
    interrupt::Interrupt,
    lab::{CLIENT_V4, CLIENT_V6, Lab, SERVER_V4, SERVER_V6, TO_CLIENT, TO_SERVER},
    peer::Seen,
    service::{Service, Stream},
    ui,
};

/// The server's port; any would do.
const PORT: u16 = 80;

const PATIENCE: Duration = Duration::from_secs(10);

/// The lab with everything in it running.
pub struct Demonstration<'lab> {
    sheer: PathBuf,
    instance: &'static str,
    lab: &'lab Lab,
    proxy: Service,
    server: Service,
    /// How many of Sheer's lines the user has been shown, or told of.
    shown: usize,
}

/// One connection, as each of the three parties tells it.
struct Exchange {
    family: &'static str,
    client_address: IpAddr,
    /// Whom the client was told to ask.
    asked: SocketAddr,
    /// What the client saw; its connection stays open with the service.
    client: Seen,
    holding: Service,
    /// What the server saw.
    server: Seen,
}

impl<'lab> Demonstration<'lab> {
    /// Starts the server, then Sheer, each in its namespace, and waits until both are ready.
    pub fn start(
        sheer: &Path,
        instance: &'static str,
        lab: &'lab Lab,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let mut serve = lab.server.command(env::current_exe()?);
        serve.arg("__serve").args(targets().map(|(_, _, asked)| asked.to_string()));
        let server = Service::start("the web server", &mut serve)?;
        wait_ready(&server, Stream::Out)?;
        interrupt.check()?;

        let step = ui::Step::begin("sheer", "starting");
        let mut run = lab.proxy.command(sheer);
        run.args(["run", "-i", TO_CLIENT, "-i", TO_SERVER, "--tcp", &PORT.to_string()]);
        run.args(["--instance", instance, "--access-log", "-"]);
        let proxy = Service::start("sheer", &mut run)?;
        wait_ready(&proxy, Stream::Err).inspect_err(|_| println!())?;
        step.done(format_args!("ready: TCP port {PORT} on {TO_CLIENT} and {TO_SERVER}"));
        Ok(Self { sheer: sheer.to_owned(), instance, lab, proxy, server, shown: 0 })
    }

    /// Sends a request in each address family and checks what everybody says about it. `false` if a claim does not
    /// hold.
    pub fn exchange(&mut self, interrupt: &Interrupt) -> Result<bool> {
        let mut exchanges = Vec::new();
        for (family, client_address, asked) in targets() {
            exchanges.push(self.ask(family, client_address, asked)?);
            interrupt.check()?;
        }
        ui::heading("What the client asked, and what the server saw");
        for exchange in &exchanges {
            ui::command(format_args!("curl {}", Url(exchange.asked)));
        }
        let row = |x: &Exchange| {
            vec![x.family.into(), x.client.local.to_string(), x.asked.to_string(), x.server.peer.to_string()]
        };
        let rows: Vec<_> = exchanges.iter().map(row).collect();
        ui::table(&["", "client", "asked", "server saw"], &rows);

        show::wait_for_flows(&self.sheer, self.instance, exchanges.len());
        let flows = show::sheer(&self.sheer, "flows", self.instance).unwrap_or_default();
        show::sheer(&self.sheer, "status", self.instance);
        show::flows_map(self.instance);

        let ends: Vec<_> = exchanges.iter().map(|x| (x.client.local, x.asked)).collect();
        let mut held = true;
        ui::heading("Checks");
        for exchange in exchanges {
            held &= exchange.check(&flows)?;
        }
        for (client, asked) in ends {
            let record = self.record_of(client, asked);
            held &= record.is_ok();
            match record {
                Ok(record) => {
                    ui::check(true, "the access record agrees");
                    ui::note(format_args!("  {record}"));
                }
                Err(error) => {
                    ui::check(false, format_args!("an access record from {client} to {asked}: {error:#}"));
                }
            }
        }
        self.shown = self.proxy.line_count();
        Ok(held)
    }

    /// Shows each connection that ends, until a signal comes.
    pub fn stay(&mut self, interrupt: &Interrupt) {
        show::suggestions(&self.sheer, self.instance, self.lab);
        println!("\n{}", ui::dim("Connections appear here as they end. Ctrl-C ends the lab."));
        while interrupt.check().is_ok() {
            // The patience is short only to look at the signal in between.
            let Some(lines) = self.proxy.news(self.shown, Duration::from_millis(200)) else {
                ui::check(false, "sheer has ended by itself");
                return;
            };
            self.shown += lines.len();
            for line in lines {
                println!("  {line}");
            }
        }
        println!();
    }

    /// Ends Sheer, then the server; `false` when Sheer does not end well.
    pub fn end(self) -> Result<bool> {
        let complaints = self.proxy.lines(Stream::Err);
        let status = self.proxy.stop()?;
        ui::check(status.success(), format_args!("sheer ended on SIGTERM ({status})"));
        if !status.success() {
            ui::quote(&complaints.join("\n"));
        }
        self.server.stop()?;
        Ok(status.success())
    }

    fn ask(&self, family: &'static str, client_address: IpAddr, asked: SocketAddr) -> Result<Exchange> {
        let mut fetch = self.lab.client.command(env::current_exe()?);
        let holding = Service::start("the client", fetch.args(["__fetch", &asked.to_string()]))?;
        let client = holding
            .wait_for("answer", PATIENCE, parse)
            .with_context(|| format!("{family}: the request to {asked} failed"))?;
        let server = self.server.wait_for("request", PATIENCE, |from, line| {
            parse(from, line).filter(|seen| seen.local == asked)
        })?;
        Ok(Exchange { family, client_address, asked, client, holding, server })
    }

    fn record_of(&self, client: SocketAddr, asked: SocketAddr) -> Result<String> {
        let (client, asked) = (client.to_string(), asked.to_string());
        self.proxy.wait_for("access record", PATIENCE, |from, line| {
            (from == Stream::Out && line.contains(&client) && line.contains(&asked)).then(|| line.to_owned())
        })
    }
}

impl Exchange {
    /// Judges the claims, then lets the connection close.
    fn check(self, flows: &str) -> Result<bool> {
        let Self { family, client_address, asked, client, holding, server } = self;
        let [local, wanted] = [client.local.to_string(), asked.to_string()];
        let in_flows = flows.lines().any(|line| line.contains(&local) && line.contains(&wanted));
        let claims = [
            (
                server.peer.ip() == client_address,
                format!("the server saw the client's own address, {client_address}"),
            ),
            (client.peer == asked, format!("the client talked to {asked}, the true server")),
            (in_flows, "the connection went through sheer: it stands in its flows".to_owned()),
        ];
        for (held, claim) in &claims {
            ui::check(*held, format_args!("{family}: {claim}"));
        }
        holding.finish(PATIENCE)?;
        Ok(claims.iter().all(|(held, _)| *held))
    }
}

fn targets() -> impl Iterator<Item = (&'static str, IpAddr, SocketAddr)> + Clone {
    let v4 = ("IPv4", IpAddr::V4(CLIENT_V4), SocketAddr::from((SERVER_V4, PORT)));
    let v6 = ("IPv6", IpAddr::V6(CLIENT_V6), SocketAddr::from((SERVER_V6, PORT)));
    [v4, v6].into_iter()
}

fn parse(from: Stream, line: &str) -> Option<Seen> {
    (from == Stream::Out).then(|| serde_json::from_str(line).ok())?
}

/// An address as curl takes it.
struct Url(SocketAddr);

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.is_ipv6() { "'" } else { "" };
        match self.0.port() {
            80 if self.0.is_ipv6() => write!(f, "{quote}http://[{}]/{quote}", self.0.ip()),
            80 => write!(f, "http://{}/", self.0.ip()),
            _ => write!(f, "{quote}http://{}/{quote}", self.0),
        }
    }
}
