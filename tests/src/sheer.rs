//! The product under test: the built binary in the middle of the lab.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use crate::config::ConfigFile;
use crate::lab::Lab;
use crate::leaks::{Footprint, assert_nothing_left, assert_nothing_named_left, dump_map, pinned_link};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

/// The binary: `SHEER_BIN`, or the release build, or the debug build.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SHEER_BIN") {
        return path.into();
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("sheer"))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no sheer in {}: build it first, or set SHEER_BIN", target.display()))
}

/// How `sheer run` shall be started.
#[derive(Debug, Clone)]
pub struct SheerBuilder<'lab> {
    lab: &'lab Lab,
    instance: String,
    interfaces: Vec<String>,
    ports: String,
    file: Option<Arc<ConfigFile>>,
    arguments: Vec<String>,
}

impl<'lab> SheerBuilder<'lab> {
    /// The ports to take, as after `--tcp`.
    #[must_use]
    pub fn tcp(mut self, ports: &str) -> Self {
        self.ports = ports.to_owned();
        self
    }

    /// A configuration file instead of flags. It begins with the table `[dataplane]`, which names the interfaces and
    /// which the text goes on with, and access records are JSON unless the text has a table `[proxy]` of its own.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        let file = ConfigFile::new();
        file.write(&self.interfaces, text);
        self.file = Some(Arc::new(file));
        self
    }

    /// A file beside the configuration file, such as a list of prefixes.
    ///
    /// # Panics
    /// Without a configuration file.
    #[must_use]
    pub fn beside(self, name: &str, contents: &str) -> Self {
        self.file.as_ref().expect("no configuration file").write_beside(name, contents);
        self
    }

    /// The source mode, as after `--source`.
    #[must_use]
    pub fn source(self, mode: &str) -> Self {
        self.option("--source", mode)
    }

    /// Any other option and its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Other interfaces than all of the middle's.
    #[must_use]
    pub fn interfaces(mut self, names: &[&str]) -> Self {
        self.interfaces = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Another name for the instance than one of its own, e.g. that of a dead one.
    #[must_use]
    pub fn named(mut self, instance: &str) -> Self {
        instance.clone_into(&mut self.instance);
        self
    }

    /// The instance's name, which is chosen to be unique.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The whole command.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.lab.middle().command(&binary().to_string_lossy());
        command.args(["run", "--instance", &self.instance]);
        if let Some(file) = &self.file {
            command.arg("-c").arg(file.path()).args(&self.arguments);
            return command;
        }
        command.args(["--tcp", &self.ports]);
        if !self.arguments.iter().any(|argument| argument == "--access-format") {
            command.args(["--access-format", "json"]);
        }
        for name in &self.interfaces {
            command.args(["-i", name]);
        }
        command.args(&self.arguments);
        command
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it ends before that; with what it said.
    #[must_use]
    pub fn start(self) -> Sheer<'lab> {
        let mut process = Process::start("sheer run", self.command());
        process.wait_for_stderr("ready", |line| line == "ready");
        let footprint = Footprint::of(&self.instance);
        assert!(!footprint.programs.is_empty(), "sheer is ready, but has no program pinned");
        Sheer { builder: self, process, footprint, settled: false }
    }

    /// Starts it where it has to fail, and gives what it said.
    ///
    /// # Panics
    /// When it gets ready, or ends otherwise than by saying why it cannot.
    #[must_use]
    pub fn start_in_vain(&self) -> String {
        let mut process = Process::start("sheer run", self.command());
        let status = process.wait();
        let said = process.stderr().join("\n");
        assert_eq!(status.code(), Some(1), "sheer run had to fail at work: {said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// Fails the test if anything of the instance is there, and removes it then.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_nothing_left(&self) {
        let middle = self.lab.middle();
        let looked = catch_unwind(AssertUnwindSafe(|| {
            assert_nothing_left(&self.instance, middle, &Footprint::default());
        }));
        if let Err(panic) = looked {
            let mut cleanup = middle.command(&binary().to_string_lossy());
            let _ = cleanup.args(["cleanup", "--instance", &self.instance]).output();
            resume_unwind(panic);
        }
    }
}

