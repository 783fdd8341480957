use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{LINKER_VERSION, Missing, Piece};

/// The compiler that cargo uses here, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// Such as `1.95.0`.
    pub release: String,
    /// Such as `x86_64-unknown-linux-gnu`.
    pub host: String,
    /// Major version of the LLVM inside; `bpf-linker` loads this very library, so it must be built for it.
    pub llvm: u32,
    /// Where rustup put the compiler; the component `rust-src` lives in it.
    pub sysroot: PathBuf,
}

/// Everything that [`crate::build`] needs, checked to belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    pub rustc: Rustc,
    /// Directory of the library's source: holds `core/`, `Cargo.toml` and `Cargo.lock`.
    pub library: PathBuf,
    /// The program `bpf-linker`.
    pub linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rustc, library, linker } = self;
        writeln!(f, "rustc {} (LLVM {})", rustc.release, rustc.llvm)?;
        writeln!(f, "library source {}", library.display())?;
        writeln!(f, "bpf-linker {LINKER_VERSION} {}", linker.display())
    }
}

/// Finds the library source and `bpf-linker` that fit the compiler in use; `tools` is the project's own place for
/// them (see [`crate::tools_dir`]).
///
/// # Errors
/// Names every piece that is missing or does not fit, at once.
pub fn locate(tools: &Path) -> Result<Toolchain, Missing> {
    let rustc = Rustc::query().map_err(|piece| Missing { pieces: vec![piece] })?;
    match (find_library(tools, &rustc), find_linker(tools, &rustc)) {
        (Ok(library), Ok(linker)) => Ok(Toolchain { rustc, library, linker }),
        (library, linker) => Err(Missing { pieces: library.err().into_iter().chain(linker.err()).collect() }),
    }
}

/// Finds the library source that belongs to `rustc`: in its sysroot, where Debian's package puts it, or in `tools`.
///
/// # Errors
/// [`Piece::Library`] with the places searched.
pub fn find_library(tools: &Path, rustc: &Rustc) -> Result<PathBuf, Piece> {
    let packaged = format!("usr/src/rustc-{}/library", rustc.release);
    let searched = vec![
        rustc.sysroot.join("lib/rustlib/src/rust/library"),
        Path::new("/").join(&packaged),
        tools.join("rust-src").join(&packaged),
    ];
    // Cargo.lock, too: without it build-std would resolve the library's dependencies afresh.
    let complete = |dir: &&PathBuf| dir.join("core/src/lib.rs").is_file() && dir.join("Cargo.lock").is_file();
    match searched.iter().find(complete) {
        Some(library) => Ok(library.clone()),
        None => Err(Piece::Library { release: rustc.release.clone(), searched }),
    }
}

/// Finds `bpf-linker` of [`LINKER_VERSION`] in `tools`, then in `PATH`.
///
/// # Errors
/// [`Piece::Linker`] with the places searched and the unfit ones found there.
pub fn find_linker(tools: &Path, rustc: &Rustc) -> Result<PathBuf, Piece> {
    let own = tools.join("bin/bpf-linker");
    let mut searched = vec![own.clone()];
    let mut found = Vec::new();
    if own.is_file() {
        match linker_version(&own) {
            Ok(version) if version != LINKER_VERSION => found.push((own, format!("is version {version}"))),
            Ok(_) => match installed_for_llvm(tools) {
                Some(llvm) if llvm != rustc.llvm => {
                    found.push((own, format!("was built for LLVM {llvm}, rustc has LLVM {}", rustc.llvm)));
                }
                _ => return Ok(own),
            },
            Err(cause) => found.push((own, format!("does not run ({cause})"))),
        }
    }
    searched.push(PathBuf::from("PATH"));
    for candidate in in_path("bpf-linker") {
        match linker_version(&candidate) {
            Ok(version) if version == LINKER_VERSION => return Ok(candidate),
            Ok(version) => found.push((candidate, format!("is version {version}"))),
            Err(cause) => found.push((candidate, format!("does not run ({cause})"))),
        }
    }
    Err(Piece::Linker { searched, found })
}

impl Rustc {
    /// Asks the compiler that cargo names in `RUSTC` (as it does for build scripts), or the one in `PATH`.
    ///
    /// # Errors
    /// [`Piece::Rustc`] when it does not run, or does not describe itself as rustc does.
    pub fn query() -> Result<Self, Piece> {
        let program = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let failed = |cause| Piece::Rustc { program: PathBuf::from(&program), cause };
        let version = stdout_of(Command::new(&program).arg("-vV")).map_err(failed)?;
        let sysroot = stdout_of(Command::new(&program).args(["--print", "sysroot"])).map_err(failed)?;
        Self::parse(&version, sysroot.trim())
            .ok_or_else(|| failed(io::Error::other("its answer has no release, host or LLVM version")))
    }

    fn parse(version: &str, sysroot: &str) -> Option<Self> {
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some(Self {
            release: field("release")?.to_owned(),
            host: field("host")?.to_owned(),
            llvm: field("LLVM version")?.split('.').next()?.parse().ok()?,
            sysroot: PathBuf::from(sysroot),
        })
    }
}

fn linker_version(program: &Path) -> io::Result<String> {
    let answer = stdout_of(Command::new(program).arg("--version"))?;
    Ok(answer.trim().trim_start_matches("bpf-linker ").to_owned())
}

/// The LLVM that `cargo install` built the linker in `tools` for, by the feature that it wrote down. `None` when
/// there is no such record: then the linker was put there by hand, and is trusted.
fn installed_for_llvm(tools: &Path) -> Option<u32> {
    let record = fs::read_to_string(tools.join(".crates2.json")).ok()?;
    let (_, ours) = record.split_once("\"bpf-linker ")?;
    let (_, feature) = ours.split_once("\"rust-llvm-")?;
    feature.split('"').next()?.parse().ok()
}

fn in_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<_> = env::split_paths(&path).map(|dir| dir.join(program)).collect();
    candidates.into_iter().filter(|candidate| candidate.is_file())
}

fn stdout_of(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{}: {}", output.status, stderr.trim())));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                          release: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn a_compiler_describes_itself() {
        let rustc = Rustc::parse(ANSWER, "/opt/rust").unwrap();
        assert_eq!((rustc.release.as_str(), rustc.llvm), ("1.95.0", 22));
        assert_eq!(rustc.host, "x86_64-unknown-linux-gnu");
        assert_eq!(Rustc::parse("rustc 1.95.0\n", "/opt/rust"), None);
    }

    #[test]
    fn a_tools_directory_without_pieces_names_both() {
        let rustc = Rustc { release: "9.9.9".into(), ..Rustc::parse(ANSWER, "/nonexistent").unwrap() };
        let tools = Path::new("/nonexistent/tools");
        let library = find_library(tools, &rustc).unwrap_err().to_string();
        assert!(
            library.contains("library 9.9.9") && library.contains("/nonexistent/tools/rust-src"),
            "{library}"
        );
    }
}
