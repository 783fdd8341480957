//! `sheer run`: a configuration from flags or from a file.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};

use super::{InstanceArgs, parse_interface};
use crate::{
    config::{AttachMode, Config, Existing, Mistakes, Ports, Service, Timeouts, WhenDown, values},
    record::{AccessLog, RecordFormat},
    socket::SourceMode,
};

/// Flags of `sheer run`.
#[derive(Debug, Args)]
#[command(override_usage = "sheer run -c FILE [OPTIONS]\n       sheer run -i IFACE... --tcp PORTS [OPTIONS]")]
pub struct RunArgs {
    /// Configuration file; it says everything that the flags below can say, but for --instance and --trace.
    #[arg(short, long = "config", value_name = "FILE", conflicts_with_all = IN_THE_FILE)]
    pub config: Option<PathBuf>,
    /// Interface whose incoming packets are looked at: name the clients' side and the servers'.
    #[arg(
        short,
        long = "interface",
        required_unless_present = "config",
        value_name = "IFACE",
        value_parser = parse_interface
    )]
    pub interfaces: Vec<String>,
    /// TCP destination ports to intercept, such as 80,443,8000-8099.
    #[arg(long, required_unless_present_any = ["config", "udp"], value_name = "PORTS")]
    pub tcp: Option<Ports>,
    /// UDP destination ports to intercept: not in this version.
    #[arg(long, hide = true, value_name = "PORTS")]
    pub udp: Option<Ports>,
    /// Address that servers see: client, client-port (address and port), proxy (this host's own), or an address.
    #[arg(long, default_value = "client", value_name = "MODE", value_parser = values::source)]
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
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub workers: Option<usize>,
    /// Connections at the same time; beyond it new ones wait.
    #[arg(long, default_value_t = values::MAX_CONNECTIONS, value_name = "N", value_parser = parse_connections)]
    pub max_connections: usize,
    /// How long a server may take to answer.
    #[arg(long, default_value_t = Time(Timeouts::default().connect), value_name = "TIME")]
    pub connect_timeout: Time,
    /// How long a connection may be silent.
    #[arg(long, default_value_t = Time(Timeouts::default().idle), value_name = "TIME")]
    pub idle_timeout: Time,
    /// How long it may be silent after one side has ended its half.
    #[arg(long, default_value_t = Time(Timeouts::default().half_close), value_name = "TIME")]
    pub half_close_timeout: Time,
    /// How long connections may take to end after SIGTERM.
    #[arg(long, default_value_t = Time(values::DRAIN_TIMEOUT), value_name = "TIME")]
    pub drain_timeout: Time,
    /// Where each connection's record goes: - for standard output, a file, or off.
    #[arg(long, default_value = "-", value_name = "-|FILE|off", value_parser = values::access_log)]
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

/// A time such as `5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        values::duration(text).map(Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// What a configuration file says instead; `--udp` is among them although it cannot be had.
const IN_THE_FILE: [&str; 16] = [
    "interfaces",
    "tcp",
    "udp",
    "source",
    "when_down",
    "attach",
    "workers",
    "max_connections",
    "connect_timeout",
    "idle_timeout",
    "half_close_timeout",
    "drain_timeout",
    "access_log",
    "access_format",
    "mark",
    "table",
];

fn parse_workers(text: &str) -> Result<usize, String> {
    values::workers(whole(text)?)
}

fn parse_connections(text: &str) -> Result<usize, String> {
    values::max_connections(whole(text)?)
}

fn whole(text: &str) -> Result<i128, String> {
    text.parse().map_err(|_| "a whole number is expected".to_owned())
}

/// Decimal or 0x-hexadecimal, not zero.
fn parse_number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|n| *n != 0).ok_or_else(|| format!("`{text}` is no number from 1 to 0xffffffff"))
}

/// Why flags or a file make no configuration. The command ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum WrongUse {
    /// Flags that do not go together.
    #[error("{0}")]
    Flags(String),
    /// What is wrong in a file; to be shown as it is, one mistake a line.
    #[error(transparent)]
    File(#[from] Mistakes),
}

impl RunArgs {
    /// The configuration that the file says, or these flags.
    ///
    /// # Errors
    /// See [`WrongUse`].
    pub fn into_config(self) -> Result<Config, WrongUse> {
        match self.config {
            Some(file) => Ok(Config { trace: self.trace, ..Config::read(&file, self.of.instance)? }),
            None => self.flags().map_err(WrongUse::Flags),
        }
    }

