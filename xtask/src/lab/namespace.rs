use std::{
    ffi::OsStr,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::ip;
use crate::process;

/// How long what runs in a namespace may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace with a name.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(super) fn new(name: String) -> Self {
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full name, or its last word: `client` for `sheer-client`.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.rsplit('-').next() == Some(name)
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// A command that runs inside. It keeps the host's mounts: `ip netns exec` would mount a new /sys, without
    /// bpffs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip ARGUMENTS` on this namespace.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        process::run(ip().args(["-n", &self.name]).args(arguments))
    }

    /// Sets `key=value` pairs, keys as paths below /proc/sys.
    ///
    /// # Errors
    /// When the kernel has no such setting or refuses the value.
    pub fn set_sysctls(&self, settings: &[&str]) -> Result<()> {
        const SCRIPT: &str = r#"for s; do echo "${s#*=}" > "/proc/sys/${s%%=*}" || exit 1; done"#;
        let mut shell = self.command("sh");
        process::shield(&mut shell);
        process::run(shell.args(["-c", SCRIPT, "sh"]).args(settings))
    }

    pub(super) fn create(&self) -> Result<()> {
        process::run(ip().args(["netns", "add", &self.name]))?;
        // Addresses are of use at once: nobody else is on these links who could have the same.
        self.set_sysctls(&["net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0"])?;
        self.ip(&["link", "set", "lo", "up"])
    }

    /// Ends the processes inside and deletes the namespace; `false` when there is none.
    pub(super) fn remove(&self) -> Result<bool> {
        if !self.exists() {
            return Ok(false);
        }
        self.end_processes()?;
        process::run(ip().args(["netns", "delete", &self.name]))?;
        Ok(true)
    }

    /// A namespace lives on, with its links and programs, as long as a process is inside.
    pub(super) fn end_processes(&self) -> Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            for pid in self.processes()? {
                // It may have ended since.
                let _ = kill_process(pid, signal);
            }
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                if self.processes()?.is_empty() {
                    return Ok(());
                }
                // There is nothing to wait on: they are not our children.
                thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("processes {:?} in the namespace {} do not end", self.processes()?, self.name)
    }

    fn processes(&self) -> Result<Vec<Pid>> {
        let listed = process::capture(ip().args(["netns", "pids", &self.name]))
            .with_context(|| format!("cannot list what runs in the namespace {}", self.name))?;
        Ok(listed.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect())
    }
}
