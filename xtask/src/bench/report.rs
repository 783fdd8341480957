//! The figures: a table for the terminal, Markdown, JSON, and a plot.

use std::{
    env, fs, io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    arena::Contestant,
    chart,
    machine::Machine,
    packet,
    results::{Metric, Results, Summary},
    rules,
};
use crate::ui;

/// From this share of the machine in other hands on, figures are not worth much.
pub const NOISY: f64 = 0.1;

/// How it was measured, as far as the figures mean nothing without it.
const METHOD: [&str; 7] = [
    "Medians over the rounds, lowest and highest in parentheses. Each round measures every contestant in turn; each has \
     network namespaces of its own, and only the measured one is loaded.",
    "Ratios are against plain routing, and against the best of HAProxy's set-ups in that discipline; above 1 is \
     better, for memory as well.",
    "Every contestant was checked to show the server the client's own address; in every load the kernel's counters of \
     opened connections say that it was in the way (and that plain routing had nothing in the way). None of them logs.",
    "HAProxy: TPROXY by iptables with a DIVERT rule for all but SYNs, `usesrc clientip`, `tune.pipesize 1048576`, \
     `tune.bufsize 65536`, 1 and 2 threads, each with `option splice-request` and `splice-response` and without. \
     `option splice-auto` splices nothing of these loads and is not among them. Sheer: as it comes.",
    "Bulk is counted by the receiver, and every byte sent must have arrived in the end. The ends copy each byte, as most \
     programs do; with zero-copy ends the sender uses sendfile(2) and the receiver drops the bytes in the kernel, so \
     that nobody but a copying proxy touches them.",
    "Connections: connect, 64 bytes, 64 bytes back, FIN by the client; 64 at the same time, from 32 client addresses \
     with 50,000 ports each, so that none comes again while it rests in TIME_WAIT.",
    "Memory: growth of the process's resident memory over 5,000 connections that were used once and are silent; the \
     kernel's own memory (sockets, maps) is not in it.",
];

/// What was measured, part by part; a part that was not asked for is absent.
pub struct Report {
    pub machine: Machine,
    /// Share of the machine that others used before each round, 0 to 1.
    pub disturbance: Vec<f64>,
    pub packets: Option<packet::Costs>,
    pub proxies: Option<Results>,
    pub rules: Option<rules::Results>,
}

/// A part as everybody reads it.
struct Section {
    title: &'static str,
    tables: Vec<Table>,
    notes: Vec<String>,
}

pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Report {
    pub fn on_terminal(&self) {
        ui::heading("Results");
        ui::note(self.machine.sentence());
        for section in self.sections() {
            ui::heading(section.title);
            for Table { header, rows } in &section.tables {
                let header: Vec<_> = header.iter().map(String::as_str).collect();
                ui::table(&header, rows);
                println!();
            }
        }
        if let Some(warning) = self.warning() {
            println!("\n  {}", ui::yellow(warning));
        }
        for (name, failed) in self.proxies.iter().flat_map(Results::failures) {
            ui::check(false, format_args!("{name}: {failed} connections failed"));
        }
    }

    /// Writes `table.md`, `results.json` and the plots, and returns their paths.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::create_dir_all(dir)?;
        let mut files =
            vec![("table.md", self.markdown()), ("results.json", format!("{:#}\n", self.as_json()))];
        files.extend(self.proxies.as_ref().map(|proxies| ("ratios.svg", chart::ratios(proxies))));
        files.extend(self.rules.as_ref().map(|rules| ("rules.svg", chart::rules(rules))));
        let mut paths = Vec::new();
        for (name, content) in files {
            let path = dir.join(name);
            fs::write(&path, content)?;
            paths.push(path);
        }
        give_back(dir)?;
        Ok(paths)
    }

    fn sections(&self) -> Vec<Section> {
        let packets = self.packets.as_ref().map(|costs| Section {
            title: "What a packet costs in the kernel programs",
            tables: costs.tables().into(),
            notes: costs.notes(),
        });
        let proxies = self.proxies.as_ref().map(|results| Section {
            title: "Sheer beside plain routing and HAProxy",
            tables: vec![table(results), all_haproxies(results)],
            notes: METHOD.map(str::to_owned).into_iter().chain(failures(results)).collect(),
        });
        let rules = self.rules.as_ref().map(|results| Section {
            title: "10,000 rules, beside nftables and iptables",
            tables: rules::Shown(results).tables().into(),
            notes: rules::Shown(results).notes(),
        });
        [proxies, packets, rules].into_iter().flatten().collect()
    }

    /// Said when other programs had a hand in the figures.
    fn warning(&self) -> Option<String> {
        let worst = self.disturbance.iter().copied().fold(0.0, f64::max);
        (worst > NOISY).then(|| {
            format!(
                "Other programs used up to {:.0} % of the machine between the rounds: measure again on a quiet one.",
                worst * 100.0
            )
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}.\n", self.machine.sentence());
        if let Some(warning) = self.warning() {
            text += &format!("\n**{warning}**\n");
        }
        for Section { title, tables, notes } in self.sections() {
            text += &format!("\n## {title}\n\n");
            for Table { header, rows } in &tables {
                let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
                text += &line(header);
                text += &format!("|---|{}\n", "--:|".repeat(header.len() - 1));
                text.extend(rows.iter().map(|row| line(row)));
                text.push('\n');
            }
            text.extend(notes.iter().map(|sentence| format!("- {sentence}\n")));
        }
        text
    }

    fn as_json(&self) -> Value {
        json!({
            "machine": self.machine,
            "disturbance": self.disturbance,
            "packets": self.packets,
            "proxies": self.proxies.as_ref().map(proxies_as_json),
            "rules": self.rules.as_ref().map(rules::Results::as_json),
        })
    }
}

