//! `cargo xtask build`: the toolchain pieces, then the release binary.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{process, setup, ui, workspace};

/// Builds the release binary with its eBPF object inside and returns its path.
///
/// # Errors
/// When a piece of the toolchain cannot be had, or the code does not compile.
pub fn release() -> Result<PathBuf> {
    setup::run()?;
    let step = ui::Step::begin_shown("build", "cargo build --release (some minutes the first time)");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", "sheer"]);
    if let Err(error) = process::run_shown(&mut cargo) {
        step.failed("does not compile");
        return Err(error);
    }
    let sheer = workspace::sheer();
    let size = std::fs::metadata(&sheer)
        .with_context(|| {
            format!("cargo built no {}; is `build.target` set in a cargo config?", sheer.display())
        })?
        .len();
    if size == 0 {
        bail!("{} is empty; `cargo clean -p sheer` and build again", sheer.display());
    }
    step.done(format_args!("{}, {:.1} MB", workspace::shown(&sheer), size as f64 / 1e6));
    Ok(sheer)
}
