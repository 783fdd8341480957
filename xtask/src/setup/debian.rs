//! Debian's package `rust-src`, of exactly the compiler's version.
//!
//! A compiler from rustup is usually newer than the system's own release, so the suites that carry newer packages are
//! asked one after the other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use ebpf_build::Rustc;

use crate::{
    debian::{self, Apt},
    process,
};

/// In the order in which a release of Rust reaches them and stays there.
const SUITES: [&str; 4] = ["trixie-backports", "bookworm-backports", "sid", "forky"];

pub(super) fn fetch(tools: &Path, rustc: &Rustc) -> Result<()> {
    let mirror = debian::mirror()?;
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
}
