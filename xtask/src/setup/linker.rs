//! `bpf-linker`, built once from source by cargo.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use ebpf_build::{LINKER_VERSION, Rustc};

use super::present;
use crate::{process, ui, workspace};

const LABEL: &str = "bpf-linker";

pub(super) fn provide(tools: &Path, rustc: &Rustc) -> Result<PathBuf> {
    if let Ok(linker) = ebpf_build::find_linker(tools, rustc) {
        present(LABEL, &linker);
        return Ok(linker);
    }
    let step = ui::Step::begin(
        LABEL,
        format_args!("cargo install bpf-linker {LINKER_VERSION}, 1 to 2 minutes, once"),
    );
    if let Err(error) = install(tools, rustc) {
        step.failed("cargo install failed");
        return Err(error).context(
            "bpf-linker links the eBPF object and could not be installed. The cause is above; without a network, copy \
             the file bin/bpf-linker from the tools directory of another machine with the same Rust",
        );
    }
    step.done(format_args!("{LINKER_VERSION} built for LLVM {} by cargo install", rustc.llvm));
    ebpf_build::find_linker(tools, rustc).map_err(|piece| anyhow!("just installed, and still: {piece}"))
}

fn install(tools: &Path, rustc: &Rustc) -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["install", "bpf-linker", "--locked", "--force", "--no-default-features"])
        .args(["--version", &format!("={LINKER_VERSION}")])
        // Not a bundled LLVM (a download of hundreds of megabytes): the one inside rustc, loaded at run time.
        .args(["--features", &format!("rust-llvm-{}", rustc.llvm)])
        .arg("--root")
        .arg(tools);
    fast_build(&mut cargo);
    process::run(&mut cargo)
}

/// A tool that runs for a second does not repay minutes of optimizing.
pub(crate) fn fast_build(cargo: &mut std::process::Command) {
    for (key, value) in
        [("DEBUG", "0"), ("OPT_LEVEL", "1"), ("STRIP", "true"), ("LTO", "off"), ("CODEGEN_UNITS", "16")]
    {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // The user's flags and target are for the product.
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        if env::var_os(variable).is_some() {
            cargo.env_remove(variable);
        }
    }
}
