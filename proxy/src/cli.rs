//! The command line.

use std::{path::PathBuf, thread, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use sheer_common::abi::MAX_WORKERS;

use crate::{
    config::{AttachMode, Config, Ports, Service, Timeouts, WhenDown},
    instance::InstanceName,
    record::{AccessLog, RecordFormat},
    socket::SourceMode,
};

/// A transparent proxy dataplane: servers see their clients' real addresses, clients see no proxy.
#[derive(Debug, Parser)]
#[command(name = "sheer", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `sheer` can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run dataplane and proxy in the foreground.
    Run(Box<RunArgs>),
    /// Show what an instance does.
    Status(ShowArgs),
    /// Show the connections of an instance.
    Flows(ShowArgs),
    /// Let an instance finish its connections and leave.
    Drain(InstanceArgs),
    /// Remove every trace of an instance that is dead.
    Cleanup(InstanceArgs),
}

/// Which instance is meant.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// Name of the instance.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub instance: InstanceName,
}

/// How to show it.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `sheer run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Interface whose incoming packets are looked at: name the clients' side and the servers'.
    #[arg(short, long = "interface", required = true, value_name = "IFACE")]
    pub interfaces: Vec<String>,
    /// TCP destination ports to intercept, such as 80,443,8000-8099.
    #[arg(long, required = true, value_name = "PORTS")]
    pub tcp: Ports,
    /// Address that servers see: client, client-port (address and port), proxy (this host's own), or an address.
    #[arg(long, default_value = "client", value_name = "MODE")]
    pub source: SourceMode,
    /// What new connections do while no proxy is running: open lets them go to the real server, closed drops them.
    #[arg(long, default_value = "open", value_name = "open|closed")]
    pub when_down: WhenDown,
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
    /// How to attach the packet program: auto takes TCX where the kernel has it.
    #[arg(long, default_value = "auto", value_name = "auto|tcx|clsact")]
    pub attach: AttachMode,
    /// Worker threads [default: one for each CPU].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Connections at the same time; beyond it new ones wait.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub max_connections: usize,
    /// How long a server may take to answer.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    #[arg(long, default_value = "2h 4m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// How long it may be silent after one side has ended its half.
    #[arg(long, default_value = "4m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub half_close_timeout: Duration,
    /// How long connections may take to end after SIGTERM.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// Where each connection's record goes: - for standard output, a file, or off.
    #[arg(long, default_value = "-", value_name = "-|FILE|off", value_parser = parse_access_log)]
    pub access_log: AccessLog,
    /// How records are written.
    #[arg(long, default_value = "text", value_name = "text|json")]
    pub access_format: Format,
    /// Packet mark of the policy route, if the chosen one collides.
    #[arg(long, value_name = "N", value_parser = parse_number)]
    pub mark: Option<u32>,
    /// Table of the policy route, if the chosen one collides.
    #[arg(long, value_name = "N", value_parser = parse_number)]
    pub table: Option<u32>,
    /// Log what the packet program decides about each packet that opens a connection or belongs to none.
    #[arg(long)]
    pub trace: bool,
}

/// How access records are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

fn parse_access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "" => Err("the name of a file, - or off".into()),
        "-" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        path => Ok(AccessLog::File(PathBuf::from(path))),
    }
}

/// Decimal or 0x-hexadecimal, not zero.
fn parse_number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|n| *n != 0).ok_or_else(|| format!("`{text}` is no number from 1 to 0xffffffff"))
}

impl RunArgs {
    /// The configuration that these flags make.
    ///
    /// # Errors
    /// What is wrong with them together, in words.
    pub fn into_config(self) -> Result<Config, String> {
        let workers = match self.workers {
            Some(0) => return Err("--workers 0: at least one is needed".into()),
            Some(n) if n > MAX_WORKERS as usize => {
                return Err(format!("--workers {n}: at most {MAX_WORKERS} are possible"));
            }
            Some(n) => n,
            None => thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS as usize),
        };
        if self.max_connections == 0 {
            return Err("--max-connections 0 would take no connection at all".into());
        }
        let mut interfaces = self.interfaces;
        interfaces.sort();
        interfaces.dedup();
        let service =
            Service { name: "tcp".into(), ports: self.tcp, source: self.source, when_down: self.when_down };
        Ok(Config {
            instance: self.of.instance,
            interfaces,
            services: vec![service],
            attach: self.attach,
            mark: self.mark,
            table: self.table,
            workers,
            max_connections: self.max_connections,
            timeouts: Timeouts {
                connect: self.connect_timeout,
                idle: self.idle_timeout,
                half_close: self.half_close_timeout,
            },
            drain_timeout: self.drain_timeout,
            access_log: self.access_log,
            access_format: match self.access_format {
                Format::Text => RecordFormat::Text,
                Format::Json => RecordFormat::Json,
            },
            trace: self.trace,
        })
    }
}
