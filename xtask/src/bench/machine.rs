use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::haproxy;
use crate::process;

/// What the figures depend on.
#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub sheer: String,
    pub haproxy: String,
    pub nftables: String,
    pub iptables: String,
    pub congestion_control: String,
}

impl Machine {
    pub fn describe(sheer: &Path, congestion: &str) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let memory = meminfo.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok());
        Ok(Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: thread::available_parallelism().map_or(1, Into::into),
            memory_gib: memory.unwrap_or(0) >> 20,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            sheer: process::capture(Command::new(sheer).arg("--version"))?.trim().to_owned(),
            haproxy: haproxy::version()?,
            nftables: version("nft")?,
            iptables: version("iptables")?,
            congestion_control: congestion.to_owned(),
        })
    }

    pub fn sentence(&self) -> String {
        let Self { cpu, cores, memory_gib, kernel, sheer, haproxy, nftables, iptables, congestion_control } =
            self;
        format!(
            "{cpu}, {cores} cores for client, proxy and server together, {memory_gib} GiB, Linux {kernel}; {sheer}, \
             HAProxy {haproxy}, {nftables}, {iptables}; congestion control {congestion_control} everywhere"
        )
    }
}

/// The share of all cores, 0 to 1, that is in use while the benchmark itself rests: `cpu` of proc_stat(5).
///
/// # Errors
/// When /proc/stat is not as expected.
pub fn disturbance() -> Result<f64> {
    let before = Ticks::read()?;
    thread::sleep(Duration::from_secs(1));
    let after = Ticks::read()?;
    let (busy, total) = (after.busy - before.busy, after.total - before.total);
    Ok(if total == 0 { 0.0 } else { busy as f64 / total as f64 })
}

struct Ticks {
    busy: u64,
    total: u64,
}

impl Ticks {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let total = ticks.iter().sum();
        // user nice system idle iowait …: waiting for a disk leaves the core free.
        let free = ticks.get(3).context("/proc/stat has no idle time")? + ticks.get(4).unwrap_or(&0);
        Ok(Self { busy: total - free, total })
    }
}

/// The first line of `--version`, without nft's nicknames: `nftables v1.0.6 (…)`.
fn version(program: &str) -> Result<String> {
    let said = process::capture(Command::new(program).arg("--version"))?;
    let said = said.lines().next().unwrap_or_default();
    Ok(said.split(" (Lester").next().unwrap_or_default().trim().to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':')).map(str::trim)
}
