//! The source of the Rust library, of exactly the compiler's version.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, anyhow, bail};
use ebpf_build::Rustc;

use super::{debian, present};
use crate::{process, ui, workspace};

const LABEL: &str = "rust-src";

/// Where to get the source from when it is missing; `debian` puts Debian's archive before rustup.
const FROM_VARIABLE: &str = "SHEER_RUST_SRC_FROM";

type Way = fn(&Path, &Rustc) -> Result<()>;

const RUSTUP: (&str, Way) = ("rustup component add rust-src", rustup);
const DEBIAN: (&str, Way) = ("Debian's package rust-src", debian::fetch);

pub(super) fn provide(tools: &Path, rustc: &Rustc) -> Result<PathBuf> {
    if let Ok(library) = ebpf_build::find_library(tools, rustc) {
        present(LABEL, &library);
        return Ok(library);
    }
    let ways = match env::var(FROM_VARIABLE).as_deref() {
        Ok("debian") => [DEBIAN, RUSTUP],
        Ok("rustup") | Err(env::VarError::NotPresent) => [RUSTUP, DEBIAN],
        other => bail!("{FROM_VARIABLE} is {other:?}; it can be `rustup` or `debian`"),
    };
    let mut reasons = Vec::new();
    for (name, way) in ways {
        let step = ui::Step::begin(LABEL, name);
        let found = way(tools, rustc).and_then(|()| {
            ebpf_build::find_library(tools, rustc)
                .map_err(|piece| anyhow!("it succeeded, and still: {piece}"))
        });
        match found {
            Ok(library) => {
                step.done(format_args!("{name}, in {}", workspace::shown(&library)));
                return Ok(library);
            }
            Err(error) => {
                step.skipped(format_args!("{name}: not to be had"));
                reasons.push(format!("{name}: {error:#}"));
            }
        }
    }
    bail!(
        "the source of the Rust library {release} is needed to build the eBPF object and could not be had:\n  {}\n\
         Cure: `rustup component add rust-src` with a network; or unpack the library of rustc-{release}-src so that \
         {} exists",
        reasons.join("\n  "),
        tools.join(format!("rust-src/usr/src/rustc-{}/library/core", rustc.release)).display(),
        release = rustc.release,
    )
}

fn rustup(_tools: &Path, _rustc: &Rustc) -> Result<()> {
    if !process::exists("rustup") {
        bail!("rustup is not installed");
    }
    process::run(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(workspace::root()))
}
