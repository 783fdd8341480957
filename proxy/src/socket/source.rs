//! The upstream socket: whose address it speaks from, and the start of its connection.
//!
//! A source that cannot be had is an error, never a silent change to another one. The single exception is
//! asked for by name: `client-port` gives up the port (not the address) when the pair is taken, and says so. The
//! steps are [`SourceStep`]'s.

use std::fmt;
use std::io;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};

use serde::{Serialize, Serializer};
use socket2::{Domain, Protocol, Socket, Type};

use super::addr::{ClientAddr, SourceAddr, UpstreamAddr};
use super::ports::UsedUp;
use super::sys;

/// Which address the server sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceMode {
    /// The client's address, a port of the kernel's choice.
    #[default]
    Client,
    /// The client's address and port; when the pair is taken, its address alone.
    ClientPort,
    /// This host's own address, by its routes.
    Proxy,
    /// One given address, a port of the kernel's choice.
    Fixed(IpAddr),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("source = \"{0}\": expected \"client\", \"client-port\", \"proxy\" or an IP address")]
pub struct ParseSourceModeError(String);

impl FromStr for SourceMode {
    type Err = ParseSourceModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "client" => Ok(Self::Client),
            "client-port" => Ok(Self::ClientPort),
            "proxy" => Ok(Self::Proxy),
            other => other
                .parse()
                .map(|ip: IpAddr| Self::Fixed(ip.to_canonical()))
                .map_err(|_: AddrParseError| ParseSourceModeError(other.to_owned())),
        }
    }
}

impl fmt::Display for SourceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("client"),
            Self::ClientPort => f.write_str("client-port"),
            Self::Proxy => f.write_str("proxy"),
            Self::Fixed(ip) => ip.fmt(f),
        }
    }
}

impl Serialize for SourceMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a connection's source came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SourceStep {
    /// The client's address and port.
    Port,
    /// The client's address, or the one that the config gives, and a port of the kernel's choice.
    Address,
    /// This host's own address.
    Proxy,
    /// Nothing: every port is in use.
    Refused,
}

impl SourceStep {
    pub const ALL: [Self; 4] = [Self::Port, Self::Address, Self::Proxy, Self::Refused];

    /// Stable, as records and counters name it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Address => "address",
            Self::Proxy => "proxy",
            Self::Refused => "refused",
        }
    }
}

impl Serialize for SourceStep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

/// Why an upstream connection could not even be started.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// EADDRNOTAVAIL or EADDRINUSE: every port of this source to this upstream is taken.
    #[error(
        "every port from {} to {upstream} is in use: {source}; connections are refused. Widen \
         net.ipv4.ip_local_port_range, or spread them over more servers; a port stays in use for a minute after its \
         connection", whose(*from)
    )]
    Exhausted { from: IpAddr, upstream: UpstreamAddr, source: io::Error },
    #[error(
        "the fixed source {fixed} and the upstream {upstream} are of different IP versions; set a source for each"
    )]
    Family { fixed: IpAddr, upstream: UpstreamAddr },
    #[error(
        "the source {from} was refused by {call}: {source}; speaking from a foreign address needs CAP_NET_ADMIN"
    )]
    Unusable { from: IpAddr, call: &'static str, source: io::Error },
    #[error(
        "no descriptor or memory for the connection to {upstream}: {source}; raise the limit of open files"
    )]
    Resources { upstream: UpstreamAddr, source: io::Error },
    /// The network said no at once: no route, prohibited, refused.
    #[error("connecting to {upstream} failed at once: {source}")]
    Connect { upstream: UpstreamAddr, source: io::Error },
}

/// A connection on its way: SYN sent, nothing heard yet.
#[derive(Debug)]
pub struct Started {
    pub fd: OwnedFd,
    pub source: SourceAddr,
    pub step: SourceStep,
}

/// Which ports of the client's address may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any.
    Any,
    /// Only those that clients do not choose by themselves: neither the range of Linux nor that of RFC 6335, section 6.
    ///
    /// Where the server is on this host and is whom the client asked for, its socket has the tuple that ours towards
    /// the client has, but for the client's port. The two must never be the same, also not later.
    Apart,
}

const APART: std::ops::RangeInclusive<u16> = 1024..=32767;

