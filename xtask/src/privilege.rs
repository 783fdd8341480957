//! Root, asked for once and only by what needs it.

use std::{env, ffi::OsStr, io, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

use crate::process;

/// Returns at once for root. For anybody else this program starts over under sudo, with `arguments`; it returns only
/// when that cannot be done. What was built before stays the user's own.
///
/// # Errors
/// Without root and without sudo.
pub fn acquire<S: AsRef<OsStr>>(needs: &str, arguments: &[S]) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if !process::exists("sudo") {
        bail!("{needs}, and sudo is not installed; run the same command as root");
    }
    eprintln!("sudo: {needs}");
    let program = env::current_exe().context("cannot tell where this program is")?;
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program).args(arguments);
    Err(replace_process(&mut sudo)).context("cannot start sudo")
}

/// `program` as root's command.
pub fn command(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--", program]);
    sudo
}

/// Turns this process into `command`; returns only the reason why it could not.
pub fn replace_process(command: &mut Command) -> io::Error {
    command.exec()
}
