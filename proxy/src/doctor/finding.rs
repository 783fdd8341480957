//! What an examination says.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

use super::{Fix, Fixed};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Looked at, and nothing to do.
    Fine,
    /// Sheer works, but not all of what it may be expected to do, or not as well.
    Warning,
    /// Sheer cannot work like this.
    CannotWork,
}

impl Severity {
    fn tag(self) -> &'static str {
        match self {
            Self::Fine => "[fine]",
            Self::Warning => "[warning]",
            Self::CannotWork => "[cannot work]",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for scripts; the table in docs/doctor.md lists them all.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: an interface, a sysctl, a rule …
    pub object: String,
    /// What was found.
    pub what: String,
    /// What that breaks, or why it is fine; may be empty where it is fine.
    pub why: String,
    /// What to do, a command line where there is one; empty where it is fine.
    pub cure: String,
    /// What `--fix` would do about it.
    #[serde(rename = "fixable", serialize_with = "is_some")]
    pub fix: Option<Fix>,
}

fn is_some<S: Serializer>(fix: &Option<Fix>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bool(fix.is_some())
}

type Text = Cow<'static, str>;

impl Finding {
    pub(super) fn fine(
        id: &'static str,
        object: impl Into<Text>,
        what: impl Into<Text>,
        why: impl Into<Text>,
    ) -> Self {
        Self::new(Severity::Fine, id, object.into(), what.into(), why.into(), Text::default())
    }

    pub(super) fn warning(
        id: &'static str,
        object: impl Into<Text>,
        what: impl Into<Text>,
        why: impl Into<Text>,
        cure: impl Into<Text>,
    ) -> Self {
        Self::new(Severity::Warning, id, object.into(), what.into(), why.into(), cure.into())
    }

    pub(super) fn cannot(
        id: &'static str,
        object: impl Into<Text>,
        what: impl Into<Text>,
        why: impl Into<Text>,
        cure: impl Into<Text>,
    ) -> Self {
        Self::new(Severity::CannotWork, id, object.into(), what.into(), why.into(), cure.into())
    }

    pub(super) fn fixed_by(self, fix: Fix) -> Self {
        Self { fix: Some(fix), ..self }
    }

    fn new(severity: Severity, id: &'static str, object: Text, what: Text, why: Text, cure: Text) -> Self {
        Self {
            id,
            severity,
            object: object.into_owned(),
            what: what.into_owned(),
            why: why.into_owned(),
            cure: cure.into_owned(),
            fix: None,
        }
    }

    fn said(&self) -> String {
        if self.why.is_empty() { self.what.clone() } else { format!("{}; {}", self.what, self.why) }
    }
}

impl fmt::Display for Finding {
    /// One line, as for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.said())?;
        if self.cure.is_empty() { Ok(()) } else { write!(f, ". Cure: {}", self.cure) }
    }
}

/// What all findings come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing to do.
    Fine,
    /// Works, with reservations.
    Warnings,
    /// Cannot work.
    CannotWork,
}

impl Verdict {
    /// The exit code of `sheer doctor`: 0, 1, 2.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Warnings => 1,
            Self::CannotWork => 2,
        }
    }
}

/// What keeps Sheer from working on this host, each with its cure.
#[derive(Clone, Debug, thiserror::Error)]
#[error("Sheer cannot work on this host:{}", .0.iter().map(|finding| format!("\n  {finding}")).collect::<String>())]
pub struct Obstacles(Vec<Finding>);

/// Everything an examination found, and what was fixed before it.
///
/// Its Display is for people: one finding a line, its cure on the next, a summary at the end.
#[derive(Clone, Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
    fixed: Vec<Fixed>,
}