/// Makes a nonblocking socket that speaks from the source that `mode` names, marked with `mark` (0: no mark),
/// and starts its connection.
pub fn start_connect(
    mode: SourceMode,
    mark: u32,
    client: ClientAddr,
    upstream: UpstreamAddr,
    port: Port,
    used_up: &mut UsedUp,
) -> Result<Started, SourceError> {
    let address = match mode {
        SourceMode::Proxy => None,
        SourceMode::Client | SourceMode::ClientPort => Some(client.ip()),
        SourceMode::Fixed(ip) => Some(ip),
    };
    if let Some(fixed) = address.filter(|ip| ip.is_ipv4() != upstream.ip().is_ipv4()) {
        return Err(SourceError::Family { fixed, upstream });
    }
    if mode == SourceMode::ClientPort && port == Port::Any {
        match attempt(Some(client.socket_addr()), SourceStep::Port, mark, upstream) {
            Err(SourceError::Exhausted { .. }) => {}
            other => return other,
        }
    }
    if let (Port::Apart, Some(ip)) = (port, address) {
        return apart(ip, mark, upstream);
    }
    let from = address.unwrap_or(unspecified(upstream));
    if used_up.contains(from, upstream) {
        let source = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        return Err(SourceError::Exhausted { from, upstream, source });
    }
    let step = if address.is_some() { SourceStep::Address } else { SourceStep::Proxy };
    let started = attempt(address.map(|ip| SocketAddr::new(ip, 0)), step, mark, upstream);
    if let Err(SourceError::Exhausted { .. }) = started {
        used_up.note(from, upstream);
    }
    started
}

/// From one of the ports that clients do not choose; the next one each time, so that a port rests after its use.
fn apart(ip: IpAddr, mark: u32, upstream: UpstreamAddr) -> Result<Started, SourceError> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const TRIES: usize = 64;
    let ports = APART.end() - APART.start() + 1;
    let mut outcome = Err(SourceError::Exhausted {
        from: ip,
        upstream,
        source: io::Error::from_raw_os_error(libc::EADDRNOTAVAIL),
    });
    for _ in 0..TRIES {
        let port = APART.start() + NEXT.fetch_add(1, Ordering::Relaxed) % ports;
        outcome = attempt(Some(SocketAddr::new(ip, port)), SourceStep::Address, mark, upstream);
        if !matches!(outcome, Err(SourceError::Exhausted { .. })) {
            break;
        }
    }
    outcome
}

fn attempt(
    bind: Option<SocketAddr>,
    step: SourceStep,
    mark: u32,
    upstream: UpstreamAddr,
) -> Result<Started, SourceError> {
    let socket = make(mark, upstream)?;
    if bind.is_none_or(|from| from.port() == 0) {
        // Before Linux 6.3 there is no such option; what it is for is only speed.
        let _ = sys::search_ports_in_turn(&socket);
    }
    if let Some(from) = bind {
        bind_source(&socket, from, upstream)?;
    }
    let from = || bind.map_or(unspecified(upstream), |addr| addr.ip());
    match socket.connect(&upstream.socket_addr().into()) {
        Ok(()) => {}
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS) => {}
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => {
                return Err(SourceError::Exhausted { from: from(), upstream, source: error });
            }
            _ => return Err(SourceError::Connect { upstream, source: error }),
        },
    }
    // The kernel chose the port, and with `proxy` the address, inside connect().
    let fd = OwnedFd::from(socket);
    let local = rustix::net::getsockname(&fd)
        .map_err(io::Error::from)
        .and_then(socket_addr)
        .map_err(|source| SourceError::Connect { upstream, source })?;
    Ok(Started { fd, source: SourceAddr::new(local), step })
}

fn make(mark: u32, upstream: UpstreamAddr) -> Result<Socket, SourceError> {
    let domain = Domain::for_address(upstream.socket_addr());
    let resources = |source| SourceError::Resources { upstream, source };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(resources)?;
    if mark != 0 {
        socket.set_mark(mark).map_err(|source| SourceError::Unusable {
            from: unspecified(upstream),
            call: "SO_MARK",
            source,
        })?;
    }
    socket.set_tcp_nodelay(true).map_err(resources)?;
    // Without it an urgent byte, as telnet sends it, would not be read at all.
    socket.set_out_of_band_inline(true).map_err(resources)?;
    Ok(socket)
}

fn bind_source(socket: &Socket, from: SocketAddr, upstream: UpstreamAddr) -> Result<(), SourceError> {
    let unusable = |call| move |source| SourceError::Unusable { from: from.ip(), call, source };
    // Addresses of this host's loopback network need no permission, which lets unprivileged tests bind them.
    if !from.ip().is_loopback() {
        if from.is_ipv4() {
            socket.set_ip_transparent_v4(true).map_err(unusable("IP_TRANSPARENT"))?;
        } else {
            socket.set_ip_transparent_v6(true).map_err(unusable("IPV6_TRANSPARENT"))?;
        }
    }
    if from.port() == 0 {
        sys::set_bind_address_no_port(socket).map_err(unusable("IP_BIND_ADDRESS_NO_PORT"))?;
    } else {
        socket.set_reuse_address(true).map_err(unusable("SO_REUSEADDR"))?;
    }
    socket.bind(&from.into()).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => SourceError::Exhausted { from: from.ip(), upstream, source },
        _ => SourceError::Unusable { from: from.ip(), call: "bind", source },
    })
}