fn failures(results: &Results) -> impl Iterator<Item = String> {
    results.failures().into_iter().map(|(name, failed)| format!("{name}: {failed} connections failed."))
}

/// The target directory belongs to who called sudo, and so should what is in it.
fn give_back(path: &Path) -> io::Result<()> {
    let number = |name| env::var(name).ok()?.parse().ok();
    let (Some(user), Some(group)) = (number("SUDO_UID"), number("SUDO_GID")) else { return Ok(()) };
    chown(path, Some(user), Some(group))?;
    if path.is_dir() {
        fs::read_dir(path)?.try_for_each(|entry| give_back(&entry?.path()))?;
    }
    Ok(())
}

/// Sheer between what it is compared with. HAProxy's other set-ups are in [`all_haproxies`].
fn table(results: &Results) -> Table {
    let header = ["", "plain routing", "Sheer", "HAProxy at its best", "set-up", "of routing", "of HAProxy"];
    let row = |metric: Metric| {
        let best = results.best_haproxy(metric);
        let set_up = best.map_or("–", |(contestant, _)| contestant.name().trim_start_matches("HAProxy, "));
        vec![
            metric.title().to_owned(),
            figure(results.summary(Contestant::Routing, metric)),
            figure(results.summary(Contestant::Sheer, metric)),
            figure(best.map(|(_, summary)| summary)),
            set_up.to_owned(),
            ratio(results.against_routing(metric)),
            ratio(results.against_haproxy(metric)),
        ]
    };
    Table { header: header.map(str::to_owned).to_vec(), rows: Metric::ALL.map(row).to_vec() }
}

fn all_haproxies(results: &Results) -> Table {
    let set_ups: Vec<_> = Contestant::ALL.into_iter().filter(|contestant| contestant.is_haproxy()).collect();
    let names = set_ups.iter().map(|set_up| set_up.name().to_owned());
    let row = |metric: Metric| {
        let figures = set_ups.iter().map(|set_up| figure(results.summary(*set_up, metric)));
        std::iter::once(metric.title().to_owned()).chain(figures).collect()
    };
    Table {
        header: std::iter::once(String::new()).chain(names).collect(),
        rows: Metric::ALL.map(row).to_vec(),
    }
}

pub fn figure(summary: Option<Summary>) -> String {
    let Some(Summary { median, min, max }) = summary else { return "–".into() };
    let digits = if median < 10.0 { 2 } else { 1 };
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

pub fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"))
}

fn proxies_as_json(results: &Results) -> Value {
    let discipline = |metric: Metric| {
        let contestants = Contestant::ALL.map(|contestant| {
            let summary = results.summary(contestant, metric);
            json!({ "name": contestant.name(), "summary": summary, "samples": results.samples(contestant, metric) })
        });
        json!({
            "name": metric.title(),
            "more_is_better": metric.more_is_better(),
            "contestants": contestants,
            "sheer_of_routing": results.against_routing(metric),
            "sheer_of_haproxy": results.against_haproxy(metric),
        })
    };
    let loads: Vec<_> =
        results.outcomes.iter().map(|(name, metric, outcome)| json!([name, metric, outcome])).collect();
    json!({ "disciplines": Metric::ALL.map(discipline), "loads": loads })
}
