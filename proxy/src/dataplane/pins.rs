//! What stands in bpffs: `maps/`, `progs/` and `links/` of one instance.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::maps::Map;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, statfs};

use super::{Dataplane, DataplaneError, Hook, PolicyMaps, object::map, object::program};
use crate::instance::InstanceName;

const BPFFS: &str = "/sys/fs/bpf";
/// BPF_FS_MAGIC of include/uapi/linux/magic.h.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

/// The directory of an instance in bpffs, and the one beside it where a start prepares its pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    stage: PathBuf,
}

impl Pins {
    /// The places of this instance; nothing is touched.
    #[must_use]
    pub fn of(instance: &InstanceName) -> Self {
        let base = Path::new(BPFFS).join("sheer");
        // bpffs keeps names with dots for itself, so the stage is told apart by a sign that no instance has.
        Self { root: base.join(instance.as_str()), stage: base.join(format!("{instance}+new")) }
    }

    /// Whether an instance has left or published anything.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.root.exists() || self.stage.exists()
    }

    /// A published map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where published links are.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Mounts bpffs where it is not mounted, and makes an empty stage for the pins of a start.
    ///
    /// # Errors
    /// When bpffs cannot be mounted or written to.
    pub fn prepare(&self) -> Result<Stage, DataplaneError> {
        mount_bpffs()?;
        if !self.root.exists() && self.stage.exists() {
            // A start was killed before it published: its links are a predecessor's like any others.
            fs::rename(&self.stage, &self.root).map_err(failed("publishing", &self.root))?;
        }
        remove_tree(&self.stage)?;
        let stage = Stage { pins: self.clone(), published: false };
        for dir in ["maps", "progs", "links"] {
            let path = self.stage.join(dir);
            fs::create_dir_all(&path).map_err(failed("creating", &path))?;
        }
        Ok(stage)
    }

    /// Has the published names of the tables mean those of a policy that has come into force.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn show_tables(&self, tables: &PolicyMaps) -> Result<(), DataplaneError> {
        for (name, map) in tables.named() {
            let aside = self.map(&format!("{name}+new"));
            // Of a reload that was killed.
            let _ = fs::remove_file(&aside);
            pin_map(map, &aside)?;
            fs::rename(&aside, self.map(name)).map_err(failed("renaming", &aside))?;
        }
        Ok(())
    }

    /// Pins the programs that have been loaded since the start.
    ///
    /// # Errors
    /// When the kernel refuses a pin.
    pub fn pin_programs(&self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        pin_programs(dataplane, &self.root)
    }

    /// Removes everything; the kernel detaches the links with their last pin, if nobody holds them open.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn remove(&self) -> Result<(), DataplaneError> {
        remove_tree(&self.stage)?;
        remove_tree(&self.root)?;
        remove_parent(&self.root);
        Ok(())
    }
}

/// The pins of a start that is under way; they go when it fails.
#[derive(Debug)]
pub struct Stage {
    pins: Pins,
    published: bool,
}

impl Stage {
    /// The link that a process before may have left at a hook.
    #[must_use]
    pub fn left_link(&self, hook: &Hook<'_>) -> PathBuf {
        self.pins.links().join(hook.pin_name())
    }

