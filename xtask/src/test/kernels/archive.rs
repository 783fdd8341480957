//! An archive of files as the kernel unpacks it at boot: cpio in its "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Everything in it belongs to root.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

const MAGIC: &str = "070701";
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Paths are absolute, as they will be in the machine; the directories above them come by themselves.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

struct Entry {
    mode: u32,
    data: Vec<u8>,
}

impl Archive {
    /// An empty directory.
    pub fn directory(&mut self, path: &Path) {
        self.add(path, DIRECTORY | 0o755, Vec::new());
    }

    /// A file; `mode` are its permissions.
    pub fn file(&mut self, path: &Path, mode: u32, data: Vec<u8>) {
        self.add(path, REGULAR | mode & 0o7777, data);
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &Path, target: &str) {
        self.add(path, SYMLINK | 0o777, target.as_bytes().to_vec());
    }

    /// Whether something has this path.
    pub fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    /// The bytes of all files.
    pub fn size(&self) -> usize {
        self.entries.values().map(|entry| entry.data.len()).sum()
    }

    fn add(&mut self, path: &Path, mode: u32, data: Vec<u8>) {
        for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            self.entries
                .entry(above.to_owned())
                .or_insert_with(|| Entry { mode: DIRECTORY | 0o755, data: Vec::new() });
        }
        self.entries.insert(path.to_owned(), Entry { mode, data });
    }

    /// The archive; a directory stands before what is in it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size() + self.entries.len() * 256);
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
            let name = parts.collect::<PathBuf>().to_string_lossy().into_owned();
            append(&mut bytes, number, entry.mode, &name, &entry.data);
        }
        append(&mut bytes, 0, 0, "TRAILER!!!", &[]);
        bytes
    }
}

/// A header of fixed width, the name, the data; both filled up to a multiple of four bytes.
fn append(bytes: &mut Vec<u8>, number: u32, mode: u32, name: &str, data: &[u8]) {
    let links = 1;
    let fields = [number, mode, 0, 0, links, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    bytes.extend(MAGIC.as_bytes());
    for field in fields {
        bytes.extend(format!("{field:08x}").as_bytes());
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    fill_up(bytes);
    bytes.extend(data);
    fill_up(bytes);
}

fn fill_up(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stand_before_their_files_and_all_is_aligned() {
        let mut archive = Archive::default();
        archive.file(Path::new("/usr/bin/ip"), 0o755, b"four!".to_vec());
        archive.symlink(Path::new("/bin"), "usr/bin");
        let bytes = archive.to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["\0usr", "bin\0", "usr/bin\0", "usr/bin/ip\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name.trim_start_matches('\0')).unwrap())
            .collect();
        assert!(places[2] < places[3] && places[3] < places[4], "{places:?}");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches(MAGIC).count(), 5);
        // 110 bytes of header, the name with its NUL, filled up.
        assert_eq!((110 + "usr/bin/ip".len() + 1).next_multiple_of(4), 124);
        assert_eq!(&bytes[places[3] - 110 + 124..][..5], b"four!");
    }
}
