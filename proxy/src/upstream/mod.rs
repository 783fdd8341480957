//! The connection onward: where it goes, and what its failure means.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::task::{Context, Poll};

use serde::{Serialize, Serializer};

use crate::reason::CloseReason;
use crate::socket::source::Started;
use crate::socket::{ClientAddr, OriginalDst, SourceError, SourceMode, Stream, UpstreamAddr, UsedUp, source};

/// Where connections go on to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// To whom the client asked for.
    #[default]
    Original,
    /// All to one host, to the port that the client asked for.
    Host(IpAddr),
    /// All to one address and port, whomever the client asked for.
    Fixed(UpstreamAddr),
}

impl Destination {
    /// Whom a connection goes on to that asked for `original`.
    #[must_use]
    pub fn of(self, original: OriginalDst) -> UpstreamAddr {
        match self {
            Self::Original => UpstreamAddr::new(original.socket_addr()),
            Self::Host(ip) => UpstreamAddr::new(SocketAddr::new(ip, original.port())),
            Self::Fixed(upstream) => upstream,
        }
    }

    /// The one host that all connections go to, if it is one.
    #[must_use]
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Original => None,
            Self::Host(ip) => Some(ip),
            Self::Fixed(upstream) => Some(upstream.ip()),
        }
    }
}

/// As a config writes it: `original`, an address, or an address with a port.
impl FromStr for Destination {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "original" {
            return Ok(Self::Original);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Host(ip.to_canonical()));
        }
        let address: SocketAddr = text.parse().map_err(|_| ())?;
        if address.port() == 0 { Err(()) } else { Ok(Self::Fixed(UpstreamAddr::new(address))) }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Original => f.write_str("original"),
            Self::Host(ip) => ip.fmt(f),
            Self::Fixed(upstream) => upstream.fmt(f),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How the server is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub source: SourceMode,
    /// SO_MARK of the upstream socket; 0: none.
    pub mark: u32,
    /// The server is on this host and is whom the client asked for: see [`source::Port::Apart`].
    pub to_itself: bool,
}

impl Route {
    pub fn start(
        &self,
        client: ClientAddr,
        upstream: UpstreamAddr,
        used_up: &mut UsedUp,
    ) -> Result<Started, SourceError> {
        let port = if self.to_itself { source::Port::Apart } else { source::Port::Any };
        source::start_connect(self.source, self.mark, client, upstream, port, used_up)
    }
}

/// Ready when the server has answered; the error as the record names it.
pub fn poll_connected(stream: &Stream, cx: &mut Context<'_>) -> Poll<Result<(), CloseReason>> {
    stream.poll_connected(cx).map_err(|error| reason_of(&error))
}

/// What a connection attempt's error means.
#[must_use]
pub fn reason_of(error: &io::Error) -> CloseReason {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => CloseReason::Refused,
        // The connection stood, if only for a moment.
        Some(libc::ECONNRESET | libc::EPIPE) => CloseReason::ServerReset,
        Some(libc::ETIMEDOUT) => CloseReason::ConnectTimeout,
        Some(
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EACCES
            | libc::EPERM,
        ) => CloseReason::Unreachable,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => CloseReason::SourceExhausted,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => CloseReason::NoResources,
        _ => CloseReason::InternalError,
    }
}

/// What it means that an attempt could not be started.
#[must_use]
pub fn reason_of_start(error: &SourceError) -> CloseReason {
    match error {
        SourceError::Exhausted { .. } => CloseReason::SourceExhausted,
        SourceError::Family { .. } | SourceError::Unusable { .. } => CloseReason::SourceUnusable,
        SourceError::Resources { .. } => CloseReason::NoResources,
        SourceError::Connect { source, .. } => reason_of(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let reason = |code| reason_of(&io::Error::from_raw_os_error(code));
        assert_eq!(reason(libc::ECONNREFUSED), CloseReason::Refused);
        assert_eq!(reason(libc::EHOSTUNREACH), CloseReason::Unreachable);
        assert_eq!(reason(libc::ENETUNREACH), CloseReason::Unreachable);
        assert_eq!(reason(libc::ETIMEDOUT), CloseReason::ConnectTimeout);
        assert_eq!(reason(libc::EADDRNOTAVAIL), CloseReason::SourceExhausted);
    }
}
