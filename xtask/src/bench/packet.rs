//! What a packet costs in Sheer's kernel programs: the program `packet-cost`, and its figures as a table.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Plan, report::Table};
use crate::{process, ui, workspace};

/// The program's name, beside `sheer` in the target directory.
const PROGRAM: &str = "packet-cost";

/// How it was measured, as far as the figures mean nothing without it.
const METHOD: [&str; 5] = [
    "BPF_PROG_TEST_RUN, nanoseconds for one run of the program, in one process that has both policies and measures them in \
     turns; medians over the rounds, lowest and highest in parentheses. In the other columns the empty program's time \
     (harness and timer) is taken away, or divides.",
    "A test run repeats one packet 400,000 times: code, tables and flows are in the caches and every branch is foreseen. It \
     shows what grows with the rules; on a wire a packet costs more.",
    "`256 destinations`: each a new connection to another service's prefix, each repeated 2,000 times, the median over them. \
     `each once`: 2,000 new connections, every one to another prefix and from another port, one run each, with a system call \
     between any two: tables that no cache holds. Beside it stands the empty program run in the same way.",
    "bpf_sk_assign answers -95 (EOPNOTSUPP) in a test run. `taken` is therefore everything but the success of that last \
     helper: parsing, policy, the service's counters and limit, the socket lookup and the listener.",
    "Loading and reloading: the services compiled into tables, written into maps and brought into force; reading the file of \
     prefixes is not in it. Tables: what these maps hold. While the policy is reloaded, another thread has new connections \
     looked at, one run each; what the scheduler takes from that thread during a run is in the longest ones.",
];

/// What `packet-cost` prints.
#[derive(Serialize, Deserialize, Debug)]
pub struct Costs {
    rounds: usize,
    repeat: u32,
    policies: [PolicySize; 2],
    cases: Vec<Case>,
    reload: Reload,
}

#[derive(Serialize, Deserialize, Debug)]
struct PolicySize {
    services: usize,
    prefixes: usize,
    classes: usize,
    kernel_bytes: u64,
    load_s: f64,
    reload_s: f64,
}

#[derive(Serialize, Deserialize, Debug)]
struct Case {
    name: String,
    few: Nanoseconds,
    many: Nanoseconds,
}

/// New connections at the larger policy, one run each.
#[derive(Serialize, Deserialize, Debug)]
struct Reload {
    reloads: u32,
    quiet: Runs,
    reloading: Runs,
}

/// Nanoseconds.
#[derive(Serialize, Deserialize, Debug)]
struct Runs {
    runs: u64,
    median: u32,
    p9999: u32,
    max: u32,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy)]
struct Nanoseconds {
    median: u32,
    min: u32,
    max: u32,
}

/// Builds the program; the part that needs no root.
///
/// # Errors
/// When it does not compile.
pub fn build() -> Result<()> {
    let step = ui::Step::begin_shown("build", "cargo build --release --bin packet-cost");
    let mut cargo = workspace::cargo();
    process::run_shown(cargo.args(["build", "--release", "--package", "sheer-tests", "--bin", PROGRAM]))?;
    step.done(PROGRAM);
    Ok(())
}

/// Runs the program that was built beside `sheer`.
pub(super) fn measure(plan: &Plan, sheer: &Path) -> Result<Costs> {
    let step = ui::Step::begin("packets", "10 services and 4,096 with a million prefixes, in turns");
    let program = sheer.with_file_name(PROGRAM);
    let mut command = Command::new(&program);
    process::shield(&mut command);
    let said = process::capture(command.args(["1000000", &plan.packet_rounds.to_string()]))?;
    let costs = serde_json::from_str(&said)
        .with_context(|| format!("{} does not say what it should; build it again", program.display()))?;
    step.done("10 services and 4,096 with a million prefixes, in turns");
    Ok(costs)
}

impl Costs {
    pub fn tables(&self) -> [Table; 3] {
        [self.packets(), self.sizes(), self.reload()]
    }

    pub fn notes(&self) -> Vec<String> {
        METHOD.map(str::to_owned).into()
    }

    fn packets(&self) -> Table {
        let [few, many] = self.policies.each_ref().map(PolicySize::name);
        let header = vec![
            "a packet, ns".into(),
            few,
            many,
            "many : few".into(),
            "over empty, few".into(),
            "over empty, many".into(),
            "of empty, few".into(),
            "of empty, many".into(),
        ];
        Table { header, rows: self.cases.iter().map(|case| self.row(case)).collect() }
    }

