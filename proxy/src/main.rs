//! The `sheer` command.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use sheer::{
    admin::{AskError, Request, ask},
    cleanup::cleanup,
    cli::{Cli, Command, InstanceArgs, ShowArgs},
    dataplane::{Pins, view},
    run::run,
    show,
};

/// Exit code for wrong use and wrong configuration, as clap has it too.
const WRONG_USE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    let done = match cli.command {
        Command::Run(args) => match args.into_config() {
            Ok(config) => run(config).map_err(Into::into),
            Err(mistake) => {
                complain(&mistake);
                return ExitCode::from(WRONG_USE);
            }
        },
        Command::Status(args) => status(&args),
        Command::Flows(args) => flows(&args),
        Command::Drain(args) => drain(&args),
        Command::Cleanup(args) => cleanup(&args.instance).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

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

fn status(args: &ShowArgs) -> Outcome {
    let name = &args.of.instance;
    let status = match ask(name, Request::Status) {
        Err(AskError::NotRunning(_)) if Pins::of(name).exist() => {
            return Err(format!(
                "instance `{name}` is not running, but its programs still stand in the kernel and treat new \
                 connections as their when_down says; `sheer run` takes them over, `sheer cleanup` removes them"
            )
            .into());
        }
        answer => answer?,
    };
    if let Some(error) = status["error"].as_str() {
        return Err(format!("instance `{name}`: {error}").into());
    }
    if args.json { print(&format!("{status}\n")) } else { print(&show::status(&status)) }
}

fn flows(args: &ShowArgs) -> Outcome {
    let pins = Pins::of(&args.of.instance);
    if !pins.exist() {
        return Err(format!("instance `{}` has no maps in bpffs: it is not running", args.of.instance).into());
    }
    let connections = view::connections(&pins)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&connections)?))
    } else {
        print(&show::flows(&connections))
    }
}

fn drain(args: &InstanceArgs) -> Outcome {
    let answer = ask(&args.instance, Request::Drain)?;
    print(&format!("draining {} connections\n", answer["live"]))
}

/// Not `eprintln!`, which panics where the reader has gone.
fn complain(what: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "sheer: {what}");
}

/// Prints; that the reader has gone (`| head`) is no failure.
fn print(text: &str) -> Outcome {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}
