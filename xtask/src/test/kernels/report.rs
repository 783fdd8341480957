//! What came out: a table of kernels, for the terminal and in `results.md`.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Error, Result};

use crate::{test::output::Tally, ui};

const HEADER: [&str; 5] = ["kernel", "release", "passed", "failed", "skipped"];

/// One kernel's results.
pub struct Row {
    kernel: String,
    release: String,
    tally: Tally,
}

impl Row {
    pub fn new(kernel: &str, release: &str, tally: Tally) -> Self {
        Self { kernel: kernel.to_owned(), release: release.to_owned(), tally }
    }

    /// A kernel on which nothing was run, for this reason.
    pub fn not_run(kernel: &str, why: &Error) -> Self {
        let mut tally = Tally::default();
        tally.failed.push(format!("nothing was run: {why:#}"));
        Self::new(kernel, "", tally)
    }

    /// Whether something passed and nothing failed.
    pub fn held(&self) -> bool {
        self.tally.failed.is_empty() && self.tally.passed > 0
    }

    fn cells(&self) -> Vec<String> {
        let counts = [self.tally.passed, self.tally.failed.len(), self.tally.skipped.len()];
        let words = [self.kernel.clone(), self.release.clone()];
        words.into_iter().chain(counts.map(|count| count.to_string())).collect()
    }
}

/// Shows what failed or was skipped, and the table.
pub fn show(rows: &[Row]) {
    ui::heading("Kernels");
    for row in rows {
        for failed in &row.tally.failed {
            println!("  {} {}: {failed}", ui::red("✗"), row.kernel);
        }
        for skipped in &row.tally.skipped {
            println!("  {} {}: {skipped}", ui::yellow("skipped"), row.kernel);
        }
    }
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    ui::table(&HEADER, &cells);
}

/// Writes the same to `results.md` in `place`.
///
/// # Errors
/// When there is no room.
pub fn write(rows: &[Row], place: &Path) -> Result<()> {
    let file = place.join("results.md");
    fs::write(&file, markdown(rows)).with_context(|| format!("cannot write {}", file.display()))
}

fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&HEADER.map(str::to_owned));
    text.push_str("|---|---|---|---|---|\n");
    text.extend(rows.iter().map(|row| line(&row.cells())));
    for row in rows {
        for (what, names) in [("failed", &row.tally.failed), ("skipped", &row.tally.skipped)] {
            if names.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{} {what}:\n", row.kernel);
            text.extend(names.iter().map(|name| format!("- {name}\n")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_or_was_skipped_is_named() {
        let mut tally = Tally::default();
        tally.passed = 3;
        tally.failed.push("reset".to_owned());
        tally.skipped.push("vlan: this kernel lacks Vlan".to_owned());
        let text = markdown(&[Row::new("6.1", "6.1.0-50-cloud-amd64", tally)]);
        assert!(text.contains("| 6.1 | 6.1.0-50-cloud-amd64 | 3 | 1 | 1 |"), "{text}");
        assert!(text.contains("6.1 failed:\n\n- reset\n"), "{text}");
        assert!(text.contains("6.1 skipped:\n\n- vlan: this kernel lacks Vlan\n"), "{text}");
    }
}
