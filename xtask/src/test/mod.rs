//! `cargo xtask test`: every test there is, and one summary of them.
//!
//! Unit tests run as the user, the scenarios of `sheer-tests` as root against the release binary. Both are built as the
//! user.

pub mod kernels;
mod output;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use self::output::Tally;
use crate::{build, process, ui, workspace};

/// The package whose tests need root.
const SCENARIOS: &str = "sheer-tests";

/// Tells the scenarios which `sheer` to run.
const BINARY_VARIABLE: &str = "SHEER_BIN";

/// Names the file where scenarios write what this kernel cannot run, a line each.
const SKIPS_VARIABLE: &str = "SHEER_SKIP_LOG";

const NEEDS: &str =
    "the scenarios need root: they make network namespaces, load eBPF programs and add policy routes";

/// Runs all tests, or those whose names contain `filter`; `harness` goes to each test program.
///
/// # Errors
/// When something does not build or start. Failed tests are the exit code.
pub fn run(filter: Option<&str>, harness: &[String]) -> Result<ExitCode> {
    let started = Instant::now();
    require_root_to_be_possible()?;
    let sheer = build::release()?;
    let mut tally = Tally::default();

    ui::heading("Unit tests");
    for mut cargo in [unit_tests(), ebpf_unit_tests()?] {
        cargo.args(filter).arg("--").args(harness);
        follow(&mut cargo, &mut tally).context("the unit tests do not build")?;
    }

    ui::heading("Scenarios, as root");
    let step = ui::Step::begin_shown("build", "cargo test --no-run --package sheer-tests");
    let programs = scenario_programs("dev")?;
    step.done(format_args!("{} test programs", programs.len()));
    run_scenarios(&sheer, &programs, filter, harness, &mut tally)?;
    Ok(summarize(&tally, started))
}

/// Runs the scenarios on this machine's own kernel.
fn run_scenarios(
    sheer: &Path,
    programs: &[Program],
    filter: Option<&str>,
    harness: &[String],
    tally: &mut Tally,
) -> Result<()> {
    let skips = workspace::target().join("skipped-scenarios.log");
    std::fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    for program in programs {
        ui::note(&program.name);
        let mut command = as_root(sheer, &skips, program);
        command.args(filter).args(harness);
        let before = tally.failed.len();
        let success = follow(&mut command, tally)?;
        if !success && tally.failed.len() == before {
            tally.failed.push(format!("{}: the test program ended without a result", program.name));
        }
    }
    tally.take_skips(&std::fs::read_to_string(&skips)?);
    Ok(())
}

/// Asked before the first minute is spent on building.
fn require_root_to_be_possible() -> Result<()> {
    if !rustix::process::geteuid().is_root() && !process::exists("sudo") {
        bail!("{NEEDS}, and sudo is not installed; run the same command as root");
    }
    Ok(())
}

fn unit_tests() -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--exclude", SCENARIOS, "--no-fail-fast"]);
    cargo
}

/// The half of the eBPF crate that is plain Rust runs on the host as well.
fn ebpf_unit_tests() -> Result<Command> {
    let rustc = ebpf_build::Rustc::query().map_err(|piece| anyhow::anyhow!("{piece}"))?;
    let mut cargo = workspace::cargo();
    cargo.current_dir(workspace::root().join("proxy-ebpf"));
    cargo
        .args(["test", "--lib", "--target", &rustc.host, "--target-dir"])
        .arg(workspace::target().join("ebpf-host"));
    Ok(cargo)
}

struct Program {
    name: String,
    path: PathBuf,
}

/// cargo's `--message-format=json`, as far as it is of use here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn scenario_programs(profile: &str) -> Result<Vec<Program>> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--package", SCENARIOS, "--no-run", "--profile", profile]);
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the scenarios do not build; see above");
    }
    let messages =
        output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    // Programs that scenarios may start are built as well.
    let programs = messages.filter(|message: &Message| message.profile.as_ref().is_some_and(|p| p.test));
    let programs = programs
        .filter_map(|message| Some(Program { path: message.executable?, name: message.target?.name }));
    Ok(programs.collect())
}

fn as_root(sheer: &Path, skips: &Path, program: &Program) -> Command {
    let settings =
        [format!("{BINARY_VARIABLE}={}", sheer.display()), format!("{SKIPS_VARIABLE}={}", skips.display())];
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else {
        eprintln!("sudo: {NEEDS}");
        let mut sudo = Command::new("sudo");
        sudo.args(["--", "env"]);
        sudo
    };
    command
        .args(settings)
        .arg("RUST_BACKTRACE=1")
        .arg(&program.path)
        .current_dir(workspace::root().join("tests"));
    command
}

/// Runs a test program, or cargo with several, and counts what it reports. Returns whether it ended well.
fn follow(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let line = process::line(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    let results = tally.results;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("a test program's output cannot be read")?;
            let line = String::from_utf8_lossy(&line);
            if tally.take(&line) {
                println!("  {line}");
            }
        }
    }
    let success = child.wait()?.success();
    if !success && tally.results == results {
        bail!("`{line}` ended without a result");
    }
    Ok(success)
}

fn summarize(tally: &Tally, started: Instant) -> ExitCode {
    ui::heading("Summary");
    for failed in &tally.failed {
        println!("  {} {failed}", ui::red("✗"));
    }
    for skipped in &tally.skipped {
        println!("  {} {skipped}", ui::yellow("skipped"));
    }
    ui::note(ui::seconds(started.elapsed()));
    let (failed, skipped) = (tally.failed.len(), tally.skipped.len());
    println!("{} passed, {failed} failed, {skipped} skipped", tally.passed);
    if failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