impl Report {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        Self { findings, fixed: Vec::new() }
    }

    pub(super) fn after(self, fixed: Vec<Fixed>) -> Self {
        Self { fixed, ..self }
    }

    /// All findings, subject by subject, the fine ones too.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The findings of that severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }

    /// What was fixed before these findings were made.
    #[must_use]
    pub fn fixed(&self) -> &[Fixed] {
        &self.fixed
    }

    /// What they come to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::CannotWork) => Verdict::CannotWork,
            Some(Severity::Warning) => Verdict::Warnings,
            Some(Severity::Fine) | None => Verdict::Fine,
        }
    }

    /// What stops a start; none where nothing does.
    ///
    /// # Errors
    /// The findings that say that Sheer cannot work.
    pub fn admit(&self) -> Result<(), Obstacles> {
        let found: Vec<Finding> = self.of(Severity::CannotWork).cloned().collect();
        if found.is_empty() { Ok(()) } else { Err(Obstacles(found)) }
    }

    fn summary(&self) -> String {
        let warnings = match self.of(Severity::Warning).count() {
            0 => "no warnings".to_owned(),
            1 => "1 warning".to_owned(),
            n => format!("{n} warnings"),
        };
        match self.of(Severity::CannotWork).count() {
            0 => format!("{warnings}, nothing that stops Sheer"),
            1 => format!("Sheer cannot work before the one thing marked [cannot work] is cured; {warnings}"),
            n => {
                format!("Sheer cannot work before the {n} things marked [cannot work] are cured; {warnings}")
            }
        }
    }

    /// Whether `--fix` could do something.
    #[must_use]
    pub fn fixable(&self) -> usize {
        self.findings.iter().filter(|finding| finding.fix.is_some()).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fixed in &self.fixed {
            writeln!(f, "{fixed}")?;
        }
        let tags = self.findings.iter().map(|x| x.severity.tag().len()).max().unwrap_or(0);
        // One long name must not push all the others to the right.
        let objects = self.findings.iter().map(|x| x.object.chars().count()).max().unwrap_or(0).min(28);
        for finding in &self.findings {
            let tag = finding.severity.tag();
            writeln!(f, "{tag:tags$} {:objects$}  {}", finding.object, finding.said())?;
            if !finding.cure.is_empty() {
                writeln!(f, "{:tags$} {:objects$}  cure: {}", "", "", finding.cure)?;
            }
        }
        write!(f, "{}", self.summary())?;
        match self.fixable() {
            0 => writeln!(f),
            1 => writeln!(f, "; `sheer doctor --fix` can cure 1 of them"),
            n => writeln!(f, "; `sheer doctor --fix` can cure {n} of them"),
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            verdict: Verdict,
            fixed: &'a [Fixed],
            findings: &'a [Finding],
        }
        Shown { verdict: self.verdict(), fixed: &self.fixed, findings: &self.findings }.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(severities: &[Severity]) -> Report {
        let make = |s: &Severity| match s {
            Severity::Fine => Finding::fine("a", "lo", "up", ""),
            Severity::Warning => {
                Finding::warning("b", "eth0", "is down", "nothing comes", "ip link set eth0 up")
            }
            Severity::CannotWork => {
                Finding::cannot("c", "lo", "down", "nothing arrives", "ip link set lo up")
                    .fixed_by(Fix::LoopbackUp)
            }
        };
        Report::new(severities.iter().map(make).collect())
    }

    #[test]
    fn the_worst_finding_is_the_verdict() {
        use Severity::{CannotWork, Fine, Warning};
        assert_eq!(report(&[]).verdict().exit_code(), 0);
        assert_eq!(report(&[Fine]).verdict().exit_code(), 0);
        assert_eq!(report(&[Fine, Warning, Fine]).verdict().exit_code(), 1);
        assert_eq!(report(&[Warning, CannotWork, Fine]).verdict().exit_code(), 2);
    }

    #[test]
    fn people_read_aligned_lines_and_a_summary() {
        let text = report(&[Severity::Fine, Severity::Warning]).to_string();
        let expected = "[fine]    lo    up\n\
                        [warning] eth0  is down; nothing comes\n          \
                        \x20     cure: ip link set eth0 up\n\
                        1 warning, nothing that stops Sheer\n";
        assert_eq!(text, expected);
        let text = report(&[Severity::CannotWork]).to_string();
        assert!(text.ends_with("no warnings; `sheer doctor --fix` can cure 1 of them\n"), "{text}");
    }

    #[test]
    fn a_finding_is_one_line_in_the_log() {
        let text = report(&[Severity::Warning]).findings()[0].to_string();
        assert_eq!(text, "eth0: is down; nothing comes. Cure: ip link set eth0 up");
    }

    #[test]
    fn a_start_is_refused_with_the_cures() {
        assert!(report(&[Severity::Warning]).admit().is_ok());
        let refusal = report(&[Severity::CannotWork, Severity::Fine]).admit().unwrap_err().to_string();
        assert_eq!(
            refusal,
            "Sheer cannot work on this host:\n  lo: down; nothing arrives. Cure: ip link set lo up"
        );
    }

    #[test]
    fn scripts_read_json() {
        let json = serde_json::to_value(report(&[Severity::CannotWork])).unwrap();
        assert_eq!(json["verdict"], "cannot-work");
        assert_eq!(json["findings"][0]["id"], "c");
        assert_eq!(json["findings"][0]["severity"], "cannot-work");
        assert_eq!(json["findings"][0]["fixable"], true);
    }
}