/// How the connections of these access records ended, in their order.
#[must_use]
pub fn reasons(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["reason"].as_str().expect("a record without a reason")).collect()
}

/// A running `sheer run`.
///
/// Whatever way it ends, the test fails if something of it is left in the kernel afterwards.
#[derive(Debug)]
pub struct Sheer<'lab> {
    builder: SheerBuilder<'lab>,
    process: Process,
    footprint: Footprint,
    settled: bool,
}

static INSTANCES: AtomicU32 = AtomicU32::new(0);

impl<'lab> Sheer<'lab> {
    /// In the middle of this lab, on all its interfaces, unless said otherwise.
    #[must_use]
    pub fn on(lab: &'lab Lab) -> SheerBuilder<'lab> {
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        SheerBuilder {
            lab,
            instance: format!("scenario-{}-{number}", std::process::id()),
            interfaces: lab.uplinks(),
            ports: String::new(),
            file: None,
            arguments: Vec::new(),
        }
    }

    /// The instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.builder.instance
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it had in the kernel when it became ready.
    #[must_use]
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// The access records so far.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn records(&self) -> Vec<Value> {
        let parse = |line: &String| {
            serde_json::from_str(line)
                .unwrap_or_else(|e| panic!("an access record is not JSON ({e}): {line}"))
        };
        self.process.stdout().iter().map(parse).collect()
    }

    /// The first access record, waiting for it.
    #[must_use]
    pub fn record(&self) -> Value {
        wait_until("an access record is written", PATIENCE, || self.records().into_iter().next())
    }

    /// The id of the pinned link that looks at this interface; none under clsact.
    #[must_use]
    pub fn link_of(&self, interface: &str) -> Option<u64> {
        pinned_link(self.instance(), &format!("ingress-{interface}"))
    }

