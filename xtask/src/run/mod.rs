//! `cargo xtask run`: builds Sheer and shows it at work, in a lab or on this host.

mod demonstration;
mod residue;
mod show;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use self::demonstration::Demonstration;
use crate::{
    build,
    interrupt::Interrupt,
    lab::{self, Exclusive, Lab},
    privilege, process,
    service::{Service, Stream},
    ui,
};

/// The instance that runs in the lab, by its name in bpffs and /run.
const INSTANCE: &str = "lab";

const LAB_NEEDS: &str =
    "the lab needs root: it makes three network namespaces and loads eBPF programs in one of them";
const HOST_NEEDS: &str =
    "sheer needs root to load eBPF programs and to add policy routes; `sheer cleanup` removes them";

/// Builds and demonstrates in the lab. With `once` it ends after the checks, otherwise at Ctrl-C.
///
/// # Errors
/// When something cannot be built, made or started. A check that does not hold is the exit code.
pub fn in_lab(once: bool) -> Result<ExitCode> {
    println!("{} a transparent TCP proxy, shown on a lab of three network namespaces\n", ui::bold("Sheer"));
    let sheer = build::release()?;
    let mut arguments = vec![OsStr::new("__run-lab"), OsStr::new("--sheer"), sheer.as_os_str()];
    arguments.extend(once.then_some(OsStr::new("--once")));
    privilege::acquire(LAB_NEEDS, &arguments)?;
    in_lab_as_root(&sheer, once)
}

/// The part of [`in_lab`] that needs root.
///
/// # Errors
/// As [`in_lab`].
pub fn in_lab_as_root(sheer: &Path, once: bool) -> Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let _alone = Exclusive::take(lab::NAME)?;
    let mut held = demonstrate(sheer, once, &interrupt)?;

    // The lab and the proxy are gone by here: whatever stands is left over.
    let left = residue::outside(INSTANCE, lab::NAME);
    held &= left.is_empty();
    ui::check(left.is_empty(), "nothing is left: no namespace, no pinned map or program, no socket");
    for thing in left {
        ui::note(format_args!("  {thing}"));
    }
    println!();
    if held {
        println!("{}", ui::green("Every check held."));
        Ok(ExitCode::SUCCESS)
    } else {
        println!("{}", ui::red("Not every check held: see ✗ above."));
        Ok(ExitCode::FAILURE)
    }
}

fn demonstrate(sheer: &Path, once: bool, interrupt: &Interrupt) -> Result<bool> {
    remove_stale_instance(sheer)?;
    let step = ui::Step::begin("lab", "making namespaces");
    let lab = Lab::up(lab::NAME)?;
    step.done(format_args!("{} ── {} ── {}", lab.client.name(), lab.proxy.name(), lab.server.name()));
    interrupt.check()?;

    let before = residue::inside(&lab.proxy)?;
    let mut show = Demonstration::start(sheer, INSTANCE, &lab, interrupt)?;
    let mut held = show.exchange(interrupt)?;
    if !once {
        show.stay(interrupt);
    }
    ui::heading("After the end");
    held &= show.end()?;

    let changes = residue::changes(&before, &residue::inside(&lab.proxy)?);
    held &= changes.is_empty();
    ui::check(changes.is_empty(), "sheer left the router as it was: rules, routes, tc programs, settings");
    for change in changes {
        ui::note(format_args!("  {change}"));
    }
    lab.down()?;
    Ok(held)
}

/// A run that was killed leaves its namespaces, with what runs in them, and pins. The instance itself knows best how to
/// remove the pins, inside the namespace that they are of.
fn remove_stale_instance(sheer: &Path) -> Result<()> {
    if residue::outside(INSTANCE, lab::NAME).is_empty() {
        return Ok(());
    }
    let step = ui::Step::begin("lab", "removing what an earlier run left");
    let stale = Lab::named(lab::NAME);
    stale.end_processes()?;
    let mut cleanup = if stale.proxy.exists() { stale.proxy.command(sheer) } else { Command::new(sheer) };
    process::run(cleanup.args(["cleanup", "--instance", INSTANCE]))
        .context("what an earlier run left could not be removed")?;
    stale.down()?;
    step.done("removed what an earlier run left");
    Ok(())
}

/// Builds, then becomes `sheer run ARGUMENTS` on this host.
///
/// # Errors
/// When it cannot be built or started.
pub fn on_host(arguments: &[OsString]) -> Result<ExitCode> {
    let sheer = build::release()?;
    let mut again = vec![OsString::from("__run-host"), OsString::from("--sheer"), sheer.clone().into()];
    again.push("--".into());
    again.extend(arguments.iter().cloned());
    privilege::acquire(HOST_NEEDS, &again)?;
    on_host_as_root(&sheer, arguments)
}

/// The part of [`on_host`] that needs root.
///
/// # Errors
/// When it cannot be started.
pub fn on_host_as_root(sheer: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let mut command = Command::new(sheer);
    command.arg("run").args(arguments);
    let error = privilege::replace_process(&mut command);
    Err(error).with_context(|| format!("cannot start `{}`", process::line(&command)))
}

/// Waits for the line `ready` of the program, which both ends and Sheer print.
fn wait_ready(service: &Service, stream: Stream) -> Result<()> {
    let patience = std::time::Duration::from_secs(15);
    service
        .wait_for("`ready`", patience, |from, line| (from == stream && line.trim() == "ready").then_some(()))
}