    fn flags(self) -> Result<Config, String> {
        if let Some(ports) = self.udp {
            return Err(format!(
                "--udp {ports}: UDP is not proxied in this version; leave --udp out, and UDP passes as if Sheer were \
                 not there. To drop some, use a configuration file with protocol = \"udp\" and action = \"drop\""
            ));
        }
        let mut names = self.interfaces.iter().enumerate();
        if let Some((_, twice)) = names.find(|(i, name)| self.interfaces[..*i].contains(name)) {
            return Err(format!("-i {twice} is given twice; name each interface once"));
        }
        let service = Service {
            ports: self.tcp,
            source: self.source,
            when_down: self.when_down,
            ..Service::any("tcp")
        };
        Ok(Config {
            instance: self.of.instance,
            file: None,
            interfaces: self.interfaces,
            when_down: self.when_down,
            services: vec![service],
            existing: Existing::default(),
            attach: self.attach,
            mark: self.mark,
            table: self.table,
            workers: self.workers.unwrap_or_else(values::default_workers),
            max_connections: self.max_connections,
            timeouts: Timeouts {
                connect: self.connect_timeout.0,
                idle: self.idle_timeout.0,
                half_close: self.half_close_timeout.0,
            },
            drain_timeout: self.drain_timeout.0,
            access_log: self.access_log,
            access_format: match self.access_format {
                Format::Text => RecordFormat::Text,
                Format::Json => RecordFormat::Json,
            },
            trace: self.trace,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn run(line: &str) -> Result<Config, String> {
        let words = ["sheer", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Command::Run(args) => args.into_config().map_err(|e| e.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    fn refused(line: &str) -> String {
        run(line).unwrap_err()
    }

    #[test]
    fn flags_make_a_config() {
        let config = run("-i eth0 -i eth1 --tcp 80,443 --when-down closed --workers 2").unwrap();
        assert_eq!(config.interfaces, ["eth0", "eth1"]);
        assert_eq!((config.workers, config.file), (2, None));
        let [service] = config.services.as_slice() else { panic!("{:?}", config.services) };
        assert_eq!(service.ports.as_ref().unwrap().to_string(), "80,443");
        assert_eq!(service.when_down, WhenDown::Closed);
    }

    #[test]
    fn flags_and_file_have_the_same_defaults() {
        let text = "[dataplane]\ninterfaces = ['eth0']\n[[service]]\nname = 'tcp'\nport = 80\n";
        let name = "default".parse().unwrap();
        let file = crate::config::check::check(text, "sheer.toml", ".".as_ref(), name).unwrap();
        assert_eq!(format!("{file:?}"), format!("{:?}", run("-i eth0 --tcp 80").unwrap()));
    }

    #[test]
    fn wrong_flags_are_refused_with_the_cure() {
        for (line, says) in [
            ("", "--interface <IFACE>"),
            ("-i eth0", "--tcp <PORTS>"),
            ("--tcp 80", "--interface <IFACE>"),
            ("-i eth0 --tcp 80 -i eth0", "-i eth0 is given twice"),
            ("-i a/b --tcp 80", "`a/b` is no interface's name"),
            ("-i eth0 --udp 53", "--udp 53: UDP is not proxied in this version; leave --udp out"),
            ("-i eth0 --tcp 80 --udp 53", "UDP is not proxied in this version"),
            ("-i eth0 --tcp 80 --workers 0", "0 is out of range; write a number from 1 to 256"),
            ("-i eth0 --tcp 80 --max-connections 0", "0 is out of range; write a number from 1 to"),
            ("-i eth0 --tcp 80 --idle-timeout 0s", "a time of zero"),
            ("-i eth0 --tcp 80 --drain-timeout 5", "`5` is no time; write for example"),
            ("-i eth0 --tcp 80 --mark 0", "`0` is no number from 1 to 0xffffffff"),
            ("-c x.toml --tcp 80", "cannot be used with"),
            ("-c x.toml --idle-timeout 5s", "cannot be used with"),
            ("-c x.toml --mark 5", "cannot be used with"),
            (
                "-c /nonexistent/x.toml --trace --instance a",
                "/nonexistent/x.toml: there is no such file; give",
            ),
        ] {
            assert!(refused(line).contains(says), "{line}: {}", refused(line));
        }
    }

    #[test]
    fn every_flag_that_the_file_can_say_conflicts_with_it() {
        use clap::CommandFactory as _;
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        let beside = ["config", "instance", "trace"];
        let flags: Vec<&str> = run.get_arguments().map(|a| a.get_id().as_str()).collect();
        assert!(flags.iter().all(|flag| IN_THE_FILE.contains(flag) || beside.contains(flag)), "{flags:?}");
    }
}