    /// How many files the process has open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
    }

    /// Waits until no connection is shown any more.
    ///
    /// # Panics
    /// When some stay.
    pub fn wait_for_no_flows(&self) {
        wait_until("no flow is left", PATIENCE, || self.json("flows").as_array()?.is_empty().then_some(()));
    }

    /// Another command of the binary on this instance, e.g. `status`.
    pub fn control(&self, command: &str, arguments: &[&str]) -> Output {
        self.namespace()
            .command(&binary().to_string_lossy())
            .arg(command)
            .args(["--instance", self.instance()])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What `sheer COMMAND --json` answers.
    ///
    /// # Panics
    /// When it fails or does not answer JSON.
    #[must_use]
    pub fn json(&self, command: &str) -> Value {
        let output = self.control(command, &["--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "sheer {command}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("sheer {command} --json is not JSON ({e}): {text}"))
    }

    /// The configuration file.
    ///
    /// # Panics
    /// When it runs by flags.
    #[must_use]
    pub fn config_file(&self) -> &Path {
        self.file().path()
    }

    /// Writes the configuration file anew, as [`SheerBuilder::config`] does, and does no more.
    pub fn rewrite(&self, text: &str) {
        self.file().write(&self.builder.interfaces, text);
    }

    /// Writes the configuration file anew and reloads it.
    ///
    /// # Panics
    /// When the reload fails.
    pub fn reload(&self, text: &str) {
        self.rewrite(text);
        let output = self.control("reload", &[]);
        assert!(output.status.success(), "sheer reload: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What `sheer services` shows of one service.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Value {
        let services = self.json("services");
        let found = services.as_array().into_iter().flatten().find(|service| service["name"] == name);
        found.unwrap_or_else(|| panic!("no service {name} in {services}")).clone()
    }

    /// How often the programs came to this verdict.
    ///
    /// # Panics
    /// When there is no such verdict.
    #[must_use]
    pub fn verdicts(&self, name: &str) -> u64 {
        let status = self.json("status");
        status["verdicts"][name].as_u64().unwrap_or_else(|| panic!("no verdict {name} in {status}"))
    }

    /// The record of the connection that came from this address and port, waiting for it.
    #[must_use]
    pub fn record_of(&self, client: SocketAddr) -> Value {
        let client = client.to_string();
        wait_until(&format!("the record of {client} is written"), PATIENCE, || {
            self.records().into_iter().find(|record| record["client"] == client)
        })
    }

    /// What bpftool shows of a map of the instance.
    #[must_use]
    pub fn map(&self, name: &str) -> String {
        dump_map(self.instance(), name)
    }

    fn file(&self) -> &ConfigFile {
        self.builder.file.as_ref().expect("sheer runs by flags")
    }

    /// kill -9; what is pinned stays. Go on with [`Sheer::restart`] or [`Sheer::cleanup`].
    pub fn kill(&mut self) {
        self.process.kill();
        self.footprint = Footprint::of(self.instance());
    }

    /// Starts it again as it was.
    #[must_use]
    pub fn restart(self) -> Sheer<'lab> {
        self.restart_with(|builder| builder)
    }

    /// Starts it again under the same name, with other options.
    #[must_use]
    pub fn restart_with(
        mut self,
        change: impl FnOnce(SheerBuilder<'lab>) -> SheerBuilder<'lab>,
    ) -> Sheer<'lab> {
        self.settled = true;
        let mut restarted = change(self.builder.clone()).start();
        restarted.footprint.add(&self.footprint);
        restarted
    }

    /// `sheer cleanup`, after which nothing may be left.
    ///
    /// # Panics
    /// When the command fails or something stays.
    pub fn cleanup(mut self) {
        self.process.kill();
        self.settled = true;
        let output = self.control("cleanup", &[]);
        assert!(output.status.success(), "sheer cleanup: {}", String::from_utf8_lossy(&output.stderr));
        assert_nothing_left(&self.builder.instance, self.builder.lab.middle(), &self.footprint);
    }

    /// kill -9 and no more: for a dead one whose name another one has taken. Its namespace goes with the lab.
    pub fn vanish(mut self) {
        self.process.kill();
        self.settled = true;
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for the end, after which nothing may be left; gives the exit status and all access records.
    ///
    /// # Panics
    /// When something stays.
    pub fn wait(mut self) -> (ExitStatus, Vec<Value>) {
        self.settled = true;
        let status = self.process.wait();
        assert_nothing_left(&self.builder.instance, self.builder.lab.middle(), &self.footprint);
        (status, self.records())
    }

    /// SIGTERM, a clean end, nothing left; gives all access records.
    ///
    /// # Panics
    /// When it does not end with 0, or something stays.
    pub fn stop(self) -> Vec<Value> {
        self.terminate();
        let (status, records) = self.wait();
        assert!(status.success(), "sheer ended with {status} on SIGTERM");
        records
    }

    /// As [`Sheer::stop`] where others keep rules or filters in the same namespace: looks only at what bears the
    /// instance's name or number.
    ///
    /// # Panics
    /// When it does not end with 0, or something stays.
    pub fn stop_beside_others(mut self) -> Vec<Value> {
        self.terminate();
        self.settled = true;
        let status = self.process.wait();
        assert!(status.success(), "sheer ended with {status} on SIGTERM");
        assert_nothing_named_left(&self.builder.instance, &self.footprint);
        self.records()
    }

    fn namespace(&self) -> &Namespace {
        self.builder.lab.middle()
    }
}

impl Drop for Sheer<'_> {
    /// For tests that failed: says what the product said, and removes what it left.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if std::thread::panicking() {
            let status = self.control("status", &["--json"]);
            eprintln!("--- sheer status: {}", String::from_utf8_lossy(&status.stdout));
            eprintln!("--- sheer's stderr:\n{}", self.process.stderr().join("\n"));
            eprintln!("--- access records:\n{}", self.process.stdout().join("\n"));
        }
        self.process.kill();
        let _ = self.control("cleanup", &[]);
        assert!(std::thread::panicking(), "the scenario ended without stop, wait or cleanup");
    }
}
