//! What Sheer and the kernel themselves say while the connections are open, and the lines for the user to try.

use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{Lab, SERVER_V4, SERVER_V6},
    process, ui, workspace,
};

/// So much of bpftool's dump is enough to see its form.
const DUMP_LINES: usize = 28;

/// Runs a `sheer` subcommand, shows it, and returns what it printed.
pub fn sheer(sheer: &Path, subcommand: &str, instance: &str) -> Option<String> {
    let mut command = Command::new(sheer);
    command.args([subcommand, "--instance", instance]);
    ui::heading(format_args!("sheer {subcommand} --instance {instance}"));
    let printed = captured(&mut command)?;
    ui::quote(&printed);
    Some(printed)
}

/// Waits until `sheer flows` lists so many connections: those that last a fifth of a second stand there.
pub fn wait_for_flows(sheer: &Path, instance: &str, connections: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let listed = || {
        let output = Command::new(sheer).args(["flows", "--instance", instance]).output();
        // A line for each, below the heading.
        output.map_or(0, |o| String::from_utf8_lossy(&o.stdout).lines().count().saturating_sub(1))
    };
    while listed() < connections && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
}

/// The flows map as the kernel shows it, by field name.
pub fn flows_map(instance: &str) {
    let path = format!("/sys/fs/bpf/sheer/{instance}/maps/flows");
    ui::heading(format_args!("bpftool map dump pinned {path}"));
    if !process::exists("bpftool") {
        ui::note("bpftool is not installed; the package of that name has it");
        return;
    }
    let Some(dump) = captured(Command::new("bpftool").args(["map", "dump", "pinned", &path])) else { return };
    let lines: Vec<_> = dump.lines().collect();
    let shown = &lines[..lines.len().min(DUMP_LINES)];
    ui::quote(&shown.join("\n"));
    if lines.len() > shown.len() {
        ui::note(format_args!("  … {} more lines", lines.len() - shown.len()));
    }
}

/// The lines that a newcomer can copy while the lab is up.
pub fn suggestions(sheer: &Path, instance: &str, lab: &Lab) {
    let sheer = workspace::shown(sheer);
    let client = format!("ip netns exec {}", lab.client.name());
    ui::heading("Try it, as root in another terminal");
    ui::command(format_args!("{client} curl http://{SERVER_V4}/"));
    ui::command(format_args!("{client} curl 'http://[{SERVER_V6}]/'"));
    ui::command(format_args!("{sheer} flows --instance {instance}"));
    ui::command(format_args!("{sheer} status --instance {instance}"));
    ui::command(format_args!("bpftool map dump pinned /sys/fs/bpf/sheer/{instance}/maps/flows"));
}

fn captured(command: &mut Command) -> Option<String> {
    process::shield(command);
    process::capture(command).inspect_err(|error| ui::check(false, format_args!("{error:#}"))).ok()
}
