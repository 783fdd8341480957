//! `cargo xtask test --kernels`: the scenarios on other kernels than this machine's own.
//!
//! Debian's packaged kernels are booted in an emulator, each with one archive as its whole file system: the scenarios,
//! `sheer`, the programs that scenarios run, and the kernel's own modules for the network. Nothing of it needs
//! root, KVM or a network of the guest's. An emulated machine is many times slower than a real one, which is why it
//! tells the scenarios to wait longer.

mod archive;
mod image;
mod machine;
mod package;
mod report;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, str::FromStr};

use anyhow::{Context, Result, bail};

use self::{image::Image, machine::Ending, report::Row};
use super::{Program, require_root_to_be_possible, run_scenarios, scenario_programs};
use crate::{build, process, test::output::Tally, ui, workspace};

/// What has to be there before anything is built, and the packages that have it. WireGuard is set up by scenarios that
/// only these kernels may be able to run.
const NEEDS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("wg", "wireguard-tools"),
];

/// A kernel to test on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The one that this machine runs.
    Own,
    /// One of Debian's.
    Packaged(&'static Packaged),
}

/// A kernel that Debian packages.
#[derive(Debug, PartialEq, Eq)]
pub struct Packaged {
    /// Its version, as far as it stays the same within the suite.
    pub version: &'static str,
    /// The suite that has it.
    pub suite: &'static str,
}

/// In the order of their age. What sid has moves on; the report shows what was booted.
const PACKAGED: [Packaged; 4] = [
    Packaged { version: "5.10", suite: "bullseye" },
    Packaged { version: "6.1", suite: "bookworm" },
    Packaged { version: "6.12", suite: "trixie" },
    Packaged { version: "7.2", suite: "sid" },
];

/// For the command line: all that are packaged.
pub const ALL: &str = "5.10,6.1,6.12,7.2";

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Packaged(packaged) => packaged.version,
        }
    }
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "own" {
            return Ok(Self::Own);
        }
        let known = PACKAGED.iter().find(|kernel| kernel.version == text);
        known.map(Self::Packaged).ok_or_else(|| {
            let versions: Vec<_> = PACKAGED.iter().map(|kernel| kernel.version).collect();
            format!("there is {}, and `own` for the one that this machine runs", versions.join(", "))
        })
    }
}

/// Runs the scenarios whose names contain `filter` on each kernel and writes the table; `harness` goes to each test
/// program.
///
/// # Errors
/// When something cannot be fetched, built or started. Failed tests are the exit code.
pub fn run(kernels: &[Kernel], filter: Option<&str>, harness: &[String]) -> Result<ExitCode> {
    if kernels.contains(&Kernel::Own) {
        require_root_to_be_possible()?;
    }
    require_programs()?;
    let place = workspace::target().join("kernels");
    std::fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let sheer = build::release()?;
    ui::heading("Scenarios");
    let step = ui::Step::begin_shown("build", "cargo test --no-run --package sheer-tests --profile emulated");
    let programs = scenario_programs("emulated")?;
    step.done(format_args!("{} test programs", programs.len()));

    let job = Job { sheer, programs, filter, harness, place };
    let mut rows = Vec::new();
    for kernel in kernels {
        let row = match kernel {
            Kernel::Own => job.on_own(),
            Kernel::Packaged(packaged) => job.on_packaged(packaged),
        };
        // One that cannot be had is no reason to keep the others' results back.
        rows.push(row.unwrap_or_else(|error| Row::not_run(kernel.name(), &error)));
        report::write(&rows, &job.place)?;
    }
    report::show(&rows);
    Ok(if rows.iter().all(Row::held) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same for every kernel.
struct Job<'a> {
    sheer: PathBuf,
    programs: Vec<Program>,
    filter: Option<&'a str>,
    harness: &'a [String],
    place: PathBuf,
}

impl Job<'_> {
    fn on_own(&self) -> Result<Row> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        ui::heading(format_args!("Linux {}, this machine's own", release.trim()));
        let mut tally = Tally::default();
        run_scenarios(&self.sheer, &self.programs, self.filter, self.harness, &mut tally)?;
        Ok(Row::new("own", release.trim(), tally))
    }

    fn on_packaged(&self, kernel: &Packaged) -> Result<Row> {
        let unpacked = package::provide(kernel, &self.place)?;
        ui::heading(format_args!("Linux {}, emulated", unpacked.release));
        let step = ui::Step::begin("image", "programs, libraries, modules");
        let image = Image::make(&unpacked, &self.sheer, &self.programs, self.filter, self.harness)?;
        let initramfs = self.place.join(format!("{}.cpio", kernel.version));
        image.write(&initramfs)?;
        step.done(format_args!("{:.0} MB", image.size() as f64 / 1e6));

        let logs = machine::Logs::of(&self.place, kernel.version);
        let mut tally = Tally::default();
        let mut ending = machine::run(&unpacked.image, &initramfs, &logs, &mut tally)?;
        if matches!(ending, Ending::Early(_)) && tally.results == 0 {
            // Now and then the emulator fails a kernel in the first second of its boot.
            ending = machine::run(&unpacked.image, &initramfs, &logs, &mut tally)?;
        }
        // The file is as large as all test programs together.
        let _ = std::fs::remove_file(&initramfs);
        if let Ending::Early(why) = ending {
            tally
                .failed
                .push(format!("the machine ended early: {why}; see {}", workspace::shown(&logs.console)));
        }
        tally.failed.extend(machine::complaints(&logs.console));
        Ok(Row::new(kernel.version, &unpacked.release, tally))
    }
}

/// Installs what is missing, as root, where there is apt.
fn require_programs() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the packaged kernels are for x86_64, and so are the test programs that have to run on them");
    }
    let missing: BTreeSet<&str> =
        NEEDS.iter().filter(|(program, _)| !found(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.into_iter().collect();
    let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
    let cure = format!("{} {}", install.join(" "), packages.join(" "));
    let step = ui::Step::begin_shown("emulator", &cure);
    let mut words = install.iter().chain(&packages);
    let mut command = crate::privilege::command(words.next().copied().unwrap_or_default());
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
    if let Err(error) = process::run(&mut command) {
        step.failed("could not be installed");
        return Err(error)
            .context(format!("other kernels need an emulator and kmod. Cure: `{cure}`, as root"));
    }
    step.done(packages.join(", "));
    Ok(())
}

/// Administrators' programs are not in everybody's PATH.
fn found(program: &str) -> bool {
    process::exists(program)
        || ["/usr/sbin", "/sbin"].iter().any(|dir| PathBuf::from(dir).join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_those_that_are_packaged() {
        let parsed: Vec<Kernel> = ALL.split(',').map(|version| version.parse().unwrap()).collect();
        assert_eq!(parsed, PACKAGED.iter().map(Kernel::Packaged).collect::<Vec<_>>());
        assert!("4.19".parse::<Kernel>().unwrap_err().contains("5.10"));
    }
}