fn unspecified(upstream: UpstreamAddr) -> IpAddr {
    match upstream.ip() {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

fn whose(from: IpAddr) -> String {
    if from.is_unspecified() { "this host's own address".to_owned() } else { from.to_string() }
}

/// The address that the kernel reported, if it is of an IP family.
pub(crate) fn socket_addr(any: rustix::net::SocketAddrAny) -> io::Result<SocketAddr> {
    SocketAddr::try_from(any).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn modes_parse_and_print_the_same() {
        for text in ["client", "client-port", "proxy", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(text.parse::<SourceMode>().unwrap().to_string(), text);
        }
        assert_eq!("::ffff:192.0.2.1".parse(), Ok(SourceMode::Fixed("192.0.2.1".parse().unwrap())));
        let error = "clients".parse::<SourceMode>().unwrap_err().to_string();
        assert!(error.contains("\"clients\"") && error.contains("client-port"), "{error}");
    }

    #[test]
    fn a_source_of_the_other_family_is_refused() {
        let fixed = "2001:db8::1".parse().unwrap();
        let client = ClientAddr::new("127.0.0.1:1".parse().unwrap());
        let upstream = UpstreamAddr::new("127.0.0.1:2".parse().unwrap());
        let error =
            start_connect(SourceMode::Fixed(fixed), 0, client, upstream, Port::Any, &mut UsedUp::default())
                .unwrap_err();
        assert!(matches!(error, SourceError::Family { .. }), "{error}");
    }

    #[test]
    fn the_client_address_is_the_source_and_its_port_is_given_up_loudly() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = UpstreamAddr::new(server.local_addr().unwrap());
        let client = ClientAddr::new("127.0.0.9:0".parse().unwrap());
        let first = start_connect(SourceMode::Client, 0, client, upstream, Port::Any, &mut UsedUp::default())
            .unwrap();
        assert_eq!(first.source.ip(), client.ip());
        assert_eq!(server.accept().unwrap().1, first.source.socket_addr());

        let same = ClientAddr::new(first.source.socket_addr());
        let second =
            start_connect(SourceMode::ClientPort, 0, same, upstream, Port::Any, &mut UsedUp::default())
                .unwrap();
        assert_eq!((first.step, second.step), (SourceStep::Address, SourceStep::Address));
        assert_eq!(second.source.ip(), client.ip());
        assert_ne!(second.source.port(), first.source.port());
    }

    #[test]
    fn ipv6_sources_work_the_same() {
        // A host without IPv6 has nothing to test here.
        let Ok(server) = TcpListener::bind("[::1]:0") else { return };
        let upstream = UpstreamAddr::new(server.local_addr().unwrap());
        let client = ClientAddr::new("[::1]:9".parse().unwrap());
        let started =
            start_connect(SourceMode::Client, 0, client, upstream, Port::Any, &mut UsedUp::default())
                .unwrap();
        assert_eq!(server.accept().unwrap().1, started.source.socket_addr());
        assert_eq!(started.source.ip(), client.ip());
    }

    #[test]
    fn what_is_known_to_be_used_up_is_not_tried_again() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = UpstreamAddr::new(server.local_addr().unwrap());
        let free = TcpListener::bind("127.0.0.7:0").unwrap().local_addr().unwrap();
        let client = ClientAddr::new(free);
        let mut used_up = UsedUp::default();
        used_up.note(client.ip(), upstream);
        let error =
            start_connect(SourceMode::Client, 0, client, upstream, Port::Any, &mut used_up).unwrap_err();
        assert!(matches!(error, SourceError::Exhausted { .. }), "{error}");
        // The client's own port is another question.
        let started =
            start_connect(SourceMode::ClientPort, 0, client, upstream, Port::Any, &mut used_up).unwrap();
        assert_eq!(started.source.socket_addr(), free);
        used_up.forget();
        start_connect(SourceMode::Client, 0, client, upstream, Port::Any, &mut used_up).unwrap();
    }

    #[test]
    fn client_port_keeps_a_free_port() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = UpstreamAddr::new(server.local_addr().unwrap());
        let free = TcpListener::bind("127.0.0.8:0").unwrap().local_addr().unwrap();
        let started = start_connect(
            SourceMode::ClientPort,
            0,
            ClientAddr::new(free),
            upstream,
            Port::Any,
            &mut UsedUp::default(),
        )
        .unwrap();
        assert_eq!(started.source.socket_addr(), free);
        assert_eq!(started.step, SourceStep::Port);
    }
}
