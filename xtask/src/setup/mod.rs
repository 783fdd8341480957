//! `cargo xtask setup`: gets the pieces that build the eBPF object and that a stable toolchain comes without.
//!
//! Everything goes into the tools directory; the user's own toolchain is left alone, except where rustup is asked for
//! the component that it has for this very purpose.

mod debian;
mod linker;
mod rust_src;

use anyhow::{Context, Result, anyhow};
use ebpf_build::{Rustc, Toolchain};

use crate::{ui, workspace};

/// Finds or gets every piece, telling what is done.
///
/// # Errors
/// When a piece is not to be had by any way; the message has the cure.
pub fn run() -> Result<Toolchain> {
    let tools = workspace::tools();
    let rustc = Rustc::query()
        .map_err(|piece| anyhow!("{piece}; install Rust from rustup.rs or your distribution"))?;
    let library = rust_src::provide(&tools, &rustc)?;
    let linker = linker::provide(&tools, &rustc)?;
    let toolchain = Toolchain { rustc, library, linker };
    ebpf_build::write_stamp(&tools, &toolchain)
        .with_context(|| format!("cannot write to the tools directory {}", tools.display()))?;
    Ok(toolchain)
}

/// The step's line for a piece that was there before.
fn present(label: &'static str, path: &std::path::Path) {
    ui::Step::begin(label, "").done(format_args!("ready in {}", workspace::shown(path)));
}
