//! Debian's package `rust-src`, fetched and unpacked beside the system without installing or configuring anything.
//!
//! A compiler from rustup is usually newer than the system's own release, so the suites that carry newer packages are
//! asked one after the other, from the mirror that the machine is set up to use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use ebpf_build::Rustc;

use crate::process;

/// In the order in which a release of Rust reaches them and stays there.
const SUITES: [&str; 4] = ["trixie-backports", "bookworm-backports", "sid", "forky"];

/// Where Debian's own keys are, for a machine whose sources name none.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) fn fetch(tools: &Path, rustc: &Rustc) -> Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg"] {
        if !process::exists(program) {
            bail!("{program} is not there; this is no Debian");
        }
    }
    let mirror = mirror()?;
    fs::create_dir_all(tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let scratch = Scratch::new(tools)?;
    let mut reasons = Vec::new();
    for suite in SUITES {
        match from_suite(&scratch.dir, &mirror, suite, rustc, tools) {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("{}", reasons.join("; "))
}

fn from_suite(scratch: &Path, mirror: &str, suite: &str, rustc: &Rustc, tools: &Path) -> Result<()> {
    let apt = Apt::prepare(scratch, mirror, suite)?;
    process::run(apt.command("apt-get").arg("update"))?;
    let offered = process::capture(apt.command("apt-cache").args(["madison", "rust-src"]))?;
    let version = matching_version(&offered, &rustc.release)
        .ok_or_else(|| anyhow!("has no rust-src {}", rustc.release))?
        .to_owned();
    process::run(
        apt.command("apt-get").args(["download", &format!("rust-src={version}")]).current_dir(scratch),
    )?;
    let package = fs::read_dir(scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| anyhow!("apt-get download left no package"))?;
    unpack(&package, scratch, tools)
}

/// Unpacks beside its final place and moves it there, so that an interrupted unpacking is never taken for a whole one.
fn unpack(package: &Path, scratch: &Path, tools: &Path) -> Result<()> {
    let unpacked = scratch.join("unpacked");
    process::run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
    let place = tools.join("rust-src");
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove the old {}", place.display()))?;
    }
    fs::rename(&unpacked, &place).with_context(|| format!("cannot move the source to {}", place.display()))
}

/// `apt-cache madison` prints `package | version | source` lines; Debian's version is the release, `+dfsg` or not, and
/// a revision.
fn matching_version<'a>(madison: &'a str, release: &str) -> Option<&'a str> {
    let versions = madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let mut fitting = versions.filter(|version| {
        version
            .strip_prefix(release)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
    });
    fitting.next()
}

/// The mirror of the machine's main Debian suite, out of its own apt configuration.
fn mirror() -> Result<String> {
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
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn prepare(scratch: &Path, mirror: &str, suite: &str) -> Result<Self> {
        let sources = scratch.join("sources.list");
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(&sources, format!("deb {signed}{mirror} {suite} main\n"))?;
        let (lists, cache) = (scratch.join("lists"), scratch.join("cache"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let options = vec![
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // One index is enough, and the downloaded file must be ours, not the sandbox user's.
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ];
        Ok(Self { options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// A directory that is removed with the value.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new(tools: &Path) -> Result<Self> {
        let dir = tools.join("rust-src.part");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // apt runs in it by its full name.
        Ok(Self { dir: dir.canonicalize()? })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_must_be_the_compilers() {
        let madison = " rust-src | 1.95.0+dfsg1-1~bpo13+1 | http://mirror suite/main amd64 Packages\n";
        assert_eq!(matching_version(madison, "1.95.0"), Some("1.95.0+dfsg1-1~bpo13+1"));
        assert_eq!(matching_version(" rust-src | 1.95.01-1 | x\n", "1.95.0"), None);
        assert_eq!(matching_version(" rust-src | 1.85.0+dfsg3-1 | x\n", "1.95.0"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }

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
