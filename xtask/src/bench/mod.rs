//! `cargo xtask bench`: what a packet costs in the kernel programs, Sheer beside plain routing and a tuned HAProxy, and
//! 10,000 rules beside nftables and iptables.
//!
//! Each contestant has a lab of its own that stands for the whole run; only one is loaded at a time. Every round
//! measures everything once, and begins with another contestant, so that a change of the machine's mood meets all
//! alike. Client, proxy and server share the machine's cores: a proxy that needs less leaves more to the two ends.

mod arena;
mod chart;
mod ground;
mod haproxy;
pub mod load;
mod machine;
mod packet;
mod report;
mod results;
mod rules;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    arena::{Arena, Contestant},
    machine::{Machine, disturbance},
    report::Report,
    results::{Metric, Results},
};
use crate::{build, interrupt::Interrupt, lab::Exclusive, privilege, ui, workspace};

const NEEDS: &str = "the benchmark needs root: it makes eighteen network namespaces, and loads eBPF programs and rules of nftables in them";

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
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What a packet costs in the kernel programs
    Packets,
    /// Beside plain routing and HAProxy
    Proxies,
    /// 10,000 rules, beside nftables and iptables
    Rules,
}

struct Plan {
    rounds: usize,
    packet_rounds: usize,
    rules_seconds: f64,
    seconds: f64,
    idle_rounds: usize,
    idle_connections: usize,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn plan(&self) -> Plan {
        if self.quick {
            Plan {
                rounds: self.rounds.min(2),
                packet_rounds: 1,
                rules_seconds: 0.3,
                seconds: 1.0,
                idle_rounds: 1,
                idle_connections: 5000,
            }
        } else {
            Plan {
                rounds: self.rounds,
                packet_rounds: 7,
                rules_seconds: 1.5,
                seconds: 3.0,
                idle_rounds: 3,
                idle_connections: 5000,
            }
        }
    }
}

/// # Errors
/// When something is missing, or a contestant does not do what it should.
pub fn run(options: &Options) -> Result<ExitCode> {
    haproxy::version()?;
    rules::programs()?;
    let sheer = build::release()?;
    if options.wants(Part::Packets) {
        packet::build()?;
    }
    let out = workspace::target().join("bench");
    let mut again: Vec<OsString> = vec!["__bench".into(), "--sheer".into(), sheer.clone().into()];
    again.extend(["--out".into(), out.clone().into(), "--rounds".into(), options.rounds.to_string().into()]);
    again.extend(["--congestion".into(), options.congestion.clone().into()]);
    again.extend(options.quick.then(|| "--quick".into()));
    for part in options.only.iter().filter_map(ValueEnum::to_possible_value) {
        again.extend(["--only".into(), part.get_name().to_owned().into()]);
    }
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
    let mut report = Report {
        machine: Machine::describe(sheer, &options.congestion)?,
        disturbance: vec![disturbance()?],
        packets: None,
        proxies: None,
        rules: None,
    };
    if options.wants(Part::Packets) {
        report.packets = Some(packet::measure(&plan, sheer)?);
        interrupt.check()?;
    }
    if options.wants(Part::Proxies) {
        let (results, disturbance) = measure_proxies(&plan, sheer, &options.congestion, &interrupt)?;
        report.disturbance.extend(disturbance);
        report.proxies = Some(results);
    }
    if options.wants(Part::Rules) {
        report.disturbance.push(disturbance()?);
        report.rules = Some(rules::measure(&plan, sheer, out, &options.congestion, &interrupt)?);
    }
    report.disturbance.push(disturbance()?);

    report.on_terminal();
    let files = report.write(out).with_context(|| format!("cannot write to {}", out.display()))?;
    println!();
    for file in files {
        ui::note(workspace::shown(&file));
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures, and what share of the machine others used before each round.
fn measure_proxies(
    plan: &Plan,
    sheer: &Path,
    congestion: &str,
    interrupt: &Interrupt,
) -> Result<(Results, Vec<f64>)> {
    let step = ui::Step::begin("labs", "making a lab for each contestant");
    let arenas = Contestant::ALL.into_iter().map(|contestant| Arena::build(contestant, sheer, congestion));
    let mut arenas = arenas.collect::<Result<Vec<_>>>()?;
    step.done(format_args!("{}, three namespaces each", arenas.len()));

    let mut results = Results::default();
    let mut disturbed = Vec::new();
    measure_memory(plan, &mut arenas, &mut results, interrupt)?;
    warm_up(&mut arenas, interrupt)?;
    for round in 0..plan.rounds {
        disturbed.push(measure_round(round, plan, &mut arenas, &mut results, interrupt)?);
    }
    arenas.into_iter().try_for_each(Arena::end)?;
    Ok((results, disturbed))
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

/// Returns what share of the machine others used before it.
fn measure_round(
    round: usize,
    plan: &Plan,
    arenas: &mut [Arena],
    results: &mut Results,
    interrupt: &Interrupt,
) -> Result<f64> {
    let step = ui::Step::begin("round", format_args!("{} of {}", round + 1, plan.rounds));
    let others = disturbance()?;
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
    Ok(others)
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
