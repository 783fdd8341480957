//! Other instances of Sheer: those that run beside, and what dead ones have left.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::programs::ProgramInfo;
use rustix::fs::{major, minor};

use super::{Finding, Options};
use crate::{dataplane::object::program, instance::InstanceName};

const PINS: &str = "/sys/fs/bpf/sheer";
const RUNTIME: &str = "/run/sheer";

/// An instance that has left or keeps something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) running: bool,
    /// Pins in bpffs, or a state file.
    pub(super) leaves: bool,
    /// Interfaces, among those examined, that its programs stand on.
    pub(super) interfaces: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) instances: Vec<Instance>,
}

impl Facts {
    /// `ours`: ids of Sheer's programs on the interfaces.
    pub(super) fn gather(ours: &[(u32, String)]) -> Self {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let instance = |name: String| Instance {
            running: is_locked(&name, &locks),
            leaves: pins(&name).exists()
                || pins(&format!("{name}+new")).exists()
                || run_file(&name, "state").exists(),
            interfaces: interfaces(&name, ours),
            name,
        };
        Self { instances: names().into_iter().map(instance).collect() }
    }
}

fn pins(name: &str) -> std::path::PathBuf {
    Path::new(PINS).join(name)
}

fn run_file(name: &str, suffix: &str) -> std::path::PathBuf {
    Path::new(RUNTIME).join(format!("{name}.{suffix}"))
}

fn names() -> BTreeSet<String> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten();
    let file_name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    let pinned = entries(PINS).filter_map(file_name);
    let pinned = pinned.map(|name| name.strip_suffix("+new").map(str::to_owned).unwrap_or(name));
    let running = entries(RUNTIME).filter_map(file_name);
    let running = running.filter_map(|name| {
        name.strip_suffix(".lock").or_else(|| name.strip_suffix(".state")).map(str::to_owned)
    });
    pinned.chain(running).collect()
}

/// Looks the lock up instead of trying it: for a moment, a try would keep the instance itself from starting.
fn is_locked(name: &str, locks: &str) -> bool {
    let path = run_file(name, "lock");
    let Ok(file) = fs::metadata(&path) else { return false };
    let process = fs::read_to_string(&path).unwrap_or_default();
    let device = format!("{:02x}:{:02x}", major(file.dev()), minor(file.dev()));
    locks.lines().any(|line| holds(line, &device, file.ino(), process.trim()))
}

/// `1: FLOCK  ADVISORY  WRITE 4711 00:1a:8899 0 EOF`: the process, then device and inode (proc_locks(5)). The device that
/// stat(2) tells is another one on some file systems; there the process, which the file names, has to do.
fn holds(line: &str, device: &str, inode: u64, process: &str) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, "FLOCK", _, _, pid, file, ..] = words[..] else { return false };
    let Some((on, number)) = file.rsplit_once(':') else { return false };
    number.parse() == Ok(inode) && (on == device || pid == process)
}

/// Its programs are found again by their numbers: names are the same for all instances.
fn interfaces(name: &str, ours: &[(u32, String)]) -> Vec<String> {
    if ours.is_empty() {
        return Vec::new();
    }
    let directories = [pins(name), pins(&format!("{name}+new"))];
    let paths =
        directories.iter().flat_map(|d| [program::ETHER, program::IP].map(|p| d.join("progs").join(p)));
    let ids: BTreeSet<u32> = paths.filter_map(|path| Some(ProgramInfo::from_pin(path).ok()?.id())).collect();
    ours.iter().filter(|(id, _)| ids.contains(id)).map(|(_, interface)| interface.clone()).collect()
}

pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Finding> {
    let starting = options.instance.as_ref().map(InstanceName::as_str);
    let others = facts.instances.iter().filter(|instance| Some(instance.name.as_str()) != starting);
    others.filter_map(one).collect()
}

fn one(instance: &Instance) -> Option<Finding> {
    let Instance { name, running, leaves, interfaces } = instance;
    let object = format!("instance {name}");
    let here = interfaces.join(" and ");
    if *running {
        let why = if here.is_empty() {
            "not on these interfaces of this network namespace".to_owned()
        } else {
            format!("on {here} too: the one started last is asked first")
        };
        return Some(Finding::fine("other-instance", object, "is running", why));
    }
    if !leaves {
        return None;
    }
    let what = if here.is_empty() {
        "is dead, and has left files, or programs on other interfaces or in another network namespace"
            .to_owned()
    } else {
        format!("is dead, and its programs still stand on {here}")
    };
    Some(Finding::warning(
        "leftover",
        object,
        what,
        "they treat new connections as its when_down says: closed drops them",
        format!(
            "sheer cleanup --instance {name}, in the network namespace in which it ran; or start it again"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn instance(running: bool, leaves: bool, interfaces: &[&str]) -> Instance {
        let interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        Instance { name: "edge".into(), running, leaves, interfaces }
    }

    #[test]
    fn what_a_dead_instance_left_is_named_with_its_cure() {
        let finding = one(&instance(false, true, &["eth0", "eth1"])).unwrap();
        assert_eq!((finding.id, finding.severity), ("leftover", Severity::Warning));
        assert!(finding.what.ends_with("eth0 and eth1"), "{finding}");
        assert!(finding.cure.starts_with("sheer cleanup --instance edge"), "{finding}");
        assert!(one(&instance(false, false, &[])).is_none());
    }

    #[test]
    fn a_running_one_is_only_mentioned() {
        let finding = one(&instance(true, true, &["eth0"])).unwrap();
        assert_eq!((finding.id, finding.severity), ("other-instance", Severity::Fine));
    }

    #[test]
    fn the_instance_that_is_about_to_start_takes_over_what_it_left() {
        let facts = Facts { instances: vec![instance(false, true, &["eth0"])] };
        let own = Options { instance: Some("edge".parse().unwrap()), ..Options::default() };
        assert!(judge(&facts, &own).is_empty());
        assert_eq!(judge(&facts, &Options::default()).len(), 1);
    }

    #[test]
    fn a_lock_is_found_by_device_and_inode_or_process_and_inode() {
        let line = "12: FLOCK  ADVISORY  WRITE 4711 00:1a:8899 0 EOF";
        assert!(holds(line, "00:1a", 8899, ""));
        assert!(holds(line, "00:77", 8899, "4711"));
        assert!(!holds(line, "00:77", 8899, "1"));
        assert!(!holds(line, "00:1a", 8898, "4711"));
        assert!(!holds("12: POSIX  ADVISORY  WRITE 4711 00:1a:8899 0 EOF", "00:1a", 8899, ""));
        assert!(!holds("12: -> FLOCK  ADVISORY  WRITE 4711 00:1a:8899 0 EOF", "00:1a", 8899, ""));
        assert!(!holds("", "00:1a", 8899, ""));
    }
}