    fn row(&self, case: &Case) -> Vec<String> {
        let Case { name, few, many } = case;
        let mut row = vec![title(name), few.shown(), many.shown()];
        let baseline = if name.ends_with("_once") { "empty_once" } else { "empty" };
        let Some(empty) = self.cases.iter().find(|case| case.name == baseline) else { return row };
        if name == baseline {
            row.extend(std::iter::repeat_n("–".to_owned(), 5));
            return row;
        }
        let (few, many) = (f64::from(few.median), f64::from(many.median));
        let (bare_few, bare_many) = (f64::from(empty.few.median), f64::from(empty.many.median));
        row.push(format!("{:.2}", many / few));
        row.extend([few - bare_few, many - bare_many].map(|over| format!("{over:.0}")));
        row.extend([few / bare_few, many / bare_many].map(|times| format!("{times:.1}")));
        row
    }

    fn reload(&self) -> Table {
        let row = |name: String, runs: &Runs| {
            let mut row = vec![name, runs.runs.to_string()];
            row.extend([runs.median, runs.p9999, runs.max].map(|ns| format!("{:.1}", f64::from(ns) / 1e3)));
            row
        };
        let Reload { reloads, quiet, reloading } = &self.reload;
        let header = ["new connections, µs each", "runs", "median", "99.99 %", "longest"];
        let rows = vec![
            row("while nothing else happens".into(), quiet),
            row(format!("while the million is reloaded {reloads} times"), reloading),
        ];
        Table { header: header.map(str::to_owned).into(), rows }
    }

    fn sizes(&self) -> Table {
        let row = |size: &PolicySize| {
            vec![
                size.name(),
                format!("{:.2} s", size.load_s),
                format!("{:.2} s", size.reload_s),
                format!("{:.1} MB", size.kernel_bytes as f64 / 1e6),
                size.classes.to_string(),
            ]
        };
        let header = ["policy", "loading", "reloading", "tables in the kernel", "classes of destinations"];
        Table { header: header.map(str::to_owned).into(), rows: self.policies.iter().map(row).collect() }
    }
}

impl PolicySize {
    fn name(&self) -> String {
        format!("{} services, {} prefixes", grouped(self.services), grouped(self.prefixes))
    }
}

impl Nanoseconds {
    fn shown(self) -> String {
        format!("{} ({}–{})", self.median, self.min, self.max)
    }
}

fn title(name: &str) -> String {
    let (what, family) = match name.strip_suffix("_v4") {
        Some(what) => (what, ", IPv4"),
        None => name.strip_suffix("_v6").map_or((name, ""), |what| (what, ", IPv6")),
    };
    let what = match what {
        "empty" => "empty program",
        "established" => "established connection of the proxy",
        "taken" => "new connection, taken",
        "passed" => "new connection, let pass by a service",
        "no_service" => "new connection, no service",
        "crossing" => "crossing: segment of an unknown connection",
        "datagram" => "datagram",
        "taken_different" => "new connection, taken, 256 destinations",
        "empty_once" => "empty program, each once",
        "taken_once" => "new connection, taken, each once",
        other => other,
    };
    format!("{what}{family}")
}

/// 1000000 as 1,000,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([10, 4096, 1_000_000].map(grouped), ["10", "4,096", "1,000,000"]);
    }

    #[test]
    fn ratios_are_against_the_empty_program_run_alike() {
        let case = |name: &str, few, many| {
            let [few, many] = [few, many].map(|median| Nanoseconds { median, min: median, max: median });
            Case { name: name.to_owned(), few, many }
        };
        let cases = vec![case("empty", 20, 20), case("taken_v4", 100, 120), case("empty_once", 50, 50)];
        let size = || PolicySize {
            services: 1,
            prefixes: 1,
            classes: 1,
            kernel_bytes: 1,
            load_s: 1.0,
            reload_s: 1.0,
        };
        let runs = || Runs { runs: 1, median: 1, p9999: 1, max: 1 };
        let reload = Reload { reloads: 1, quiet: runs(), reloading: runs() };
        let costs = Costs { rounds: 1, repeat: 1, policies: [size(), size()], cases, reload };
        assert_eq!(costs.row(&costs.cases[1])[3..], ["1.20", "80", "100", "5.0", "6.0"]);
        let once = case("taken_once", 100, 500);
        assert_eq!(costs.row(&once)[3..], ["5.00", "50", "450", "2.0", "10.0"]);
    }
}
