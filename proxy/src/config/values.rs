//! What a single value must be; the same for flags and for the file. Errors are half sentences for the user.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use sheer_common::abi::MAX_WORKERS;

use super::{error::quoted, suggest};
use crate::{record::AccessLog, socket::SourceMode, upstream::Destination};

/// Connections at the same time, over all workers, unless the user says otherwise.
pub const MAX_CONNECTIONS: usize = 100_000;
/// How long connections may go on after SIGTERM, unless the user says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Times beyond this are taken for mistakes.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Length of an interface's name: IFNAMSIZ of linux/if.h without the final zero.
const INTERFACE_NAME: usize = 15;

/// One worker for each CPU that this process may use.
#[must_use]
pub fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS as usize)
}

/// A time such as `5s` or `2h 4m`: not zero, and no longer than a year.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|_| {
        format!("{} is no time; write for example \"5s\", \"2h 4m\" or \"500ms\"", quoted(text))
    })?;
    if parsed.is_zero() {
        return Err("a time of zero ends things before they begin; give at least \"1ms\"".into());
    }
    if parsed > LONGEST {
        return Err(format!("{} is longer than a year, the longest time that is taken", quoted(text)));
    }
    Ok(parsed)
}

/// Whether a name can be that of a network device (`dev_valid_name` in the kernel's net/core/dev.c).
///
/// # Errors
/// What is wrong with it.
pub fn interface_name(name: &str) -> Result<(), String> {
    let wrong = match name {
        "" => "an empty name",
        "." | ".." => "a name that no interface can have",
        _ if name.len() > INTERFACE_NAME => "longer than the 15 bytes of an interface's name",
        _ if name.contains('/') => "no interface's name: it holds a `/`",
        _ if name.contains(':') => "no interface's name: it holds a `:`; an alias is a part of its interface",
        _ if name.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            "no interface's name: it holds white space"
        }
        _ => return Ok(()),
    };
    Err(format!("{} is {wrong}; look with: ip link", quoted(name)))
}

/// A number within bounds, both included.
///
/// # Errors
/// The bounds.
pub fn within<N: TryFrom<i128>>(number: i128, least: u32, most: u32) -> Result<N, String> {
    let bad = || match number {
        // Beyond what is read.
        i128::MIN | i128::MAX => format!("the number is out of range; write one from {least} to {most}"),
        _ => format!("{number} is out of range; write a number from {least} to {most}"),
    };
    if number < i128::from(least) || number > i128::from(most) {
        return Err(bad());
    }
    N::try_from(number).map_err(|_| bad())
}

/// A number of worker threads.
///
/// # Errors
/// How many there can be.
pub fn workers(number: i128) -> Result<usize, String> {
    within(number, 1, MAX_WORKERS)
}

/// A number of connections.
///
/// # Errors
/// That there must be one at least.
pub fn max_connections(number: i128) -> Result<usize, String> {
    within(number, 1, u32::MAX)
}

/// Where access records go: `-`, `off`, or a file.
///
/// # Errors
/// That nothing was given.
pub fn access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "" => Err("an empty name; write the name of a file, \"-\" for standard output, or \"off\"".into()),
        "-" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        path if path.contains('\0') => Err("a file's name cannot hold a zero byte".into()),
        path => Ok(AccessLog::File(PathBuf::from(path))),
    }
}

/// Whose address servers see.
///
/// # Errors
/// What there is, or which one was meant.
pub fn source(text: &str) -> Result<SourceMode, String> {
    const WORDS: [&str; 3] = ["client", "client-port", "proxy"];
    let mode: SourceMode = text.parse().map_err(|_| {
        let meant = match suggest::nearest(text, WORDS).first() {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => "write client, client-port, proxy or an IP address".to_owned(),
        };
        format!("{} is no source; {meant}", quoted(text))
    })?;
    match mode {
        SourceMode::Fixed(ip) if is_nobodys(ip) => {
            Err(format!("no connection can come from {ip}; give the address of a host"))
        }
        mode => Ok(mode),
    }
}

/// Where connections go on to.
///
/// # Errors
/// What there is, or why nothing can go there.
pub fn upstream(text: &str) -> Result<Destination, String> {
    let to: Destination = text.parse().map_err(|()| {
        let meant = if suggest::nearest(text, ["original"]).is_empty() {
            "write \"original\", whom the client asked for, or an address, as in \"10.0.0.5\", \"127.0.0.1:8080\" or \
             \"[2001:db8::5]:8080\"; names are not looked up, and there are no pools in this version"
        } else {
            "did you mean `original`?"
        };
        format!("{} is no upstream; {meant}", quoted(text))
    })?;
    let Some(ip) = to.ip() else { return Ok(to) };
    if is_nobodys(ip) {
        return Err(format!("no connection can go to {ip}; give the address of a server"));
    }
    if lacks_scope(to) {
        return Err(format!("{ip} says nothing without its interface; give another address of the server"));
    }
    Ok(to)
}

/// Not the address of a single host.
fn is_nobodys(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST
}

/// A link-local address of no known link (RFC 4007).
fn lacks_scope(to: Destination) -> bool {
    match to {
        Destination::Host(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        Destination::Fixed(to) => match to.socket_addr() {
            SocketAddr::V6(v6) => v6.ip().is_unicast_link_local() && v6.scope_id() == 0,
            SocketAddr::V4(_) => false,
        },
        Destination::Host(IpAddr::V4(_)) | Destination::Original => false,
    }
}

/// One of some words.
///
/// # Errors
/// What they are, or which one was meant.
pub fn choice<T: Copy>(text: &str, among: &[(&str, T)]) -> Result<T, String> {
    let words = among.iter().map(|(word, _)| *word);
    match among.iter().find(|(word, _)| *word == text) {
        Some((_, meant)) => Ok(*meant),
        None => Err(format!("{} is not known; {}", quoted(text), suggest::hint(text, words))),
    }
}
