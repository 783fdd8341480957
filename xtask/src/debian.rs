//! Debian's packages, fetched from any of its suites beside the system: nothing is installed or configured.
//!
//! They come from the mirror that the machine is set up to use.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, anyhow, bail};

use crate::process;

/// Where Debian's own keys are, for a machine whose sources name none.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror of the machine's main Debian suite, out of its own apt configuration.
///
/// # Errors
/// Where there is no apt, or it knows no Debian.
pub fn mirror() -> Result<String> {
    for program in ["apt-get", "apt-cache", "dpkg"] {
        if !process::exists(program) {
            bail!("{program} is not there; this is no Debian");
        }
    }
    let format = "$(REPO_URI)|$(SUITE)|$(CODENAME)|$(LABEL)|$(COMPONENT)";
    let lists = process::capture(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    main_mirror(&lists).ok_or_else(|| anyhow!("apt knows no mirror of Debian's main suite"))
}

/// The label tells Debian's archive from other vendors' and from Debian's own security archive (`Debian-Security`).
/// Where apt has no lists yet the label is empty; then the component and the address have to do.
fn main_mirror(lists: &str) -> Option<String> {
    let rows: Vec<Vec<&str>> = lists.lines().map(|line| line.split('|').collect()).collect();
    let is_main = |row: &&Vec<&str>| row.get(4) == Some(&"main") && !row[0].contains("security");
    let labelled = rows.iter().filter(is_main).find(|row| row[3] == "Debian");
    labelled
        .or_else(|| rows.iter().filter(is_main).find(|row| row[0].contains("/debian")))
        .map(|row| row[0].to_owned())
}

/// apt with its own sources, lists and cache: nothing of the system's is read for the choice, or changed.
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Makes `dir` a place for the lists and downloads of this suite alone.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn prepare(dir: &Path, mirror: &str, suite: &str) -> Result<Self> {
        let sources = dir.join("sources.list");
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(&sources, format!("deb {signed}{mirror} {suite} main\n"))?;
        let (lists, cache) = (dir.join("lists"), dir.join("cache"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let options = vec![
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // What is installed here must not be a candidate.
            "Dir::State::status=/dev/null".to_owned(),
            // One index is enough, and the downloaded file must be ours, not the sandbox user's.
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ];
        Ok(Self { options })
    }

    /// One of apt's programs, for this suite.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own() {
        let lists = "https://example.net/apt/|cloud|cloud|Example|main\n\
                     http://mirror.example/debian-security/|stable-security|bookworm-security|Debian-Security|main\n\
                     http://mirror.example/debian/|oldstable|bookworm|Debian|main\n";
        assert_eq!(main_mirror(lists).as_deref(), Some("http://mirror.example/debian/"));
        let without_lists = "http://mirror.example/debian/||||main";
        assert_eq!(main_mirror(without_lists).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(main_mirror("https://example.net/apt/|cloud|cloud|Example|main"), None);
    }
}
