//! What the terminal shows: steps with their times, checks, tables. Colour only where somebody looks at it.

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Width of the label column of steps.
const LABEL: usize = 11;

static TERMINAL: LazyLock<bool> = LazyLock::new(|| io::stdout().is_terminal());
static COLOUR: LazyLock<bool> =
    LazyLock::new(|| *TERMINAL && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));

pub fn bold(text: impl Display) -> String {
    painted("1", text)
}

pub fn dim(text: impl Display) -> String {
    painted("2", text)
}

pub fn green(text: impl Display) -> String {
    painted("32", text)
}

pub fn red(text: impl Display) -> String {
    painted("31", text)
}

pub fn yellow(text: impl Display) -> String {
    painted("33", text)
}

fn painted(code: &str, text: impl Display) -> String {
    if *COLOUR { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// One thing that takes time. Shown while it runs, then as one line with its result.
#[must_use]
pub struct Step {
    label: &'static str,
    started: Instant,
}

impl Step {
    /// `doing` is shown until the step ends; on something other than a terminal not at all.
    pub fn begin(label: &'static str, doing: impl Display) -> Self {
        if *TERMINAL {
            print!("  {} {label:<LABEL$} {}", dim("·"), dim(doing));
            flush();
        }
        Self { label, started: Instant::now() }
    }

    /// As [`Step::begin`], for a program that writes to the terminal itself: the line stays above its output.
    pub fn begin_shown(label: &'static str, doing: impl Display) -> Self {
        println!("  {} {label:<LABEL$} {}", dim("·"), dim(doing));
        Self { label, started: Instant::now() }
    }

    pub fn done(self, result: impl Display) {
        self.end(&green("✓"), result);
    }

    pub fn failed(self, result: impl Display) {
        self.end(&red("✗"), result);
    }

    /// Not a failure of the whole: the next way is tried.
    pub fn skipped(self, result: impl Display) {
        self.end(&dim("-"), result);
    }

    fn end(self, sign: &str, result: impl Display) {
        let erase = if *TERMINAL { "\r\x1b[K" } else { "" };
        let took = dim(seconds(self.started.elapsed()));
        println!("{erase}  {sign} {:<LABEL$} {result}  {took}", self.label);
        flush();
    }
}

pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..120 => format!("{:.1} s", duration.as_secs_f64()),
        total => format!("{} min {:02} s", total / 60, total % 60),
    }
}

/// A line of a list of claims: held or not.
pub fn check(held: bool, claim: impl Display) {
    let sign = if held { green("✓") } else { red("✗") };
    println!("  {sign} {claim}");
}

pub fn note(text: impl Display) {
    println!("  {}", dim(text));
}

pub fn heading(text: impl Display) {
    println!("\n{}", bold(text));
}

/// Text that another program wrote, set off from our own.
pub fn quote(text: &str) {
    for line in text.trim_end().lines() {
        println!("    {line}");
    }
}

/// A command for the user to copy.
pub fn command(line: impl Display) {
    println!("    {} {line}", dim("$"));
}

/// Rows under a header, columns as wide as their widest cell, the first ones flush left.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    println!("    {}", dim(line(&mut header.iter().copied())));
    for row in rows {
        println!("    {}", line(&mut row.iter().map(String::as_str)));
    }
}

fn flush() {
    // A terminal that is gone is no reason to stop.
    let _ = io::stdout().flush();
}
