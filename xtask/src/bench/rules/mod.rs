//! What 10,000 rules cost: Sheer beside a set of nftables and a chain of iptables with the same rules.
//!
//! Three disciplines are traffic that no rule takes and that has to get by all of them; in the last one the last rule
//! takes new connections.

mod lists;
mod report;
mod results;
mod stand;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::{lists::Lists, stand::Stand};
pub use self::{report::Shown, results::Results, stand::Contestant};
use super::Plan;
use crate::{interrupt::Interrupt, process, ui};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Discipline {
    /// Segments of unknown connections, as fast as one CPU pushes them through.
    Segments,
    PingPong,
    /// New connections that no rule names.
    Crossing,
    /// New connections that the last rule names.
    Taken,
}

impl Discipline {
    pub const ALL: [Self; 4] = [Self::Segments, Self::PingPong, Self::Crossing, Self::Taken];

    pub fn title(self) -> &'static str {
        match self {
            Self::Segments => "crossing: segments, 1000/s",
            Self::PingPong => "crossing: 64 B × 32, 1000/s",
            Self::Crossing => "crossing: new connections, 1000/s",
            Self::Taken => "taken by the last rule: new connections, 1000/s",
        }
    }
}

/// What has to be installed.
///
/// # Errors
/// When it is not.
pub fn programs() -> Result<()> {
    for (program, package) in [("nft", "nftables"), ("iptables-restore", "iptables")] {
        if !process::exists(program) {
            bail!("{program} is not installed; the package {package} has it");
        }
    }
    Ok(())
}

/// Measures all; the lists are left in `out`.
pub(super) fn measure(
    plan: &Plan,
    sheer: &Path,
    out: &Path,
    congestion: &str,
    interrupt: &Interrupt,
) -> Result<Results> {
    let step = ui::Step::begin("rules", format_args!("{} of them for each contestant", lists::COUNT));
    let dir = out.join("rules");
    let lists = Lists::write(&dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    let mut stands = Vec::new();
    for contestant in Contestant::ALL {
        interrupt.check()?;
        stands.push(Stand::build(contestant, &lists, sheer, congestion)?);
    }
    step.done(format_args!("{} for each of {} contestants", lists::COUNT, stands.len() - 1));

    let mut results = Results::default();
    // The first round is not counted: a fresh process is slower than one that has worked.
    for round in 0..=plan.rounds {
        let step = ui::Step::begin("rules", format_args!("round {round} of {}", plan.rounds));
        for discipline in Discipline::ALL {
            for turn in 0..stands.len() {
                interrupt.check()?;
                let stand = &mut stands[(round + turn) % Contestant::ALL.len()];
                let seconds = if round == 0 { 0.3 } else { plan.rules_seconds };
                let outcome = stand.measure(discipline, seconds)?;
                if round > 0 {
                    results.add(stand.contestant, discipline, outcome);
                }
            }
        }
        step.done(match round {
            0 => "every discipline once, not counted; hits and connections are as they should be".to_owned(),
            _ => format!("round {round} of {}", plan.rounds),
        });
    }
    stands.into_iter().try_for_each(Stand::end)?;
    Ok(results)
}
