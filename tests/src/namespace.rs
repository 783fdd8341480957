//! A network namespace that lives as long as this process holds it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::connect::{Dial, connect};
use crate::wait::{PATIENCE, wait_until};

/// A network namespace without a name: it is gone when the last process in it and this value are.
#[derive(Debug)]
pub struct Namespace {
    label: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace; `label` is for messages only.
    ///
    /// # Panics
    /// Without root: the scenarios need CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN, and must not pass without them.
    #[must_use]
    pub fn new(label: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the scenarios need root for network namespaces and eBPF: run them with cargo xtask test, or as root"
        );
        // A child makes it, because unshare(2) in a thread of ours is not to be had without unsafe code.
        let mut maker = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot run unshare (package util-linux)");
        let mut line = String::new();
        BufReader::new(maker.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "made\n", "cannot make a network namespace");
        let file = File::open(format!("/proc/{}/ns/net", maker.id())).unwrap();
        drop(maker.stdin.take());
        maker.wait().unwrap();
        let namespace = Self { label: label.to_owned(), file };
        // A router cannot ask for its neighbours before its link-local address has been probed, for a second or two.
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace
    }

    /// The label given at its making.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path by which other programs can open it while this process lives (`nsenter --net=…`, `ip link … netns …`).
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The inode by which the kernel names it, e.g. in `bpftool link`.
    #[must_use]
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().ino()
    }

    /// Runs `task` on a thread inside and gives its result; a panic in it goes on here.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let file = &self.file;
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(file);
                    task()
                })
                .join()
        });
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside; threads that it starts are inside too.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = self.file.try_clone().unwrap();
        let named = format!("{}/{name}", self.label);
        thread::Builder::new()
            .name(named)
            .spawn(move || {
                enter(&file);
                task()
            })
            .unwrap()
    }

    /// A command that will run inside, and be killed when the thread that starts it ends.
    ///
    /// Not `ip netns exec`, which mounts /sys anew and so hides the bpf file system.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path()));
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    /// Runs a command line (split at blanks) inside and gives what it wrote to stdout.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("an empty command line");
        let output = self.command(program).args(words).output().unwrap();
        assert!(
            output.status.success(),
            "{}: {line}: {}{}",
            self.label,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs many `ip` commands in one process: lines as after `ip`.
    ///
    /// # Panics
    /// At the first that fails.
    pub fn configure(&self, lines: &str) {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {complaint}\nin:\n{lines}", self.label);
    }

    /// Connects from here.
    ///
    /// # Panics
    /// When that fails.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        self.run(|| connect(Dial::to(to))).unwrap_or_else(|e| panic!("{}: connect {to}: {e}", self.label()))
    }

    /// Connects from here as the dial says.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn dial(&self, dial: Dial) -> std::io::Result<TcpStream> {
        self.run(|| connect(dial))
    }

    /// Connects from this address of it.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn dial_from(&self, from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.dial(Dial::to(to).from(SocketAddr::new(from, 0)))
    }

    /// Connects and reads to the end: what a `Server::hello` says.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn ask(&self, to: SocketAddr) -> String {
        let mut stream = self.connect(to);
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer)
            .unwrap_or_else(|e| panic!("{}: reading from {to}: {e}", self.label()));
        answer
    }

    /// Waits until a device can ask for its IPv6 neighbours, which needs a link-local address, which needs a carrier.
    pub fn wait_for_ipv6(&self, device: &str) {
        wait_until(&format!("{device} has a link-local address"), PATIENCE, || {
            let addresses = self.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
            addresses.lines().any(|line| line.starts_with("fe80") && line.ends_with(device)).then_some(())
        });
    }

    /// Sets a sysctl, e.g. `net.ipv4.ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.run(|| {
            std::fs::write(&path, value).unwrap_or_else(|e| panic!("{}: cannot set {name}: {e}", self.label));
        });
    }
}

/// Moves the calling thread, for good.
fn enter(file: &File) {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("cannot enter a namespace");
}
