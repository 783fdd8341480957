//! An emulated machine: from power on to its last word.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{process, test::output::Tally, ui};

/// What scenarios need is small; the archive is in it twice while the kernel unpacks it.
const MEMORY_MIB: &str = "3072";
const CPUS: &str = "2";

/// Longer than any test is silent.
const SILENCE: Duration = Duration::from_secs(900);

/// How lines begin that the first process writes itself.
const MARK: &str = "@@ ";

/// Where a machine's words are kept.
pub struct Logs {
    /// The kernel's.
    pub console: PathBuf,
    /// The tests'.
    pub tests: PathBuf,
}

impl Logs {
    pub fn of(place: &Path, version: &str) -> Self {
        Self {
            console: place.join(format!("{version}.console.log")),
            tests: place.join(format!("{version}.tests.log")),
        }
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// All test programs have been run.
    Done,
    /// With the last that was heard.
    Early(String),
}

/// Boots and follows what the tests say. What the emulator ends with tells nothing: only the last line that the
/// machine wrote does.
///
/// # Errors
/// When the emulator does not start, or a log cannot be written.
pub fn run(kernel: &Path, initramfs: &Path, logs: &Logs, tally: &mut Tally) -> Result<Ending> {
    let mut log =
        File::create(&logs.tests).with_context(|| format!("cannot write {}", logs.tests.display()))?;
    let mut command = emulator(kernel, initramfs, &logs.console);
    let line = process::line(&command);
    let mut machine =
        Machine(command.spawn().with_context(|| format!("cannot start the emulator: `{line}`"))?);
    let lines = lines(machine.0.stdout.take().context("the emulator has no output")?);
    let mut follower = Follower { started: Instant::now(), ..Follower::default() };
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                writeln!(log, "{line}").context("cannot write the log")?;
                if follower.take(&line, tally) {
                    return Ok(Ending::Done);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                return Ok(Ending::Early(format!("silence after `{}`", follower.last)));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Ending::Early(format!("its last line was `{}`", follower.last)));
            }
        }
    }
}

/// Never KVM: a nested one may hang, and every machine can do without.
fn emulator(kernel: &Path, initramfs: &Path, console: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", CPUS, "-m", MEMORY_MIB])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 no_timer_check rdinit=/init"])
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Is off when this value goes.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            // A serial line ends lines as terminals do.
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Understands what the machine writes.
struct Follower {
    started: Instant,
    /// Failed tests before the program that runs now.
    failed_before: usize,
    /// The last line.
    last: String,
}

impl Default for Follower {
    fn default() -> Self {
        Self { started: Instant::now(), failed_before: 0, last: "nothing".to_owned() }
    }
}

impl Follower {
    /// Returns whether this was the last line of all.
    fn take(&mut self, line: &str, tally: &mut Tally) -> bool {
        let Some(ours) = line.strip_prefix(MARK) else {
            if tally.take(line) {
                println!("  {line}");
            }
            line.clone_into(&mut self.last);
            return false;
        };
        line.clone_into(&mut self.last);
        match ours.split_once(' ') {
            Some(("program", name)) => {
                self.failed_before = tally.failed.len();
                ui::note(format_args!("{name}, {}", ui::seconds(self.started.elapsed())));
            }
            Some(("ended", how)) => self.ended(how, tally),
            Some(("skip", skip)) => tally.take_skips(skip),
            Some(("done", _)) => return true,
            _ => {}
        }
        false
    }

    /// `NAME EXIT_CODE`
    fn ended(&self, how: &str, tally: &mut Tally) {
        let Some((name, code)) = how.split_once(' ') else { return };
        if code != "0" && tally.failed.len() == self.failed_before {
            tally.interrupted();
            tally.failed.push(format!("{name}: the test program ended with {code} and without a result"));
        }
    }
}

/// What the kernel complained of: its programs, its sockets or its devices were used in a way that broke it.
pub fn complaints(console: &Path) -> Vec<String> {
    let said = fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let bad = ["BUG:", "kernel BUG", "WARNING: CPU", "Oops:", "general protection fault", "Kernel panic"];
    let lines = said.lines().filter(|line| bad.iter().any(|word| line.contains(word)));
    lines.map(|line| format!("the kernel says: {}", line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_ends_a_run_and_a_program_that_dies_is_a_failure() {
        let mut tally = Tally::default();
        let mut follower = Follower::default();
        let said = "@@ program route\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n@@ ended route 0\n\
                    @@ program bulk\n@@ ended bulk 124\n@@ skip SKIPPED (1): vlan: this kernel lacks Vlan: no\n";
        assert!(!said.lines().any(|line| follower.take(line, &mut tally)));
        assert_eq!(tally.failed, ["bulk: the test program ended with 124 and without a result"]);
        assert_eq!(tally.skipped, ["vlan: this kernel lacks Vlan: no"]);
        assert!(follower.take("@@ done 2", &mut tally));
    }
}
