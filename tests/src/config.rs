//! Configuration files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A configuration file in a directory of its own, which goes when this value does.
#[derive(Debug)]
pub struct ConfigFile {
    directory: TempDir,
    path: PathBuf,
}

impl ConfigFile {
    /// The directory; nothing is in it yet.
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("sheer-scenario-").unwrap();
        let path = directory.path().join("sheer.toml");
        Self { directory, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file. `text` goes on with the table `[dataplane]`.
    pub(crate) fn write(&self, interfaces: &[String], text: &str) {
        std::fs::write(&self.path, whole(interfaces, text)).unwrap();
    }

    /// Writes another file into the directory.
    pub(crate) fn write_beside(&self, name: &str, contents: &str) {
        std::fs::write(self.directory.path().join(name), contents).unwrap();
    }
}

fn whole(interfaces: &[String], text: &str) -> String {
    let mut whole = format!("[dataplane]\ninterfaces = {interfaces:?}\n{text}\n");
    if !text.contains("[proxy]") {
        whole.push_str("[proxy]\naccess_format = \"json\"\n");
    }
    whole
}
