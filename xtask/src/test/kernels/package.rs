//! A kernel and its modules, out of Debian's packages, unpacked into `target/kernels/VERSION`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use super::Packaged;
use crate::{
    debian::{self, Apt},
    process, ui, workspace,
};

/// Depends on the suite's newest kernel for virtual machines: fewer drivers, all of the network's modules.
const NEWEST: &str = "linux-image-cloud-amd64";

/// How the packages end that have the parts of one kernel.
const FLAVOUR: &str = "-cloud-amd64";

/// Where suites go that Debian has stopped to serve.
const ARCHIVE: &str = "http://archive.debian.org/debian";

/// An unpacked kernel.
pub struct Unpacked {
    /// What `uname -r` says in it.
    pub release: String,
    /// The file to boot.
    pub image: PathBuf,
    /// `/lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Finds the kernel, or fetches it. One that was fetched before stays: remove the directory to get a newer one.
///
/// # Errors
/// When it is not to be had, with all reasons.
pub fn provide(kernel: &Packaged, place: &Path) -> Result<Unpacked> {
    let place = place.join(kernel.version);
    if let Ok(unpacked) = Unpacked::find(&place) {
        return Ok(unpacked);
    }
    let step = ui::Step::begin("kernel", format_args!("{NEWEST} of Debian {}", kernel.suite));
    let mut reasons = Vec::new();
    let mirrors = [debian::mirror()?, ARCHIVE.to_owned()];
    for mirror in mirrors {
        match fetch(kernel, &mirror, &place).and_then(|()| Unpacked::find(&place)) {
            Ok(unpacked) => {
                step.done(format_args!("Linux {}, in {}", unpacked.release, workspace::shown(&place)));
                return Ok(unpacked);
            }
            Err(error) => reasons.push(format!("{mirror}: {error:#}")),
        }
    }
    step.failed("not to be had");
    bail!("no kernel {} from Debian {}:\n  {}", kernel.version, kernel.suite, reasons.join("\n  "))
}

/// Unpacks beside the final place and moves it there, so that an interrupted unpacking is never taken for a whole one.
fn fetch(kernel: &Packaged, mirror: &str, place: &Path) -> Result<()> {
    let scratch = place.with_extension("part");
    for old in [&scratch, &place.to_owned()] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove the old {}", old.display()))?;
        }
    }
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    // apt runs in it by its full name.
    let scratch = scratch.canonicalize()?;
    let apt = Apt::prepare(&scratch, mirror, kernel.suite)?;
    process::run(apt.command("apt-get").arg("update"))?;
    let tree =
        process::capture(apt.command("apt-cache").args(["depends", "--recurse", "--important", NEWEST]))?;
    let packages: Vec<_> = parts(&tree).collect();
    if packages.is_empty() {
        bail!("{NEWEST} depends on no kernel");
    }
    process::run(apt.command("apt-get").arg("download").args(&packages).current_dir(&scratch))?;
    let unpacked = scratch.join("unpacked");
    for file in files(&scratch)?.iter().filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        process::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
    }
    // Newer packages have everything in /usr; depmod looks in /lib.
    if !unpacked.join("lib").exists() {
        symlink("usr/lib", unpacked.join("lib"))?;
    }
    let release = release(&unpacked)?;
    process::run(Command::new("/sbin/depmod").arg("-b").arg(&unpacked).arg(&release))?;
    fs::rename(&unpacked, place).with_context(|| format!("cannot move the kernel to {}", place.display()))?;
    let _ = fs::remove_dir_all(&scratch);
    Ok(())
}

/// Those packages of apt's tree that have a part of the kernel: they name its release.
fn parts(tree: &str) -> impl Iterator<Item = &str> {
    tree.lines().filter(|package| {
        let name = package.strip_prefix("linux-").and_then(|rest| rest.strip_suffix(FLAVOUR));
        name.is_some_and(|name| name.contains(|c: char| c.is_ascii_digit()))
    })
}

impl Unpacked {
    fn find(place: &Path) -> Result<Self> {
        let release = release(place)?;
        let modules = place.join("lib/modules").join(&release);
        let images = [place.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.exists());
        let image =
            image.ok_or_else(|| anyhow!("there is no vmlinuz for {release} in {}", place.display()))?;
        if !modules.join("modules.dep").exists() {
            bail!("there is no modules.dep in {}", modules.display());
        }
        Ok(Self { release, image, modules })
    }
}

/// The name of the one directory of modules.
fn release(place: &Path) -> Result<String> {
    let found = files(&place.join("lib/modules"))?;
    let [one] = found.as_slice() else {
        bail!("{} has the modules of {} kernels", place.display(), found.len());
    };
    Ok(one.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_one_package_or_several() {
        let old = "linux-image-cloud-amd64\n  Depends: linux-image-5.10.0-32-cloud-amd64\n\
                   linux-image-5.10.0-32-cloud-amd64\n  Depends: kmod\nkmod\nlinux-base\n";
        assert_eq!(parts(old).collect::<Vec<_>>(), ["linux-image-5.10.0-32-cloud-amd64"]);
        let new = "linux-image-cloud-amd64\nlinux-base-cloud-amd64\nlinux-image-7.2.13+deb14-cloud-amd64\n\
                   linux-binary-7.2.13+deb14-cloud-amd64\nlinux-modules-7.2.13+deb14-cloud-amd64\nlinux-base\n";
        assert_eq!(parts(new).count(), 3);
    }
}
