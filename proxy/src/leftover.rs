//! What the kernel still has to deliver for sockets that the proxy has closed.
//!
//! A closed socket goes on in the kernel until its peer has taken the last byte and the FIN. Its packets need
//! the policy route: without it they would go to the real server, whose answer is a reset.

use std::{fs, net::IpAddr, time::Duration};

use tokio::time::{Instant, sleep};

use crate::route::AddressSet;

/// How long the last bytes may take.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// States that wait for nothing, as numbered in include/net/tcp_states.h: TIME_WAIT, LISTEN. The kernel
/// answers for them with what it has, and losing that costs the peer nothing but a repeated FIN.
const AT_REST: [&str; 2] = ["06", "0A"];

/// Returns when no socket on a foreign address has anything left to deliver, after five seconds at most.
pub async fn delivered(own: &AddressSet) {
    let end = Instant::now() + PATIENCE;
    while pending(own) && Instant::now() < end {
        sleep(LOOK_EVERY).await;
    }
}

/// Whether this network namespace has a TCP connection from an address that is not its own.
fn pending(own: &AddressSet) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        let table = fs::read_to_string(path).unwrap_or_default();
        table.lines().skip(1).filter_map(local_address_and_state).any(|(address, state)| {
            let foreign = !address.is_loopback() && !address.is_unspecified() && !own.contains(&address);
            foreign && !AT_REST.contains(&state)
        })
    })
}

/// Second and fourth column: `0100007F:0CEA`, the address in words of host order, and the state.
fn local_address_and_state(line: &str) -> Option<(IpAddr, &str)> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (hex, _port) = columns.next()?.split_once(':')?;
    let state = columns.nth(1)?;
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|i| u32::from_str_radix(&hex[i * 8..i * 8 + 8], 16).ok().map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some((address, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_tcp_are_read() {
        let v4 =
            "   0: 0100000A:0CEA 0200000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 1 1";
        assert_eq!(local_address_and_state(v4), Some(("10.0.0.1".parse().unwrap(), "01")));
        let v6 = "   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0";
        assert_eq!(local_address_and_state(v6), Some(("2001:db8::1".parse().unwrap(), "0A")));
        assert_eq!(local_address_and_state("  sl  local_address"), None);
    }
}
