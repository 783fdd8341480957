//! What must not be left behind: the state of the router's namespace before and after, and what outlives namespaces.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use crate::{lab::Namespace, process};

/// Lines of the kernel's state, under the command that printed them.
pub type Snapshot = BTreeMap<&'static str, Vec<String>>;

const COMMANDS: [&str; 7] = [
    "ip -4 rule show",
    "ip -6 rule show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "tc qdisc show",
    "ss -Hltn",
    "grep -rs . /proc/sys/net/core /proc/sys/net/ipv4 /proc/sys/net/ipv6",
];

/// # Errors
/// When a command is missing or fails.
pub fn inside(namespace: &Namespace) -> Result<Snapshot> {
    let mut snapshot = Snapshot::new();
    for line in COMMANDS {
        let mut words = line.split(' ');
        let mut command = namespace.command(words.next().unwrap_or_default());
        process::shield(command.args(words));
        // grep fails on settings that can only be written, yet prints the others.
        let printed = if line.starts_with("grep") {
            String::from_utf8_lossy(&command.output()?.stdout).into_owned()
        } else {
            process::capture(&mut command)?
        };
        snapshot.insert(line, printed.lines().map(|line| line.trim_end().to_owned()).collect());
    }
    Ok(snapshot)
}

/// Each line that came or went.
pub fn changes(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut changes = Vec::new();
    for (command, old) in before {
        let new = after.get(command).map(Vec::as_slice).unwrap_or_default();
        let came = new.iter().filter(|line| !old.contains(line)).map(|line| ('+', line));
        let went = old.iter().filter(|line| !new.contains(line)).map(|line| ('-', line));
        changes.extend(came.chain(went).map(|(sign, line)| format!("{command}: {sign}{line}")));
    }
    changes
}

/// Things of the instance and the lab that exist now, outside of any namespace.
pub fn outside(instance: &str, lab: &str) -> Vec<String> {
    let namespaces = ["client", "proxy", "server"].map(|role| format!("/run/netns/{lab}-{role}"));
    let pins = format!("/sys/fs/bpf/sheer/{instance}");
    let mut left: Vec<_> =
        namespaces.into_iter().chain([pins]).filter(|path| Path::new(path).exists()).collect();
    let files = std::fs::read_dir("/run/sheer").into_iter().flatten().flatten();
    let own = files.filter(|file| file.file_name().to_string_lossy().starts_with(&format!("{instance}.")));
    left.extend(own.map(|file| file.path().display().to_string()));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_where_it_is() {
        let snapshot =
            |lines: &[&str]| Snapshot::from([("ip rule", lines.iter().map(|&l| l.to_owned()).collect())]);
        let (before, after) = (snapshot(&["0: local", "9: mine"]), snapshot(&["0: local", "8: yours"]));
        assert_eq!(changes(&before, &after), ["ip rule: +8: yours", "ip rule: -9: mine"]);
        assert!(changes(&before, &before).is_empty());
    }
}
