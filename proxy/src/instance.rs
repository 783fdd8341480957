//! One running Sheer on a host: its name, its lock, what it leaves for those who come after.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const RUNTIME_DIR: &str = "/run/sheer";

/// The name of an instance: what its directory in bpffs and its control socket are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName(String);

impl InstanceName {
    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let fits = (1..=32).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!("`{name}` is no instance name: 1 to 32 letters, digits, `-` and `_`"))
        }
    }
}

/// Failures around an instance's files in `/run/sheer`.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another process has the instance.
    #[error(
        "instance `{name}` is already running{}; stop it, or give this one another name with --instance",
        .pid.map(|p| format!(" as process {p}")).unwrap_or_default()
    )]
    Running {
        /// The instance.
        name: InstanceName,
        /// The process, where it says so.
        pid: Option<u32>,
    },
    /// A file could not be used.
    #[error("{doing} {}: {source}; run as root, and check that /run can be written to", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Where an instance keeps its files outside bpffs.
#[derive(Clone, Debug)]
pub struct Places {
    name: InstanceName,
}

impl Places {
    /// The places of this instance; nothing is touched.
    #[must_use]
    pub fn of(name: &InstanceName) -> Self {
        Self { name: name.clone() }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        Path::new(RUNTIME_DIR).join(format!("{}.{suffix}", self.name))
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// Takes the instance for this process.
    ///
    /// # Errors
    /// [`InstanceError::Running`] while another process has it.
    pub fn lock(&self) -> Result<InstanceLock, InstanceError> {
        let path = self.file("lock");
        loop {
            fs::create_dir_all(RUNTIME_DIR).map_err(failed("creating", Path::new(RUNTIME_DIR)))?;
            let mut options = File::options();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = opened.map_err(failed("opening", &path))?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(InstanceError::Running { name: self.name.clone(), pid: pid.trim().parse().ok() });
            }
            // Its last owner may have removed the file between our opening and locking it.
            let locked = file.metadata().map_err(failed("reading", &path))?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == locked) {
                let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                written.map_err(failed("writing", &path))?;
                return Ok(InstanceLock { _file: file, path });
            }
        }
    }

    /// What the last process of this instance left written, if it did.
    #[must_use]
    pub fn read_state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.file("state")).ok()?).ok()
    }

    /// What the other instances have left written, running or dead.
    #[must_use]
    pub fn states_of_others(&self) -> Vec<State> {
        let own = self.file("state");
        let entries = fs::read_dir(RUNTIME_DIR).into_iter().flatten().flatten().map(|entry| entry.path());
        let others = entries.filter(|path| path.extension().is_some_and(|e| e == "state") && *path != own);
        others.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
    }

    /// Writes what a successor must know.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_state(&self, state: &State) -> Result<(), InstanceError> {
        let path = self.file("state");
        let aside = self.file("state+new");
        let text = serde_json::to_vec(state).map_err(|e| failed("writing", &path)(e.into()))?;
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path)).map_err(failed("writing", &path))
    }

    /// Removes socket and state; the lock removes its own file.
    pub fn remove(&self) {
        for path in [self.file("sock"), self.file("state"), self.file("state+new")] {
            let _ = fs::remove_file(path);
        }
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstanceError + 'a {
    move |source| InstanceError::File { doing, path: path.to_owned(), source }
}

/// Held by the process that has the instance; the kernel releases it when the process dies.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
    path: PathBuf,
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        // While it is still locked; the directory goes when no other instance has files in it.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(RUNTIME_DIR);
    }
}

/// What a process leaves for its successor and for `sheer cleanup`, because nothing in the kernel tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Packet and socket mark.
    pub mark: u32,
    /// Routing table.
    pub table: u32,
    /// Preference of the rules.
    pub priority: u32,
    /// Interfaces with a filter under clsact, which has no pin.
    pub clsact: Vec<ClsactState>,
}

/// A clsact filter of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClsactState {
    /// Where it is.
    pub interface: String,
    /// Whether it looks at what leaves by the interface, not at what comes in.
    #[serde(default)]
    pub egress: bool,
    /// Its handle, in tc's words the number M:N.
    pub handle: u32,
    /// Whether the qdisc was made for it, and goes with it.
    pub made_qdisc: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_what_bpffs_and_file_systems_take() {
        for good in ["default", "a", "edge-1", "A_b"] {
            assert_eq!(good.parse::<InstanceName>().unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "../x", "a/b", "a+new", "ü", "123456789012345678901234567890123"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
    }
}
