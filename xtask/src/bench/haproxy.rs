//! The peer: HAProxy as a transparent proxy that keeps the client's address, set up as well as we know how.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    lab::{Namespace, SERVER_V4, TO_CLIENT},
    process,
    service::Service,
};

/// Where HAProxy waits for the intercepted connections.
pub const PORT: u16 = 5000;

/// Policy routes of the lab's own namespace.
pub const MARK: &str = "1";
const TABLE: &str = "100";

/// TPROXY by iptables.
///
/// `! --syn` is not in the usual recipe. Without it the DIVERT rule also takes SYNs whose tuple is in TIME_WAIT, which
/// then never reach the listener: new connections stall for a second, and HAProxy would look worse than it is.
pub fn intercept(namespace: &Namespace, ports: &[u16]) -> Result<()> {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let (ports, on_port) = (ports.join(","), PORT.to_string());
    let mark = format!("{MARK}/{MARK}");
    iptables(namespace, &["-N", "DIVERT"])?;
    iptables(namespace, &["-A", "DIVERT", "-j", "MARK", "--set-mark", MARK])?;
    iptables(namespace, &["-A", "DIVERT", "-j", "ACCEPT"])?;
    let divert =
        ["-A", "PREROUTING", "-p", "tcp", "!", "--syn", "-m", "socket", "--transparent", "-j", "DIVERT"];
    iptables(namespace, &divert)?;
    let new = ["-A", "PREROUTING", "-i", TO_CLIENT, "-p", "tcp", "-m", "multiport", "--dports", &ports];
    let steer = ["-j", "TPROXY", "--on-port", &on_port, "--tproxy-mark", &mark];
    iptables(namespace, &[&new[..], &steer[..]].concat())?;
    route(namespace)
}

/// Marked packets are for this host.
pub fn route(namespace: &Namespace) -> Result<()> {
    namespace.ip(&["rule", "add", "fwmark", MARK, "lookup", TABLE])?;
    namespace.ip(&["route", "add", "local", "default", "dev", "lo", "table", TABLE])
}

fn iptables(namespace: &Namespace, arguments: &[&str]) -> Result<()> {
    let mut iptables = namespace.command("iptables");
    process::shield(&mut iptables);
    process::run(iptables.args(["-t", "mangle"]).args(arguments))
}

/// Starts HAProxy with so many threads and waits until it listens.
pub fn start(namespace: &Namespace, threads: u8, splice: bool) -> Result<Service> {
    let config = config(threads, splice);
    let mut haproxy = namespace.command("haproxy");
    // `-db`: in the foreground, one process. The configuration comes by stdin, so that no file is left.
    let mut service = Service::start("haproxy", haproxy.args(["-db", "-q", "-f", "/dev/stdin"]))?;
    service.write_stdin(config.as_bytes()).context("haproxy does not take its configuration")?;
    service.close_stdin();
    wait_listening(namespace)?;
    Ok(service)
}

/// Pipes of 1 MB, buffers of 64 KB. Splicing is asked for outright: `option splice-auto` leaves the choice to HAProxy,
/// which then splices nothing of such a load (`TotalSplicdedBytesOut: 0` in its `show info`). `maxconn` stays below what the limit of
/// open files allows, two for each connection and pipes. Nothing is logged.
fn config(threads: u8, splice: bool) -> String {
    let splice = if splice { "  option splice-request\n  option splice-response\n" } else { "" };
    format!(
        "global\n  nbthread {threads}\n  maxconn 6000\n  tune.pipesize 1048576\n  tune.bufsize 65536\n\
         defaults\n  mode tcp\n  maxconn 6000\n{splice}  timeout connect 5s\n  timeout client 1h\n  \
         timeout server 1h\n\
         frontend clients\n  bind 0.0.0.0:{PORT} transparent\n  default_backend servers\n\
         backend servers\n  source 0.0.0.0 usesrc clientip\n  server original {SERVER_V4}\n"
    )
}

fn wait_listening(namespace: &Namespace) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let listeners =
            process::capture(namespace.command("ss").args(["-Hltn", &format!("sport = :{PORT}")]))?;
        if !listeners.trim().is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("haproxy does not listen on port {PORT} after 10 s")
}

/// What `haproxy -v` calls itself, or why it cannot take part.
pub fn version() -> Result<String> {
    for program in ["haproxy", "iptables"] {
        if !process::exists(program) {
            bail!("{program} is not installed; the package of that name has it");
        }
    }
    let text = process::capture(Command::new("haproxy").arg("-v"))?;
    Ok(text.split_whitespace().nth(2).unwrap_or("unknown").to_owned())
}
