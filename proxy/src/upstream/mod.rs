//! The connection onward: where it goes, and what its failure means.

use std::io;
use std::task::{Context, Poll};

use serde::Serialize;

use crate::reason::CloseReason;
use crate::socket::source::Started;
use crate::socket::{ClientAddr, OriginalDst, SourceError, SourceMode, Stream, UpstreamAddr, source};

/// Where connections go on to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// To whom the client asked for.
    #[default]
    Original,
    /// All to one address, whomever the client asked for.
    Fixed(UpstreamAddr),
}

impl Destination {
    #[must_use]
    pub fn of(self, original: OriginalDst) -> UpstreamAddr {
        match self {
            Self::Original => UpstreamAddr::new(original.socket_addr()),
            Self::Fixed(upstream) => upstream,
        }
    }
}

/// How the server is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub source: SourceMode,
    /// SO_MARK of the upstream socket; 0: none.
    pub mark: u32,
}

impl Route {
    pub fn start(&self, client: ClientAddr, upstream: UpstreamAddr) -> Result<Started, SourceError> {
        source::start_connect(self.source, self.mark, client, upstream)
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
