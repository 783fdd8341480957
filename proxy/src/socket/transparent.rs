//! Listeners that can accept a connection to anybody's address.
//!
//! The kernel program assigns a listener to the packet; the listener's own address is never asked for. It
//! is bound to loopback all the same, so that no host can reach it by its number.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for `accept()`, per listener.
pub const BACKLOG: i32 = 4096;

/// The listening sockets of one worker.
#[derive(Debug)]
pub struct Listeners {
    pub v4: TcpListener,
    /// None when the host has no IPv6.
    pub v6: Option<TcpListener>,
}

/// How listeners are made.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// IP_TRANSPARENT: needed to accept connections to foreign addresses; needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// SO_MARK, inherited by accepted sockets; 0 sets none. Needs CAP_NET_ADMIN or CAP_NET_RAW.
    pub mark: u32,
    pub backlog: i32,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{option} on the {family} listener was refused: {source}; it needs CAP_NET_ADMIN: run as root or grant the capability"
    )]
    Privilege { option: &'static str, family: &'static str, source: io::Error },
    #[error("the {family} listener could not be {step}: {source}{}", hint(source))]
    Socket { step: &'static str, family: &'static str, source: io::Error },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
        Some(libc::EADDRNOTAVAIL) => "; is the loopback interface up? (ip link set lo up)",
        _ => "",
    }
}

/// One transparent pair of listeners per worker: 127.0.0.1 and [::1], each on a port of the kernel's choice.
///
/// No SO_REUSEPORT: assigning into a reuseport group loses connections on kernels before 6.6.
pub fn bind_listeners(workers: usize, mark: u32, backlog: i32) -> Result<Vec<Listeners>, ListenError> {
    let options = ListenOptions { transparent: true, mark, backlog };
    (0..workers).map(|_| Listeners::bind(options)).collect()
}

impl Listeners {
    pub fn bind(options: ListenOptions) -> Result<Self, ListenError> {
        let v4 = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), options)?;
        let v6 = match listen(IpAddr::V6(Ipv6Addr::LOCALHOST), options) {
            Ok(listener) => Some(listener),
            Err(ListenError::Socket { source, .. }) if means_no_ipv6(&source) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }
}

fn means_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listen(ip: IpAddr, options: ListenOptions) -> Result<TcpListener, ListenError> {
    let (domain, family) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, "IPv4"),
        IpAddr::V6(_) => (Domain::IPV6, "IPv6"),
    };
    let failed = |step| move |source| ListenError::Socket { step, family, source };
    let refused = |option| move |source| ListenError::Privilege { option, family, source };

    let socket =
        Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(failed("made"))?;
    if options.transparent {
        match ip {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true).map_err(refused("IP_TRANSPARENT"))?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true).map_err(refused("IPV6_TRANSPARENT"))?,
        }
    }
    if options.mark != 0 {
        socket.set_mark(options.mark).map_err(refused("SO_MARK"))?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(true).map_err(failed("made IPv6 only"))?;
    }
    // Accepted sockets inherit both: no call per connection.
    socket.set_tcp_nodelay(true).map_err(failed("set to TCP_NODELAY"))?;
    socket.set_out_of_band_inline(true).map_err(failed("set to SO_OOBINLINE"))?;
    socket.bind(&SocketAddr::new(ip, 0).into()).map_err(failed("bound to loopback"))?;
    socket.listen(options.backlog).map_err(failed("listened on"))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_on_loopback_and_apart() {
        let options = ListenOptions { transparent: false, mark: 0, backlog: 16 };
        let (a, b) = (Listeners::bind(options).unwrap(), Listeners::bind(options).unwrap());
        let (a4, b4) = (a.v4.local_addr().unwrap(), b.v4.local_addr().unwrap());
        assert!(a4.ip().is_loopback() && a4.port() != 0);
        assert_ne!(a4, b4);
        if let Some(v6) = a.v6 {
            assert!(v6.local_addr().unwrap().ip().is_loopback());
        }
    }
}
