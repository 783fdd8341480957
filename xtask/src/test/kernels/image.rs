//! The whole file system of an emulated machine, as one archive.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{archive::Archive, package::Unpacked};
use crate::{process, test::Program};

const INIT: &str = include_str!("init.sh");

/// What scenarios and the first process run. A scenario that needs another program has to name it here; one that this
/// machine lacks is left out, and the scenario says so.
const PROGRAMS: &str = "
    awk bash bpftool bridge cat chmod cp curl date dd dmesg env ethtool false grep head ip ip6tables iperf3 iptables kill ls
    mkdir modprobe mount nft nginx nsenter ping ps rm sed seq setpriv sh sleep socat ss ssh ssh-keygen sshd sync sysctl
    tail tc timeout true umount uname unshare wg
";

/// What those programs read, beside their libraries.
const SETTINGS: &str = "
    /etc/group /etc/iproute2 /etc/nginx /etc/nsswitch.conf /etc/passwd /etc/protocols /etc/services /etc/ssh/moduli
    /etc/ssl/openssl.cnf /usr/lib/tc /usr/share/iproute2
";

/// Where a kernel keeps its modules for networks, and what those need.
const MODULES: &[&str] = &["net", "drivers/net", "crypto", "arch/x86/crypto", "lib"];

/// Where programs are looked for, PATH or not.
const DIRECTORIES: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Directories that the first process mounts something at, or that programs expect.
const EMPTY: &[&str] =
    &["/dev", "/proc", "/root", "/run", "/sys", "/tmp", "/var/log", "/var/lib", "/var/empty"];

pub struct Image(Archive);

impl Image {
    /// # Errors
    /// When something of this machine cannot be read.
    pub fn make(
        kernel: &Unpacked,
        sheer: &Path,
        programs: &[Program],
        filter: Option<&str>,
        harness: &[String],
    ) -> Result<Self> {
        let mut image = Self(Archive::default());
        for directory in EMPTY {
            image.0.directory(Path::new(directory));
        }
        image.0.file(Path::new("/init"), 0o755, INIT.into());
        for link in ["/bin", "/sbin", "/lib", "/lib64", "/var/run"] {
            if let Ok(target) = fs::read_link(link) {
                image.0.symlink(Path::new(link), &target.to_string_lossy());
            }
        }
        for path in PROGRAMS.split_whitespace().filter_map(find) {
            image.program(&path).with_context(|| format!("cannot take {} along", path.display()))?;
        }
        for path in SETTINGS.split_whitespace() {
            image.tree(Path::new(path), Path::new(path))?;
        }
        for module in MODULES {
            let place = Path::new("kernel").join(module);
            image.tree(&kernel.modules.join(&place), &modules(kernel).join(&place))?;
        }
        for file in fs::read_dir(&kernel.modules)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("modules.") {
                image.tree(&file.path(), &modules(kernel).join(file.file_name()))?;
            }
        }
        image.tests(sheer, programs, filter, harness)?;
        Ok(image)
    }

    /// The bytes of all files.
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// # Errors
    /// When there is no room.
    pub fn write(&self, to: &Path) -> Result<()> {
        fs::write(to, self.0.to_bytes()).with_context(|| format!("cannot write {}", to.display()))
    }

    /// The test programs, in the order of their running, and what they are given.
    fn tests(
        &mut self,
        sheer: &Path,
        programs: &[Program],
        filter: Option<&str>,
        harness: &[String],
    ) -> Result<()> {
        let place = Path::new("/tests");
        self.libraries(sheer)?;
        self.0.file(&place.join("sheer"), 0o755, stripped(sheer)?);
        let mut list = String::new();
        for program in programs {
            self.libraries(&program.path)?;
            self.0.file(&place.join(&program.name), 0o755, read(&program.path)?);
            list.push_str(&format!("{}\n", program.name));
        }
        let arguments: String =
            filter.into_iter().chain(harness.iter().map(String::as_str)).map(|a| format!("{a}\n")).collect();
        self.0.file(&place.join("list"), 0o644, list.into());
        self.0.file(&place.join("arguments"), 0o644, arguments.into());
        Ok(())
    }

    fn program(&mut self, path: &Path) -> Result<()> {
        self.copy(path)?;
        self.libraries(path)
    }

    /// What ldd says, the dynamic linker among it. It fails on what is linked statically, or is a script.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        let said = process::capture(Command::new("ldd").arg(program)).unwrap_or_default();
        for library in libraries(&said) {
            self.copy(Path::new(library))?;
        }
        Ok(())
    }

    /// A file of this machine, at the place where it is here.
    fn copy(&mut self, path: &Path) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        // Where /lib is a link to /usr/lib, the archive has that link as well.
        let real = parent.canonicalize().with_context(|| format!("no directory {}", parent.display()))?;
        let place = real.join(path.file_name().unwrap_or_default());
        if !self.0.contains(&place) {
            self.0.file(&place, 0o755, read(path)?);
        }
        Ok(())
    }

    /// A file or a directory with all that is in it; nothing where there is none, or where it is not ours to read.
    fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        if from.is_dir() {
            self.0.directory(to);
            for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
                let entry = entry?;
                self.tree(&entry.path(), &to.join(entry.file_name()))?;
            }
        } else if let Ok(data) = fs::read(from) {
            let mode = fs::metadata(from).map_or(0o644, |about| about.permissions().mode());
            self.0.file(to, mode, data);
        }
        Ok(())
    }
}

fn modules(kernel: &Unpacked) -> PathBuf {
    // Not through the link /lib, which a path in the archive must not follow.
    let lib = Path::new("/lib").canonicalize().unwrap_or_else(|_| PathBuf::from("/lib"));
    lib.join("modules").join(&kernel.release)
}

fn find(program: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.exists())
}

/// `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; what has no path is the kernel's own.
fn libraries(ldd: &str) -> BTreeSet<&str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// Nine tenths of it are of use to a debugger only.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    if !process::exists("strip") {
        return read(program);
    }
    let scratch = program.with_extension("stripped");
    let done = process::run(Command::new("strip").arg("-o").arg(&scratch).arg(program));
    let data = done.and_then(|()| read(&scratch));
    let _ = fs::remove_file(&scratch);
    data
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if data.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_has_a_path() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said).into_iter().collect::<Vec<_>>(), expected);
    }
}
