//! Where things are: the workspace, its target directory, its tools, the programs that cargo builds.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The directory of the workspace. cargo says where this package is when it runs it; a copy of the program that is
/// run by hand falls back to where it was compiled.
pub fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or(package)
}

/// The toolchain pieces: see [`ebpf_build::tools_dir`].
pub fn tools() -> PathBuf {
    ebpf_build::tools_dir(&root())
}

/// cargo's target directory, `CARGO_TARGET_DIR` respected.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(PathBuf::from(dir)),
        _ => root().join("target"),
    }
}

/// cargo, as a command in the workspace's directory.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    // What the outer `cargo run` set for this program describes this package, not those that are built next.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command
}

/// The release build of `sheer`, whether it exists or not.
pub fn sheer() -> PathBuf {
    target().join("release/sheer")
}

/// `path` as a person in the workspace would type it.
pub fn shown(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    let short = path.strip_prefix(&here).or_else(|_| path.strip_prefix(root())).unwrap_or(path);
    short.display().to_string()
}
