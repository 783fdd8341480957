//! Running other programs: quiet while they work, their last words when they fail.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// How much of a failed program's output is shown; the cause stands at the end of it.
const LAST_LINES: usize = 25;

/// Runs `command` and shows nothing of it unless it fails.
///
/// # Errors
/// When it does not start or does not succeed: what was run and the end of what it said.
pub fn run(command: &mut Command) -> Result<()> {
    checked(command).map(drop)
}

/// Runs `command` and returns what it wrote to stdout.
///
/// # Errors
/// As [`run`].
pub fn capture(command: &mut Command) -> Result<String> {
    let output = checked(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with the terminal as its own, for programs whose output is meant for the user.
///
/// # Errors
/// When it does not start or does not succeed.
pub fn run_shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status}); see above", line(command));
    }
    Ok(())
}

/// Keeps the terminal's Ctrl-C away from `command`: it reaches this program alone, which ends its children in order.
pub fn shield(command: &mut Command) {
    command.process_group(0);
}

/// Whether `program` can be found in `PATH`.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$;|&*".contains(c)) {
            format!("'{}'", word.replace('\'', r"'\''"))
        } else {
            word.into_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn checked(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`; is it installed?", line(command)))?;
    if !output.status.success() {
        let said = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
        bail!("`{}` failed ({}){}", line(command), output.status, last_words(&said));
    }
    Ok(output)
}

fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(LAST_LINES)..];
    shown.iter().map(|line| format!("\n    {line}")).collect()
}
