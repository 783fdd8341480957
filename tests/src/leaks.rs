//! What an instance left in the kernel, which has to be nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::namespace::Namespace;
use crate::wait::{stretched, wait_until};

/// How long the kernel may take to free what nobody holds any more (RCU, workqueues).
const FREEING: Duration = Duration::from_secs(10);

/// The protocol number on every rule and route of Sheer.
const PROTOCOL: u64 = 83;

/// What a running instance has in the kernel, by number.
#[derive(Debug, Clone, Default)]
pub struct Footprint {
    /// Programs, by id.
    pub programs: BTreeSet<u64>,
    /// Maps, by id.
    pub maps: BTreeSet<u64>,
    /// Links, by id.
    pub links: BTreeSet<u64>,
}

impl Footprint {
    /// Everything reachable from the instance's pins: maps and programs pinned, maps of those programs, and all
    /// links to them.
    #[must_use]
    pub fn of(instance: &str) -> Self {
        let mut footprint = Self::default();
        for pin in pins(&pin_directory(instance)) {
            let path = pin.to_string_lossy().into_owned();
            for (kind, ids) in [("prog", &mut footprint.programs), ("map", &mut footprint.maps)] {
                if let Some(id) = bpftool(&[kind, "show", "pinned", &path])["id"].as_u64() {
                    ids.insert(id);
                }
            }
            let link = bpftool(&["link", "show", "pinned", &path]);
            if let Some(program) = link["prog_id"].as_u64() {
                footprint.programs.insert(program);
            }
        }
        footprint.follow();
        footprint
    }

    /// Everything of another one too.
    pub fn add(&mut self, other: &Footprint) {
        self.programs.extend(&other.programs);
        self.maps.extend(&other.maps);
        self.links.extend(&other.links);
    }

    fn follow(&mut self) {
        for program in list("prog") {
            if program["id"].as_u64().is_some_and(|id| self.programs.contains(&id)) {
                self.maps.extend(ids(&program["map_ids"]));
            }
        }
        for link in list("link") {
            if link["prog_id"].as_u64().is_some_and(|id| self.programs.contains(&id)) {
                self.links.extend(link["id"].as_u64());
            }
        }
    }

    /// Those that the kernel still has.
    fn still_there(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, ids) in [("prog", &self.programs), ("map", &self.maps), ("link", &self.links)] {
            for object in list(kind) {
                if object["id"].as_u64().is_some_and(|id| ids.contains(&id)) {
                    found.push(format!("bpf {kind} {}: {object}", object["id"]));
                }
            }
        }
        found
    }
}

/// The directory in which an instance keeps its pins.
#[must_use]
pub fn pin_directory(instance: &str) -> PathBuf {
    Path::new("/sys/fs/bpf/sheer").join(instance)
}

/// The id of a pinned link.
pub(crate) fn pinned_link(instance: &str, name: &str) -> Option<u64> {
    let path = pin_directory(instance).join("links").join(name);
    bpftool(&["link", "show", "pinned", &path.to_string_lossy()])["id"].as_u64()
}

/// What bpftool shows of a pinned map.
pub(crate) fn dump_map(instance: &str, name: &str) -> String {
    let path = pin_directory(instance).join("maps").join(name);
    let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&path).output();
    let output = output.expect("cannot run bpftool");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bpftool map dump pinned {}: {complaint}", path.display());
    String::from_utf8(output.stdout).unwrap()
}

/// Fails the test if anything of the instance is left in the kernel, in bpffs or in /run.
///
/// # Panics
/// When something stays.
pub(crate) fn assert_nothing_left(instance: &str, namespace: &Namespace, footprint: &Footprint) {
    assert_clean(instance, || {
        let mut left = named(instance, footprint);
        left.extend(rules_and_routes(namespace));
        left.extend(filters(namespace));
        left.extend(attached(namespace));
        left
    });
}

/// The same where others have rules and filters in the namespace too.
///
/// # Panics
/// When something stays.
pub(crate) fn assert_nothing_named_left(instance: &str, footprint: &Footprint) {
    assert_clean(instance, || named(instance, footprint));
}

/// The kernel frees in the background: only what stays is a leak.
fn assert_clean(instance: &str, look: impl Fn() -> Vec<String>) {
    let start = Instant::now();
    let left = wait_until("the kernel has had its time", FREEING * 2, || {
        let left = look();
        (left.is_empty() || start.elapsed() > stretched(FREEING)).then_some(left)
    });
    assert!(left.is_empty(), "instance {instance} left behind:\n  {}", left.join("\n  "));
}

/// What bears the instance's name, or a number that it had.
fn named(instance: &str, footprint: &Footprint) -> Vec<String> {
    let mut left = footprint.still_there();
    left.extend(pins(&pin_directory(instance)).iter().map(|pin| format!("pin {}", pin.display())));
    let directories = [pin_directory(instance), pin_directory(&format!("{instance}+new"))];
    left.extend(
        directories.iter().filter(|path| path.exists()).map(|path| format!("directory {}", path.display())),
    );
    left.extend(run_files(instance));
    left
}

fn run_files(instance: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/sheer") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.path());
    names
        .filter(|path| path.file_stem().is_some_and(|stem| stem == instance))
        .map(|path| path.display().to_string())
        .collect()
}

/// Nobody else makes rules in the lab, so that any besides the kernel's own three is a leftover.
fn rules_and_routes(namespace: &Namespace) -> Vec<String> {
    let mut left = Vec::new();
    for family in ["-4", "-6"] {
        let rules = namespace.sh(&format!("ip {family} rule show"));
        let ours = rules.lines().filter(|line| line.contains("proto") || line.contains("fwmark"));
        left.extend(ours.map(|line| format!("ip {family} rule {line}")));
        let routes = namespace.sh(&format!("ip {family} route show table all proto {PROTOCOL}"));
        left.extend(routes.lines().map(|line| format!("ip {family} route {line}")));
    }
    left
}

fn filters(namespace: &Namespace) -> Vec<String> {
    let shown = namespace.sh("tc qdisc show");
    let qdiscs = shown.lines().filter(|line| line.contains("clsact") || line.contains("ingress"));
    qdiscs.map(|line| format!("tc {line}")).collect()
}

/// Programs on devices of the namespace, pinned or not.
fn attached(namespace: &Namespace) -> Vec<String> {
    let output =
        namespace.command("bpftool").args(["-j", "net", "show"]).output().expect("cannot run bpftool");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let programs = shown[0]["tc"].as_array().into_iter().flatten();
    programs.map(|program| format!("attached {program}")).collect()
}

fn pins(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(pins(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn list(kind: &str) -> Vec<Value> {
    match bpftool(&[kind, "show"]) {
        Value::Array(objects) => objects,
        _ => Vec::new(),
    }
}

fn ids(list: &Value) -> impl Iterator<Item = u64> + '_ {
    list.as_array().into_iter().flatten().filter_map(Value::as_u64)
}

/// What `bpftool -j` answers; null if it is not applicable.
fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().expect("cannot run bpftool");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}
