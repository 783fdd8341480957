use std::{fmt, io, path::PathBuf};

/// One piece of the toolchain that is not there, and where it was looked for.
#[derive(Debug)]
pub enum Piece {
    /// The compiler itself did not answer.
    Rustc { program: PathBuf, cause: io::Error },
    /// The source of the library of exactly this compiler.
    Library { release: String, searched: Vec<PathBuf> },
    /// `bpf-linker` of [`crate::LINKER_VERSION`]. `found` are programs of that name that cannot be used, and why.
    Linker { searched: Vec<PathBuf>, found: Vec<(PathBuf, String)> },
}

/// What keeps the eBPF object from being built. `cargo xtask setup` is the cure for all but a missing compiler.
#[derive(Debug)]
pub struct Missing {
    /// Never empty.
    pub pieces: Vec<Piece>,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustc { program, cause } => {
                write!(f, "`{} -vV` does not answer ({cause})", program.display())
            }
            Self::Library { release, searched } => {
                write!(f, "no source of the Rust library {release} in {}", list(searched))
            }
            Self::Linker { searched, found } => {
                write!(f, "no bpf-linker {} in {}", crate::LINKER_VERSION, list(searched))?;
                found.iter().try_for_each(|(path, why)| write!(f, "; {} {why}", path.display()))
            }
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, piece) in self.pieces.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{piece}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}