    /// Where this start pins links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.pins.stage.join("links")
    }

    /// Where this start pins the link of the socket lookup.
    #[must_use]
    pub fn lookup_link(&self) -> PathBuf {
        self.links().join("lookup")
    }

    /// Pins the maps, and the programs that have been loaded.
    ///
    /// # Errors
    /// When the kernel refuses a pin.
    pub fn pin(&self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        for &name in map::PINNED {
            let map = dataplane.ebpf.map(name).ok_or(DataplaneError::Missing { what: "map", name })?;
            pin_map(map, &self.pins.stage.join("maps").join(name))?;
        }
        pin_programs(dataplane, &self.pins.stage)
    }

    /// Pins the tables of the policy in force.
    ///
    /// # Errors
    /// As above.
    pub fn pin_tables(&self, tables: &PolicyMaps) -> Result<(), DataplaneError> {
        for (name, map) in tables.named() {
            pin_map(map, &self.pins.stage.join("maps").join(name))?;
        }
        Ok(())
    }

    /// Puts the stage in the place of what was published before, in one exchange where the kernel can (5.17).
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn publish(mut self) -> Result<Published, DataplaneError> {
        let Pins { root, stage } = &self.pins;
        let exchanged = renameat_with(CWD, stage, CWD, root, RenameFlags::EXCHANGE).is_ok();
        if !exchanged {
            remove_tree(root)?;
            fs::rename(stage, root).map_err(failed("publishing", root))?;
        }
        self.published = true;
        let published = Published { pins: self.pins.clone(), armed: true };
        // What was published before now stands in the stage.
        remove_tree(stage)?;
        Ok(published)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(e) = remove_tree(&self.pins.stage) {
            log::error!("{e}");
        }
        remove_parent(&self.pins.root);
    }
}

/// Pins that go when their instance does.
#[derive(Debug)]
pub struct Published {
    pins: Pins,
    armed: bool,
}

impl Published {
    /// Removes them.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn remove(mut self) -> Result<(), DataplaneError> {
        self.armed = false;
        self.pins.remove()
    }

    /// Lets them stand: for a successor, or for `sheer cleanup`.
    pub fn leave(mut self) {
        self.armed = false;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if self.armed
            && let Err(e) = self.pins.remove()
        {
            log::error!("{e}");
        }
    }
}

fn pin_programs(dataplane: &mut Dataplane, root: &Path) -> Result<(), DataplaneError> {
    for name in program::ATTACHED {
        let found = dataplane.ebpf.program_mut(name);
        let program = found.ok_or(DataplaneError::Missing { what: "program", name })?;
        let path = root.join("progs").join(name);
        if program.fd().is_ok() && !path.exists() {
            program.pin(&path).map_err(|e| failed("pinning", &path)(io::Error::other(e)))?;
        }
    }
    Ok(())
}

fn pin_map(map: &Map, path: &Path) -> Result<(), DataplaneError> {
    map.pin(path).map_err(|e| failed("pinning", path)(io::Error::other(e)))
}

/// The common parent goes with the last instance; another one's being there is no error.
fn remove_parent(root: &Path) {
    if let Some(parent) = root.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// Links first, so that packets stop coming before the maps lose their names.
fn remove_tree(root: &Path) -> Result<(), DataplaneError> {
    for dir in ["links", "progs", "maps"] {
        let dir = root.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed("reading", &dir)(e)),
        };
        for entry in entries.flatten() {
            fs::remove_file(entry.path()).map_err(failed("removing", &entry.path()))?;
        }
        fs::remove_dir(&dir).map_err(failed("removing", &dir))?;
    }
    match fs::remove_dir(root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", root)(e)),
        _ => Ok(()),
    }
}

pub(crate) fn mount_bpffs() -> Result<(), DataplaneError> {
    let path = Path::new(BPFFS);
    let mounted = || statfs(path).is_ok_and(|s| s.f_type as u64 == BPFFS_MAGIC);
    if mounted() {
        return Ok(());
    }
    // Two instances that start at once must not mount twice: the pins of one would be hidden. The lock is on the
    // directory below the mount.
    let below = File::open(path).map_err(failed("opening", path))?;
    flock(&below, FlockOperation::LockExclusive).map_err(|e| failed("locking", path)(e.into()))?;
    if mounted() {
        return Ok(());
    }
    rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), None)
        .map_err(|e| failed("mounting bpffs on", path)(e.into()))
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataplaneError + 'a {
    move |source| {
        let cure = match source.kind() {
            io::ErrorKind::PermissionDenied => "run as root",
            io::ErrorKind::NotFound => {
                "check that /sys is mounted (`ip netns exec` hides it: use `nsenter --net=`)"
            }
            _ => "check `ls -l` on it, and `mount | grep bpf`",
        };
        DataplaneError::Bpffs { doing, path: path.to_owned(), source, cure }
    }
}
