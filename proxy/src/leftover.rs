//! What the kernel still has in hand for the proxy when it leaves.
//!
//! A closed socket goes on in the kernel until its peer has taken the last byte and the FIN, and a handshake
//! goes on at its listener. Their packets need listener and policy route: without them they would go to the real
//! server, whose answer is a reset.

use std::{fs, net::IpAddr, time::Duration};

use tokio::time::{Instant, sleep};

use crate::route::AddressSet;

/// How long the last bytes may take.
const DELIVERY: Duration = Duration::from_secs(5);
/// How long the last ACK of a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A TCP socket of this network namespace, as /proc/net/tcp lists it.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local: IpAddr,
    state: State,
    /// No process has it any more.
    orphaned: bool,
}

/// States as numbered in include/net/tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A handshake at a listener.
    SynRecv,
    /// Waits for nothing: TIME_WAIT, LISTEN. Losing what the kernel answers for it costs the peer a repeated FIN.
    AtRest,
    Other,
}

/// Returns when no handshake on a foreign address is under way, after a second at most.
pub async fn handshakes_done(own: &AddressSet) {
    none_left(own, HANDSHAKE, |s| s.state == State::SynRecv).await;
}

/// Returns when no closed socket on a foreign address has anything left to deliver, after five seconds at most.
pub async fn delivered(own: &AddressSet) {
    none_left(own, DELIVERY, |s| s.orphaned && s.state == State::Other).await;
}

async fn none_left(own: &AddressSet, patience: Duration, which: impl Fn(&Socket) -> bool) {
    let end = Instant::now() + patience;
    while sockets().iter().any(|s| is_foreign(s.local, own) && which(s)) && Instant::now() < end {
        sleep(LOOK_EVERY).await;
    }
}

fn is_foreign(address: IpAddr, own: &AddressSet) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !own.contains(&address)
}

fn sockets() -> Vec<Socket> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(read).collect()
}

/// The columns: number, `0100007F:0CEA` (the address in words of host order), the peer's, state, queues, timer,
/// retransmissions, user, timeout, inode.
fn read(line: &str) -> Option<Socket> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (hex, _port) = columns.get(1)?.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|i| u32::from_str_radix(hex.get(i * 8..i * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let local = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    let state = match *columns.get(3)? {
        "03" => State::SynRecv,
        "06" | "0A" => State::AtRest,
        _ => State::Other,
    };
    Some(Socket { local, state, orphaned: *columns.get(9)? == "0" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_tcp_are_read() {
        let v4 =
            "   0: 0100000A:0CEA 0200000A:D431 03 00000000:00000000 00:00000000 00000000     0        0 0 1";
        let socket =
            |local: &str, state, orphaned| Some(Socket { local: local.parse().unwrap(), state, orphaned });
        assert_eq!(read(v4), socket("10.0.0.1", State::SynRecv, true));
        let v6 = "   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(read(v6), socket("2001:db8::1", State::AtRest, false));
        assert_eq!(read("  sl  local_address rem_address   st"), None);
    }
}
