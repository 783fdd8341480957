//! `cargo xtask bench`: Sheer beside plain routing and a tuned HAProxy, in one interleaved run.
//!
//! Each contestant has a lab of its own that stands for the whole run; only one is loaded at a time. Every round
//! measures everything once, and begins with another contestant, so that a change of the machine's mood meets all
//! alike. Client, proxy and server share the machine's cores: a proxy that needs less leaves more to the two ends.

mod arena;
mod chart;
mod haproxy;
pub mod load;
mod machine;
mod report;
mod results;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::{
    arena::{Arena, Contestant},
    machine::{Machine, disturbance},
    results::{Metric, Results},
};
use crate::{build, interrupt::Interrupt, lab::Exclusive, privilege, ui, workspace};

const NEEDS: &str =
    "the benchmark needs root: it makes eighteen network namespaces and loads eBPF programs in one of them";

#[derive(Args, Debug)]
pub struct Options {
    /// How often each contestant is measured in each discipline
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Short measurements and few rounds: to try the benchmark, not to judge by it
    #[arg(long)]
    quick: bool,
    /// Congestion control in all namespaces; BBR paces, and its pacing would be what is measured
    #[arg(long, default_value = "reno")]
    congestion: String,
}

struct Plan {
    rounds: usize,
    seconds: f64,
    idle_rounds: usize,
    idle_connections: usize,
}

impl Options {
    fn plan(&self) -> Plan {
        if self.quick {
            Plan { rounds: self.rounds.min(2), seconds: 1.0, idle_rounds: 1, idle_connections: 5000 }
        } else {
            Plan { rounds: self.rounds, seconds: 3.0, idle_rounds: 3, idle_connections: 5000 }
        }
    }
}

/// # Errors
/// When something is missing, or a contestant does not do what it should.
pub fn run(options: &Options) -> Result<ExitCode> {
    haproxy::version()?;
    let sheer = build::release()?;
    let out = workspace::target().join("bench");
    let mut again: Vec<OsString> = vec!["__bench".into(), "--sheer".into(), sheer.clone().into()];
    again.extend(["--out".into(), out.clone().into(), "--rounds".into(), options.rounds.to_string().into()]);
    again.extend(["--congestion".into(), options.congestion.clone().into()]);
    again.extend(options.quick.then(|| "--quick".into()));
    privilege::acquire(NEEDS, &again)?;
    run_as_root(options, &sheer, &out)
}

/// The part of [`run`] that needs root.
///
/// # Errors
/// As [`run`].
pub fn run_as_root(options: &Options, sheer: &Path, out: &Path) -> Result<ExitCode> {
    let plan = options.plan();
    if plan.rounds == 0 {
        bail!("--rounds 0: nothing would be measured");
    }
    let interrupt = Interrupt::watch()?;
    let _alone = Exclusive::take("sheer-bench")?;
    arena::raise_file_limit()?;
    let machine = Machine::describe(sheer, &options.congestion)?;

    let step = ui::Step::begin("labs", "making a lab for each contestant");
    let arenas =
        Contestant::ALL.into_iter().map(|contestant| Arena::build(contestant, sheer, &options.congestion));
    let mut arenas = arenas.collect::<Result<Vec<_>>>()?;
    step.done(format_args!("{}, three namespaces each", arenas.len()));

    let mut results = Results::default();
    measure_memory(&plan, &mut arenas, &mut results, &interrupt)?;
    warm_up(&mut arenas, &interrupt)?;
    for round in 0..plan.rounds {
        measure_round(round, &plan, &mut arenas, &mut results, &interrupt)?;
    }
    arenas.into_iter().try_for_each(Arena::end)?;

    report::on_terminal(&machine, &results);
    let files = report::write(out, &machine, &results)
        .with_context(|| format!("cannot write to {}", out.display()))?;
    println!();
    for file in files {
        ui::note(workspace::shown(&file));
    }
    Ok(ExitCode::SUCCESS)
}

/// Each time in a fresh process: one that has been busy keeps memory that idle connections then take for free.
fn measure_memory(
    plan: &Plan,
    arenas: &mut [Arena],
    results: &mut Results,
    interrupt: &Interrupt,
) -> Result<()> {
    let step = ui::Step::begin("memory", format_args!("{} idle connections each", plan.idle_connections));
    for _ in 0..plan.idle_rounds {
        for arena in &mut *arenas {
            interrupt.check()?;
            if let Some(bytes) = arena.idle_memory(plan.idle_connections)? {
                results.add(arena.contestant, Metric::Memory, bytes);
            }
        }
    }
    step.done(format_args!("{} idle connections each, in fresh processes", plan.idle_connections));
    Ok(())
}

/// A fresh process is slower than one that has worked, whoever it is.
fn warm_up(arenas: &mut [Arena], interrupt: &Interrupt) -> Result<()> {
    let step = ui::Step::begin("warm-up", "every discipline once, not counted");
    for arena in &mut *arenas {
        arena.start_proxy()?;
    }
    for metric in Metric::LOADS {
        for arena in &mut *arenas {
            interrupt.check()?;
            metric.measure(arena, 1.0)?;
        }
    }
    step.done("every discipline once, not counted; each keeps the client's address");
    Ok(())
}

fn measure_round(
    round: usize,
    plan: &Plan,
    arenas: &mut [Arena],
    results: &mut Results,
    interrupt: &Interrupt,
) -> Result<()> {
    let step = ui::Step::begin("round", format_args!("{} of {}", round + 1, plan.rounds));
    let others = disturbance()?;
    results.disturbance.push(others);
    for metric in Metric::LOADS {
        for turn in 0..arenas.len() {
            interrupt.check()?;
            let arena = &mut arenas[(round + turn) % Contestant::ALL.len()];
            let outcome = metric.measure(arena, plan.seconds)?;
            results.add_load(arena.contestant, metric, &outcome);
        }
    }
    let quiet = if others > report::NOISY { ui::yellow("others are busy") } else { "quiet".into() };
    step.done(format_args!(
        "{} of {}: {quiet} ({:.0} % of the machine in use before it)",
        round + 1,
        plan.rounds,
        others * 100.0
    ));
    Ok(())
}

/// Arguments of the hidden subcommand that runs as root.
#[derive(Args, Debug)]
pub struct AsRoot {
    #[arg(long)]
    pub sheer: PathBuf,
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    pub options: Options,
}
