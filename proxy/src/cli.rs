//! The command line.

mod run;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

pub use self::run::{Format, RunArgs, Time, WrongUse};
use crate::{
    config::{Protocol, values},
    instance::InstanceName,
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
    /// Check a configuration file: every mistake at once, as file:line:column: key: what to do.
    Check(CheckArgs),
    /// Show what an instance does.
    Status(ShowArgs),
    /// Show the connections of an instance.
    Flows(ShowArgs),
    /// Show the services of an instance, in the order in which they match, with their counters.
    Services(ShowArgs),
    /// Tell which service takes a connection and why, asked of the running instance's own programs.
    Explain(ExplainArgs),
    /// Look for what keeps Sheer from working on this host: each finding with its cure.
    ///
    /// Exits with 0 if all is fine, 1 if there are warnings, 2 if it cannot work.
    Doctor(DoctorArgs),
    /// Give a running instance a new configuration, in one step.
    Reload(ReloadArgs),
    /// Show the clients that an instance shuts out, and for how much longer.
    Blocked(ShowArgs),
    /// Shut a client out of all services for some time.
    Block(BlockArgs),
    /// Let a client in again.
    Unblock(UnblockArgs),
    /// Let an instance finish its connections and leave.
    Drain(InstanceArgs),
    /// Remove every trace of an instance, running or dead; connections of a running one are reset.
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

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(short, long = "config", value_name = "FILE")]
    pub config: PathBuf,
    /// Taken so that the line of `sheer run` can be checked as it stands.
    #[arg(long, hide = true, default_value = "default", value_name = "NAME")]
    pub instance: InstanceName,
}

/// Which connection to explain.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The client's address, with its port if that matters: 192.0.2.7, 192.0.2.7:40000, [2001:db8::7]:40000.
    #[arg(long, value_name = "IP[:PORT]")]
    pub from: ClientAt,
    /// Whom it asks for: 203.0.113.5:80, [2001:db8::5]:80.
    #[arg(long, value_name = "IP:PORT", value_parser = parse_server)]
    pub to: SocketAddr,
    /// The transport protocol.
    #[arg(long, default_value = "tcp", value_name = "tcp|udp")]
    pub proto: Protocol,
    /// Where the packet comes in [default: where this host would send the answer].
    #[arg(short, long = "interface", value_name = "IFACE", value_parser = parse_interface)]
    pub interface: Option<String>,
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// An address, perhaps with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAt {
    /// IPv4-mapped addresses are IPv4 ones here.
    pub ip: IpAddr,
    /// None: any will do.
    pub port: Option<u16>,
}

impl FromStr for ClientAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self { ip: ip.to_canonical(), port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(at) => Ok(Self { ip: at.ip().to_canonical(), port: Some(at.port()) }),
            Err(_) => Err("write an address such as 192.0.2.7 or 2001:db8::7, or one with a port such as \
                           192.0.2.7:40000 or [2001:db8::7]:40000"
                .to_owned()),
        }
    }
}

/// What to look at.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Interface to look at: name the clients' side and the servers' [default: all that could serve].
    #[arg(short, long = "interface", value_name = "IFACE", value_parser = parse_interface, conflicts_with = "config")]
    pub interfaces: Vec<String>,
    /// Configuration file: look at what it needs.
    #[arg(short, long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The instance whose mark the cures name, if it runs.
    #[command(flatten)]
    pub of: InstanceArgs,
    /// Cure what can be cured without asking, and say what was done.
    #[arg(long)]
    pub fix: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to reload.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The configuration file [default: the one that the instance was started with].
    #[arg(short, long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
}

/// Whom to shut out.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// The client's address.
    #[arg(value_name = "ADDR")]
    pub address: IpAddr,
    /// For how long, such as 10m or 2h.
    #[arg(value_name = "TIME", value_parser = values::duration)]
    pub time: Duration,
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
}

/// Whom to let in again.
#[derive(Debug, Args)]
pub struct UnblockArgs {
    /// The client's address.
    #[arg(value_name = "ADDR")]
    pub address: IpAddr,
    /// Which one.
    #[command(flatten)]
    pub of: InstanceArgs,
}

fn parse_interface(name: &str) -> Result<String, String> {
    values::interface_name(name).map(|()| name.to_owned())
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(at) if at.port() != 0 => Ok(SocketAddr::new(at.ip().to_canonical(), at.port())),
        _ => Err("write an address and a port such as 203.0.113.5:80 or [2001:db8::5]:80".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn clients_have_a_port_or_none() {
        let at = |text: &str| text.parse::<ClientAt>().map(|at| (at.ip.to_string(), at.port));
        assert_eq!(at("192.0.2.7"), Ok(("192.0.2.7".into(), None)));
        assert_eq!(at("192.0.2.7:1"), Ok(("192.0.2.7".into(), Some(1))));
        assert_eq!(at("2001:db8::7"), Ok(("2001:db8::7".into(), None)));
        assert_eq!(at("[2001:db8::7]"), Ok(("2001:db8::7".into(), None)));
        assert_eq!(at("[2001:db8::7]:9"), Ok(("2001:db8::7".into(), Some(9))));
        assert_eq!(at("::ffff:192.0.2.7"), Ok(("192.0.2.7".into(), None)));
        assert!(at("web").is_err() && at("192.0.2.7:").is_err() && at("192.0.2.7:65536").is_err());
    }
}
