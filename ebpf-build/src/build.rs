use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use crate::Toolchain;

/// The target the object is compiled for.
pub const TARGET: &str = "bpfel-unknown-none";

/// The binary target of the eBPF crate; its file is the object.
const BINARY: &str = "sheer-ebpf";

/// Opens the half of the crate that runs in the kernel; without it cargo builds the half that also runs on the host.
const FEATURE: &str = "bpf";

/// What the outer cargo tells its own children. The inner cargo must not take it for itself: it would compile for
/// the wrong target, with the wrong flags, or wait for the outer one's locks and job slots.
const NOT_INHERITED: [&str; 8] = [
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "MAKEFLAGS",
    "CARGO_MAKEFLAGS",
];

/// Why there is no object although the toolchain is there.
#[derive(Debug)]
pub enum BuildError {
    /// cargo did not start.
    Start { cargo: PathBuf, cause: io::Error },
    /// The eBPF crate does not compile or link; the compiler has said why on stderr.
    Compile { crate_dir: PathBuf, status: ExitStatus },
    /// cargo succeeded without writing the expected file.
    NoObject { expected: PathBuf },
}

/// Compiles the crate in `ebpf_dir` and returns the path of the object, inside `out_dir`.
///
/// `out_dir` is a cargo target directory of its own; the compiled `core` (about half a minute) is kept there, so give
/// the same one each time. The compiler's messages go to stderr.
///
/// # Errors
/// See [`BuildError`]. A missing piece of the toolchain is not among them: [`crate::locate`] tells that first.
pub fn build(toolchain: &Toolchain, ebpf_dir: &Path, out_dir: &Path) -> Result<PathBuf, BuildError> {
    let cargo = PathBuf::from(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    let status = command(&cargo, toolchain, ebpf_dir, out_dir)
        .status()
        .map_err(|cause| BuildError::Start { cargo, cause })?;
    if !status.success() {
        return Err(BuildError::Compile { crate_dir: ebpf_dir.to_owned(), status });
    }
    let object = out_dir.join(TARGET).join("release").join(BINARY);
    if object.is_file() { Ok(object) } else { Err(BuildError::NoObject { expected: object }) }
}

fn command(cargo: &Path, toolchain: &Toolchain, ebpf_dir: &Path, out_dir: &Path) -> Command {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    let flags = [
        // What the linker makes BTF of; the kernel never sees the rest.
        OsStr::new("-Cdebuginfo=2"),
        OsStr::new("-Clink-arg=--btf"),
        // Without it the linker makes a call of a byte-wise loop of every small memset and memcpy: a tenth of the cost
        // of a packet.
        OsStr::new("-Clink-arg=--disable-expand-memcpy-in-order"),
        &linker,
    ]
    .join(OsStr::new("\x1f"));

    let mut command = Command::new(cargo);
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    command
        .current_dir(ebpf_dir)
        .args(["build", "--release", "--quiet", "--bin", BINARY, "--features", FEATURE])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(out_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // build-std is unstable; this opens it for the child alone, the host's crates stay on stable.
        .env("RUSTC_BOOTSTRAP", "1")
        // The only way to point build-std at a source outside the sysroot; the user's sysroot stays untouched.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &toolchain.library)
        .stdin(Stdio::null())
        // A build script's stdout is read by the outer cargo as directives.
        .stdout(Stdio::null());
    command
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { cargo, cause } => {
                write!(f, "cannot start {} to build the eBPF object: {cause}", cargo.display())
            }
            Self::Compile { crate_dir, status } => {
                write!(
                    f,
                    "the eBPF crate {} does not build ({status}); the compiler says why on stderr",
                    crate_dir.display()
                )
            }
            Self::NoObject { expected } => write!(
                f,
                "the eBPF build wrote no {}; the crate's binary must be called {BINARY}",
                expected.display()
            ),
        }
    }
}

impl std::error::Error for BuildError {}
