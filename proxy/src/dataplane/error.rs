//! What can go wrong between the proxy and its kernel programs.

use std::{io, path::PathBuf};

/// An operation on programs, maps or pins that failed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The build had no eBPF toolchain.
    #[error(
        "this binary was built without its kernel programs, because the eBPF toolchain was not ready; \
         run `cargo xtask setup` and build again"
    )]
    NoObject,
    /// The object could not be loaded.
    #[error("loading the kernel programs: {source}{}", permission_hint(.source))]
    Load {
        /// What aya says.
        source: aya::EbpfError,
    },
    /// A program was refused.
    #[error("program `{program}` was refused by the kernel: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What aya says, with the end of the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The programs could not be asked about a packet.
    #[error("asking the kernel programs: {source}; the interface may have gone meanwhile, ask again")]
    Ask {
        /// What aya says.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks something that this binary expects, or has it of another kind.
    #[error(
        "the kernel object has no {what} `{name}`: the binary and its object do not belong together; rebuild"
    )]
    Missing {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The programs' decisions cannot be heard.
    #[error("--trace: {source}; it needs the ring buffer of Linux 5.8 or later")]
    Trace {
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map refused an entry.
    #[error("map `{map}`: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya says.
        source: aya::maps::MapError,
    },
    /// TCX was insisted on.
    #[error(
        "`attach = tcx`: this kernel has no TCX, which came with Linux 6.6; leave it out, or say clsact, which does the same"
    )]
    NoTcx,
    /// A program could not be attached.
    #[error("attaching to {interface}: {reason}; {cure}")]
    Attach {
        /// The interface, or `the network namespace`.
        interface: String,
        /// What the kernel says.
        reason: String,
        /// What to do.
        cure: &'static str,
    },
    /// A file in bpffs.
    #[error("{doing} {}: {source}; {cure}", path.display())]
    Bpffs {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
        /// What to do.
        cure: &'static str,
    },
    /// The pinned maps were made by another build.
    #[error(
        "the maps in bpffs are of another version of Sheer; ask with the binary that made them, or restart it"
    )]
    OtherLayout,
    /// Too many workers for the `listeners` map.
    #[error("{workers} workers, but at most {max} are possible; lower --workers")]
    TooManyWorkers {
        /// Asked for.
        workers: usize,
        /// Possible.
        max: u32,
    },
}

/// An error with its causes: aya keeps the errno in the last one.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

fn permission_hint(source: &aya::EbpfError) -> &'static str {
    let text = source.to_string();
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        "; loading programs needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    } else {
        ""
    }
}
