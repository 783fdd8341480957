//! What `--fix` does: only what cannot harm anybody else, and it says what it did.

use std::{fmt, fs, io};

use netlink_packet_route::link::LinkMessage;
use rtnetlink::LinkMessageBuilder;
use serde::Serialize;

use super::{Report, netlink::Netlink, sysctl};
use crate::{dataplane::pins::mount_bpffs, route};

/// A cure that is safe to do unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// `ip link set lo up`.
    LoopbackUp,
    /// Mount bpffs on /sys/fs/bpf.
    MountBpffs,
    /// Write a sysctl.
    Sysctl {
        /// Its name, as in `net.core.somaxconn`.
        name: &'static str,
        /// What is written.
        value: u64,
    },
}

/// What was done about a finding, or why it could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fixed {
    /// The finding's id.
    pub id: &'static str,
    /// What it is about.
    pub object: String,
    /// Whether it worked.
    pub done: bool,
    /// What was before and what is now, or why not.
    pub what: String,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = if self.done { "[fixed]" } else { "[not fixed]" };
        write!(f, "{tag} {}: {}", self.object, self.what)
    }
}

/// Does what is safe about the findings of a report, in their order.
pub async fn fix(report: &Report) -> Vec<Fixed> {
    let mut fixed = Vec::new();
    for finding in report.findings() {
        let Some(fix) = &finding.fix else { continue };
        let outcome = match fix {
            Fix::LoopbackUp => raise_loopback().await,
            Fix::MountBpffs => mount_bpffs()
                .map(|()| "bpffs was not mounted on /sys/fs/bpf, and is now".to_owned())
                .map_err(|e| e.to_string()),
            Fix::Sysctl { name, value } => write_sysctl(name, *value),
        };
        let done = outcome.is_ok();
        let what = outcome.unwrap_or_else(|why| why);
        fixed.push(Fixed { id: finding.id, object: finding.object.clone(), done, what });
    }
    fixed
}

async fn raise_loopback() -> Result<String, String> {
    let links = route::links().await.map_err(|e| e.to_string())?;
    let lo = route::find_link(&links, "lo").map_err(|e| e.to_string())?;
    let netlink = Netlink::open().map_err(|e| e.to_string())?;
    let up = LinkMessageBuilder::<LinkMessage>::default().index(lo.index).up().build();
    match netlink.handle.link().set(up).execute().await {
        Ok(()) => Ok("was down, and is up now".to_owned()),
        Err(e) => Err(format!("could not be set up: {e}; run as root")),
    }
}

fn write_sysctl(name: &str, value: u64) -> Result<String, String> {
    let path = sysctl::path(name);
    let change = || -> io::Result<String> {
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value.to_string())?;
        Ok(before.trim().to_owned())
    };
    match change() {
        Ok(before) => Ok(format!(
            "was {before}, is {value} now, until the next boot; to keep it, write `{name} = {value}` to a file in \
             /etc/sysctl.d"
        )),
        Err(e) => {
            Err(format!("could not be written: {e}; run as root, on the host rather than in a container"))
        }
    }
}
