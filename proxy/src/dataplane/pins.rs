//! What stands in bpffs: `maps/`, `progs/` and `links/` of one instance.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, statfs};

use super::{DataplaneError, object::map, object::program};
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

    /// The published directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
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

    /// The published link of an interface.
    #[must_use]
    pub fn ingress_link(&self, interface: &str) -> PathBuf {
        self.root.join("links").join(ingress_name(interface))
    }

    /// Where this start pins the link of an interface.
    #[must_use]
    pub fn staged_ingress_link(&self, interface: &str) -> PathBuf {
        self.stage.join("links").join(ingress_name(interface))
    }

    /// Where this start pins the link of the socket lookup.
    #[must_use]
    pub fn staged_lookup_link(&self) -> PathBuf {
        self.stage.join("links").join("lookup")
    }

    /// Mounts bpffs where it is not mounted, and makes an empty stage.
    ///
    /// # Errors
    /// When bpffs cannot be mounted or written to.
    pub fn prepare(&self) -> Result<(), DataplaneError> {
        mount_bpffs()?;
        remove_tree(&self.stage)?;
        for dir in ["maps", "progs", "links"] {
            let path = self.stage.join(dir);
            fs::create_dir_all(&path).map_err(failed("creating", &path))?;
        }
        Ok(())
    }

    /// Pins the maps and programs in the stage.
    ///
    /// # Errors
    /// When the kernel refuses a pin.
    pub fn stage(&self, dataplane: &mut super::Dataplane) -> Result<(), DataplaneError> {
        let ebpf = dataplane.ebpf_mut();
        for &name in map::PINNED {
            let map = ebpf.map(name).ok_or(DataplaneError::Missing { what: "map", name })?;
            let path = self.stage.join("maps").join(name);
            map.pin(&path).map_err(|e| failed("pinning", &path)(io::Error::other(e)))?;
        }
        for name in [program::ETHER, program::IP, program::LOOKUP] {
            let program = ebpf.program_mut(name).ok_or(DataplaneError::Missing { what: "program", name })?;
            let path = self.stage.join("progs").join(name);
            program.pin(&path).map_err(|e| failed("pinning", &path)(io::Error::other(e)))?;
        }
        Ok(())
    }

    /// Puts the stage in the place of what was published before.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn publish(&self) -> Result<(), DataplaneError> {
        remove_tree(&self.root)?;
        fs::rename(&self.stage, &self.root).map_err(failed("publishing", &self.root))
    }

    /// Removes everything; the kernel detaches the links with their last pin, if nobody holds them open.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn remove(&self) -> Result<(), DataplaneError> {
        remove_tree(&self.stage)?;
        remove_tree(&self.root)?;
        // The common parent goes with the last instance; another one's being there is no error.
        if let Some(parent) = self.root.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn ingress_name(interface: &str) -> String {
    // An interface may be called eth0.5; bpffs refuses names with dots.
    format!("ingress-{}", interface.replace('.', "+"))
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

fn mount_bpffs() -> Result<(), DataplaneError> {
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
