//! Reads what Rust's test harness and the scenarios report.

/// How a scenario that this kernel cannot run begins its line in the skip log: `SKIPPED (1): NAME: REASON`.
const SKIP_MARK: &str = "SKIPPED ";

/// What all test programs reported until now.
#[derive(Default, Debug)]
pub struct Tally {
    pub passed: usize,
    pub failed: Vec<String>,
    /// Name and reason.
    pub skipped: Vec<String>,
    /// How many harnesses have reported.
    pub results: usize,
    section: Section,
}

#[derive(Default, Debug, PartialEq, Eq, Clone, Copy)]
enum Section {
    #[default]
    Running,
    /// The outputs of failed tests, then the indented list of their names: each begins with the same line.
    FailureOutputs,
    FailureNames,
}

impl Tally {
    /// Takes the next line of a harness and tells whether the user should see it.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.end(counts);
            return false;
        }
        if line == "failures:" {
            self.section = match self.section {
                Section::Running => Section::FailureOutputs,
                _ => Section::FailureNames,
            };
            return false;
        }
        match self.section {
            Section::Running => self.running(line),
            Section::FailureOutputs => true,
            Section::FailureNames => {
                self.failed.extend(line.strip_prefix("    ").map(str::to_owned));
                false
            }
        }
    }

    /// Takes what scenarios wrote to the skip log; their tests count as passed in the harness.
    pub fn take_skips(&mut self, log: &str) {
        for line in log.lines() {
            let numbered = line.strip_prefix(SKIP_MARK).and_then(|rest| rest.split_once("): "));
            self.skipped.push(numbered.map_or(line, |(_, what)| what).to_owned());
            self.passed = self.passed.saturating_sub(1);
        }
    }

    /// A harness died: what comes next is another one's.
    pub fn interrupted(&mut self) {
        self.section = Section::Running;
    }

    fn running(&mut self, line: &str) -> bool {
        if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
            && let Some(reason) = result.strip_prefix("ignored")
        {
            let reason = reason.trim_start_matches([',', ' ']);
            self.skipped.push(format!("{name}: {}", if reason.is_empty() { "ignored" } else { reason }));
        }
        !(line.is_empty() || line.starts_with("running "))
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; …`
    fn end(&mut self, counts: &str) {
        self.section = Section::Running;
        self.results += 1;
        let passed = counts.split(". ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        self.passed += passed.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_failures_and_skips_are_told_apart() {
        let mut tally = Tally::default();
        let printed = "\nrunning 4 tests\ntest vlan ... ok\ntest reset ... FAILED\ntest slow ... ignored, takes an hour\n\
                       test source ... ok\n\nfailures:\n\n---- reset stdout ----\nassertion failed\n    left: 1\n\n\n\
                       failures:\n    reset\n\ntest result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured\n";
        let shown: Vec<_> = printed.lines().filter(|line| tally.take(line)).collect();
        tally.take_skips("SKIPPED (1): vlan: this kernel lacks Vlan: Not supported\n");
        assert_eq!((tally.passed, tally.results), (1, 1));
        assert_eq!(tally.failed, ["reset"]);
        assert_eq!(tally.skipped, ["slow: takes an hour", "vlan: this kernel lacks Vlan: Not supported"]);
        assert!(shown.contains(&"    left: 1") && !shown.contains(&"failures:"), "{shown:?}");
    }
}
