//! What `sheer doctor` says.

use std::process::Command;

use serde_json::Value;

use crate::lab::Lab;
use crate::sheer::binary;

/// Findings about the machine that the tests run on, and of other tests that run beside.
const OF_THE_MACHINE: [&str; 5] = ["open-files", "bpf-jit", "btf", "leftover", "other-instance"];

/// Where users look findings up.
const EXPLAINED: &str = include_str!("../../docs/doctor.md");

/// What `sheer doctor` says in the middle of a lab.
#[derive(Debug)]
pub struct Examined {
    /// The exit code.
    pub code: i32,
    /// The JSON.
    pub report: Value,
}

impl Examined {
    /// Runs a command that says `doctor --json`.
    ///
    /// # Panics
    /// When it says no JSON, or something that docs/doctor.md does not have.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let report = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {text}{}", String::from_utf8_lossy(&output.stderr)));
        let examined = Self { code: output.status.code().unwrap(), report };
        for finding in examined.findings() {
            let id = finding["id"].as_str().unwrap();
            assert!(EXPLAINED.contains(&format!("| `{id}` |")), "{id} is not in docs/doctor.md");
        }
        examined
    }

    /// All findings.
    ///
    /// # Panics
    /// When there is no list of them.
    #[must_use]
    pub fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().unwrap()
    }

    /// Those with this id.
    #[must_use]
    pub fn with(&self, id: &str) -> Vec<&Value> {
        self.findings().iter().filter(|finding| finding["id"] == id).collect()
    }

    /// The only finding with this id.
    ///
    /// # Panics
    /// When there are none or several.
    pub fn finding(&self, id: &str) -> &Value {
        let found = self.with(id);
        assert_eq!(found.len(), 1, "{id} in {:#}", self.report);
        found[0]
    }

    /// The ids of all that is not fine, without those of the machine.
    ///
    /// # Panics
    /// When one has none.
    #[must_use]
    pub fn complaints(&self) -> Vec<&str> {
        let bad = self.findings().iter().filter(|finding| finding["severity"] != "fine");
        bad.map(|finding| finding["id"].as_str().unwrap()).filter(|id| !OF_THE_MACHINE.contains(id)).collect()
    }

    /// Only this complaint, of this severity, in the exit code too; gives its text and its cure.
    ///
    /// # Panics
    /// When it is otherwise.
    pub fn only(&self, id: &str, severity: &str) -> (String, String) {
        assert_eq!(self.complaints(), [id], "{:#}", self.report);
        let finding = self.finding(id);
        assert_eq!(finding["severity"], severity);
        assert_eq!(self.code, if severity == "warning" { 1 } else { 2 }, "{:#}", self.report);
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        let cure = text("cure");
        assert!(!cure.is_empty(), "{finding}");
        (format!("{}: {}; {}", text("object"), text("what"), text("why")), cure)
    }

    /// What was fixed under this id.
    ///
    /// # Panics
    /// When nothing was.
    pub fn fixed(&self, id: &str) -> &str {
        let fixed = self.report["fixed"].as_array().unwrap().iter().find(|fixed| fixed["id"] == id);
        let fixed = fixed.unwrap_or_else(|| panic!("{id} was not fixed: {:#}", self.report));
        assert_eq!(fixed["done"], true, "{fixed}");
        fixed["what"].as_str().unwrap()
    }
}

/// `sheer doctor` in the middle of a lab.
#[must_use]
pub fn doctor(lab: &Lab, arguments: &[&str]) -> Examined {
    let mut command = lab.middle().command(&binary().to_string_lossy());
    command.args(["doctor", "--json"]).args(arguments);
    Examined::of(command)
}
