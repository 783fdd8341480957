//! Builds the eBPF object with the stable compiler that builds everything else.
//!
//! The target `bpfel-unknown-none` ships without a compiled `core`, so the object needs two pieces beside
//! rustc: the source of the library (to compile `core`) and `bpf-linker` (to turn LLVM bitcode into an object
//! with BTF). [`locate`] finds both, [`build`] uses them. The build script of the `sheer` crate and
//! `cargo xtask setup` share this crate, so that they cannot disagree about what counts as ready.
#![forbid(unsafe_code)]

mod build;
mod locate;
mod missing;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use self::{
    build::{BuildError, TARGET, build},
    locate::{Rustc, Toolchain, find_library, find_linker, locate},
    missing::{Missing, Piece},
};

/// The only version of `bpf-linker` that is used; its output decides whether the verifier accepts the object.
pub const LINKER_VERSION: &str = "0.10.4";

/// Names the directory of the toolchain pieces, in place of `target/tools` of the workspace.
pub const TOOLS_VARIABLE: &str = "SHEER_TOOLS";

/// Where the toolchain pieces of the workspace at `workspace` are kept: `$SHEER_TOOLS`, or its `target/tools`.
///
/// `CARGO_TARGET_DIR` does not move it: the pieces cost minutes to get and are shared by all target directories.
pub fn tools_dir(workspace: &Path) -> PathBuf {
    match env::var_os(TOOLS_VARIABLE) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => workspace.join("target/tools"),
    }
}

/// The file whose change tells build scripts that the pieces have changed.
///
/// Watching the pieces themselves would make every cargo call walk tens of thousands of files.
pub fn stamp_file(tools: &Path) -> PathBuf {
    tools.join("toolchain.stamp")
}

/// Makes sure that the stamp exists, so that a build script can watch it.
///
/// It is dated to the epoch: cargo takes a watched file that is missing, or younger than the script's last run, as
/// changed, and would run the script again.
///
/// # Errors
/// When `tools` cannot be created or written to.
pub fn ensure_stamp(tools: &Path) -> io::Result<PathBuf> {
    let stamp = stamp_file(tools);
    if !stamp.exists() {
        fs::create_dir_all(tools)?;
        fs::File::create(&stamp)?.set_modified(SystemTime::UNIX_EPOCH)?;
    }
    Ok(stamp)
}

/// Writes down what is in use, touching the stamp only when that changed.
///
/// # Errors
/// When `tools` cannot be created or written to.
pub fn write_stamp(tools: &Path, toolchain: &Toolchain) -> io::Result<()> {
    let stamp = stamp_file(tools);
    let content = toolchain.to_string();
    if fs::read_to_string(&stamp).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::create_dir_all(tools)?;
    fs::write(stamp, content)
}
