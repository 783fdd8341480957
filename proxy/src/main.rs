//! The `sheer` command.

#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use sheer::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    commands::run(cli.command)
}

/// Warnings and above, and what the instance itself has to say; RUST_LOG overrides.
fn start_logging() {
    let default = env_logger::Env::default().default_filter_or("warn,sheer=info,sheer_ebpf=debug");
    env_logger::Builder::from_env(default)
        .format(|out, record| match record.level() {
            log::Level::Info | log::Level::Debug => writeln!(out, "sheer: {}", record.args()),
            level => writeln!(out, "sheer: {}: {}", level.as_str().to_lowercase(), record.args()),
        })
        .init();
}
