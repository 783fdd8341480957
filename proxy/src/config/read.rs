//! Reading a configuration file.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{self, Path},
};

use super::{Config, Mistakes, check::check, collect::Places, error::Mistake};
use crate::{instance::InstanceName, record::AccessLog};

/// Bytes of a configuration file. Long lists of prefixes have files of their own.
const LARGEST: u64 = 16 * 1024 * 1024;

impl Config {
    /// Reads and checks a file, and the files of prefixes that it names; relative names in it begin where it stands.
    ///
    /// # Errors
    /// Every mistake at once, or why the file cannot be read.
    pub fn read(path: &Path, instance: InstanceName) -> Result<Self, Mistakes> {
        let shown = path.display().to_string();
        let bytes = bytes(path).map_err(|what| Mistakes::of_file(&shown, what))?;
        let text = str::from_utf8(&bytes).map_err(|e| not_text(&bytes, e.valid_up_to(), &shown))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut config = check(text, &shown, directory, instance)?;
        let absolute = path::absolute(path)
            .map_err(|e| Mistakes::of_file(&shown, format!("its absolute path cannot be told: {e}")))?;
        if let (AccessLog::File(log), Some(directory)) = (&mut config.access_log, absolute.parent()) {
            *log = directory.join(&log);
        }
        config.file = Some(absolute);
        Ok(config)
    }

    /// What it consists of, in a line: `3 services, 12 prefixes, 2 interfaces`.
    #[must_use]
    pub fn summary(&self) -> String {
        let prefixes: usize = self.prefixes().map(super::Prefixes::len).sum();
        let counted = |n: usize, what: &str, many: &str| format!("{n} {}", if n == 1 { what } else { many });
        [
            counted(self.services.len(), "service", "services"),
            counted(prefixes, "prefix", "prefixes"),
            counted(self.interfaces.len(), "interface", "interfaces"),
        ]
        .join(", ")
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file; give the path of a configuration file with -c".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!("it may not be read: {e}; look with: namei -l {}", path.display())
        }
        io::ErrorKind::IsADirectory => "it is a directory; name the file in it".to_owned(),
        _ => format!("it cannot be read: {e}"),
    };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!(
            "it is larger than {} MiB; put long lists of prefixes into files of their own, with destination_file and \
             client_file",
            LARGEST / 1024 / 1024
        ));
    }
    Ok(bytes)
}

fn not_text(bytes: &[u8], valid: usize, file: &str) -> Mistakes {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    let place = Places::new(&before).of(valid);
    let what = "not text in UTF-8 from here on; save the file as UTF-8".to_owned();
    Mistakes::new(vec![Mistake { file: file.to_owned(), place: Some(place), key: "syntax".to_owned(), what }])
}
