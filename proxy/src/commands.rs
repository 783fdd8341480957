//! The commands of the command line: what each does, what it prints, and its exit code.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write as _},
    path,
    process::ExitCode,
};

use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::{
    admin::{AskError, Request, ask},
    cleanup::cleanup,
    cli::{
        BlockArgs, CheckArgs, Command, DoctorArgs, ExplainArgs, InstanceArgs, ReloadArgs, ShowArgs,
        UnblockArgs, WrongUse,
    },
    config::Config,
    dataplane::{Pins, view},
    doctor,
    explain::{Answer, Question},
    instance::InstanceName,
    run, show,
};

/// Exit code for wrong use and wrong configuration, as clap has it too.
const WRONG_USE: u8 = 2;

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Does what was asked for, and tells why where it cannot.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Run(args) => match args.into_config() {
            Ok(config) => run::run(config).map(|()| ExitCode::SUCCESS).map_err(Into::into),
            Err(wrong) => return wrong_use(&wrong),
        },
        Command::Check(args) => check(&args),
        Command::Status(args) => answered(&args, &Request::Status, show::status),
        Command::Flows(args) => flows(&args),
        Command::Services(args) => answered(&args, &Request::Services, show::services),
        Command::Explain(args) => explain(args),
        Command::Doctor(args) => examine(args),
        Command::Reload(args) => reload(&args),
        Command::Blocked(args) => answered(&args, &Request::Blocked, show::blocked),
        Command::Block(args) => block(&args),
        Command::Unblock(args) => unblock(&args),
        Command::Drain(args) => drain(&args),
        Command::Cleanup(args) => cleanup(&args.instance).map(|()| ExitCode::SUCCESS).map_err(Into::into),
    };
    done.unwrap_or_else(|e| {
        complain(&e);
        ExitCode::FAILURE
    })
}

/// Mistakes in a file begin with its name, as those of compilers do: editors find their places.
fn wrong_use(wrong: &WrongUse) -> ExitCode {
    match wrong {
        WrongUse::File(mistakes) => drop(writeln!(io::stderr(), "{mistakes}")),
        WrongUse::Flags(_) => complain(wrong),
    }
    ExitCode::from(WRONG_USE)
}

fn check(args: &CheckArgs) -> Outcome {
    let config = match Config::read(&args.config, args.instance.clone()) {
        Ok(config) => config,
        Err(mistakes) => return Ok(wrong_use(&WrongUse::File(mistakes))),
    };
    print(&format!("{}: {}: fine\n", args.config.display(), config.summary()))
}

fn flows(args: &ShowArgs) -> Outcome {
    let pins = Pins::of(&args.of.instance);
    if !pins.exist() {
        return Err(format!("instance `{}` has no maps in bpffs: it is not running", args.of.instance).into());
    }
    let connections = view::connections(&pins)?;
    if args.json { print_json(&connections) } else { print(&show::flows(&connections)) }
}

fn explain(args: ExplainArgs) -> Outcome {
    let question = match Question::new(args.from.ip, args.from.port, args.to, args.proto, args.interface) {
        Ok(question) => question,
        Err(wrong) => {
            complain(&wrong);
            return Ok(ExitCode::from(WRONG_USE));
        }
    };
    let name = &args.of.instance;
    let value = asked(name, &Request::Explain(question))?;
    let answer = Answer::deserialize(&value)
        .map_err(|e| format!("instance `{name}` is of another version of Sheer, restart it: {e}"))?;
    let printed = if args.json { print_json(&value)? } else { print(&answer.to_string())? };
    Ok(if answer.disagreements.is_empty() { printed } else { ExitCode::FAILURE })
}

fn examine(args: DoctorArgs) -> Outcome {
    let of = match &args.config {
        Some(file) => match Config::read(file, args.of.instance.clone()) {
            Ok(config) => doctor::Options::of(&config),
            Err(mistakes) => return Ok(wrong_use(&WrongUse::File(mistakes))),
        },
        None => doctor::Options { interfaces: args.interfaces, ..doctor::Options::default() },
    };
    let options = doctor::Options { numbers: run::numbers(&args.of.instance), ..of };
    let report = doctor::doctor(&options, args.fix)?;
    if args.json {
        print_json(&report)?
    } else {
        print(&report.to_string())?
    };
    Ok(ExitCode::from(report.verdict().exit_code()))
}

fn reload(args: &ReloadArgs) -> Outcome {
    // The instance may have been started in another directory.
    let file = args.config.as_ref().map(path::absolute).transpose()?;
    let done = asked(&args.of.instance, &Request::Reload { file })?;
    if let Some(mistakes) = done["mistakes"].as_str() {
        // As `sheer check` shows them.
        let _ = writeln!(io::stderr(), "{mistakes}");
        complain(&format_args!("instance `{}` goes on as it was", args.of.instance));
        return Ok(ExitCode::from(WRONG_USE));
    }
    print(&format!("in force: {}\n", done["in_force"].as_str().unwrap_or("nothing known")))
}

fn block(args: &BlockArgs) -> Outcome {
    asked(&args.of.instance, &Request::Block { client: args.address, time: args.time })?;
    let time = humantime::format_duration(args.time);
    print(&format!("{} is shut out for {time}\n", args.address.to_canonical()))
}

fn unblock(args: &UnblockArgs) -> Outcome {
    let done = asked(&args.of.instance, &Request::Unblock { client: args.address })?;
    match done["ended"].as_u64() {
        Some(0) | None => Err(format!("{} was not shut out", args.address.to_canonical()).into()),
        Some(_) => print(&format!("{} is let in again\n", args.address.to_canonical())),
    }
}

fn drain(args: &InstanceArgs) -> Outcome {
    let answer = asked(&args.instance, &Request::Drain)?;
    print(&format!("draining {} connections\n", answer["live"]))
}

/// What an instance answers, as JSON or for people.
fn answered(args: &ShowArgs, request: &Request, shown: impl FnOnce(&Value) -> String) -> Outcome {
    let answer = asked(&args.of.instance, request)?;
    if args.json { print_json(&answer) } else { print(&shown(&answer)) }
}

/// What an instance answers; that it could not do it is an error too.
fn asked(name: &InstanceName, request: &Request) -> Result<Value, Box<dyn Error>> {
    let answer = match ask(name, request) {
        Err(AskError::NotRunning(_)) if Pins::of(name).exist() => {
            return Err(format!(
                "instance `{name}` is not running, but its programs still stand in the kernel and treat new \
                 connections as their when_down says; `sheer run` takes them over, `sheer cleanup` removes them"
            )
            .into());
        }
        answer => answer?,
    };
    match answer["error"].as_str() {
        Some(error) => Err(format!("instance `{name}`: {error}").into()),
        None => Ok(answer),
    }
}

fn print_json(value: &impl Serialize) -> Outcome {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Prints; that the reader has gone (`| head`) is no failure.
fn print(text: &str) -> Outcome {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Not `eprintln!`, which panics where the reader has gone.
fn complain(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "sheer: {what}");
}
