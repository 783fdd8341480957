//! Puts the eBPF object into `OUT_DIR/sheer.bpf.o`.
//!
//! Without its toolchain the file is empty and the build goes on with a warning: `cargo check`, clippy, an editor and
//! the unit tests need no eBPF. The binary tells its user at start. Code that does not compile fails the build.
#![forbid(unsafe_code)]

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

const SOURCES: [&str; 5] = [
    "proxy-ebpf/src",
    "proxy-ebpf/Cargo.toml",
    "proxy-ebpf/Cargo.lock",
    "proxy-common/src",
    "proxy-common/Cargo.toml",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package.parent().ok_or("the package stands outside the workspace")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let tools = ebpf_build::tools_dir(workspace);
    watch(workspace, &tools);

    let object = out_dir.join("sheer.bpf.o");
    let toolchain = match ebpf_build::locate(&tools) {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            println!("cargo::warning=building without the eBPF object: {missing}");
            println!(
                "cargo::warning=`cargo xtask setup` gets what is missing; until then `sheer run` cannot work"
            );
            return Ok(write_if_changed(&object, &[])?);
        }
    };
    let built = ebpf_build::build(&toolchain, &workspace.join("proxy-ebpf"), &ebpf_target_dir(&out_dir))?;
    Ok(write_if_changed(&object, &fs::read(built)?)?)
}

fn watch(workspace: &Path, tools: &Path) {
    println!("cargo::rerun-if-env-changed={}", ebpf_build::TOOLS_VARIABLE);
    for source in SOURCES {
        let path = workspace.join(source);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    // A tools directory that cannot be written to is not an error here: it is somebody else's, and complete.
    if let Ok(stamp) = ebpf_build::ensure_stamp(tools) {
        println!("cargo::rerun-if-changed={}", stamp.display());
    }
}

/// One place for all profiles, `TARGET_DIR/ebpf`: the object is always a release build, and compiling `core` for
/// each profile anew would cost half a minute every time. OUT_DIR is `TARGET_DIR/PROFILE/build/PACKAGE/out`.
fn ebpf_target_dir(out_dir: &Path) -> PathBuf {
    out_dir.ancestors().nth(4).unwrap_or(out_dir).join("ebpf")
}

fn write_if_changed(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content)
}

fn variable(name: &str) -> Result<std::ffi::OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
