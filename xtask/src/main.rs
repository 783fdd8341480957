//! The project's own commands: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod debian;
mod interrupt;
mod lab;
mod peer;
mod privilege;
mod process;
mod run;
mod service;
mod setup;
mod test;
mod ui;
mod workspace;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get the pieces of the eBPF toolchain that are missing
    Setup,
    /// Build the release binary, eBPF object included
    Build,
    /// Build, then show Sheer at work in a lab of network namespaces, or run it on this host
    Run {
        /// End after the demonstration; the exit code is 0 only if every check held
        #[arg(long, conflicts_with = "arguments")]
        once: bool,
        /// Run on this host instead, with these arguments of `sheer run`, such as `-i eth0 --tcp 80,443`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// The lab alone: make it, remove it, run a command in it
    Lab {
        #[command(subcommand)]
        action: LabAction,
    },
    /// Run every test; the scenarios among them as root
    Test {
        /// Only tests whose names contain this
        filter: Option<String>,
        /// Only the scenarios, on these kernels of Debian's, emulated: 5.10, 6.1, 6.12, 7.2, or all; `own` is this
        /// machine's
        #[arg(long, value_name = "LIST", num_args = 0..=1, default_missing_value = test::kernels::ALL, value_delimiter = ',')]
        kernels: Vec<test::kernels::Kernel>,
        /// The same as FILTER, for use after `--kernels`
        #[arg(long, value_name = "FILTER", conflicts_with = "filter")]
        only: Option<String>,
        /// Arguments for the test harness, such as `--test-threads=1`
        #[arg(last = true)]
        harness: Vec<String>,
    },
    /// Measure Sheer: beside plain routing and a tuned HAProxy, packet by packet, and beside nftables and iptables
    Bench(bench::Options),
    #[command(name = "__run-lab", hide = true)]
    RunLab {
        #[arg(long)]
        sheer: PathBuf,
        #[arg(long)]
        once: bool,
    },
    #[command(name = "__run-host", hide = true)]
    RunHost {
        #[arg(long)]
        sheer: PathBuf,
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    #[command(name = "__bench", hide = true)]
    BenchAsRoot(bench::AsRoot),
    #[command(name = "__load", hide = true)]
    Load(bench::load::Load),
    #[command(name = "__target", hide = true)]
    Target(bench::load::target::Target),
    #[command(name = "__serve", hide = true)]
    Serve { addresses: Vec<SocketAddr> },
    #[command(name = "__fetch", hide = true)]
    Fetch { server: SocketAddr },
}

#[derive(Subcommand)]
enum LabAction {
    /// Make the namespaces sheer-client, sheer-proxy and sheer-server
    Up,
    /// Remove them and end what runs in them
    Down,
    /// Run a command in one of them
    Exec {
        /// client, proxy or server
        namespace: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", ui::red("error:"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => setup::run().map(drop)?,
        Command::Build => build::release().map(drop)?,
        Command::Run { once, arguments } if arguments.is_empty() => return run::in_lab(once),
        Command::Run { arguments, .. } => return run::on_host(&arguments),
        Command::Lab { action: LabAction::Up } => lab::up()?,
        Command::Lab { action: LabAction::Down } => lab::down()?,
        Command::Lab { action: LabAction::Exec { namespace, command } } => lab::exec(&namespace, &command)?,
        Command::Test { filter, kernels, only, harness } => {
            let filter = filter.or(only);
            return match kernels.as_slice() {
                [] => test::run(filter.as_deref(), &harness),
                kernels => test::kernels::run(kernels, filter.as_deref(), &harness),
            };
        }
        Command::Bench(options) => return bench::run(&options),
        Command::BenchAsRoot(job) => return bench::run_as_root(&job.options, &job.sheer, &job.out),
        Command::Load(load) => bench::load::run(&load)?,
        Command::Target(target) => bench::load::target::run(&target)?,
        Command::RunLab { sheer, once } => return run::in_lab_as_root(&sheer, once),
        Command::RunHost { sheer, arguments } => return run::on_host_as_root(&sheer, &arguments),
        Command::Serve { addresses } => peer::serve::run(&addresses)?,
        Command::Fetch { server } => peer::fetch::run(server)?,
    }
    Ok(ExitCode::SUCCESS)
}
