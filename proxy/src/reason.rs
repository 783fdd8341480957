//! How a connection ended and whose doing that was: the metric's label, the record's field and the tests'
//! assertion are this one enum.

use std::fmt;
use std::io;

use serde::{Serialize, Serializer};

/// One of the two ends that the proxy stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Whose doing the end was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    Client,
    Server,
    Proxy,
    Network,
}

impl Blame {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Proxy => "proxy",
            Self::Network => "network",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal by $blame:ident,)*) => {
        /// How a connection ended. The labels are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CloseReason {
            $($(#[$doc])* $name,)*
        }

        impl CloseReason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Stable, snake_case.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            #[must_use]
            pub fn blame(self) -> Blame {
                match self {
                    $(Self::$name => Blame::$blame,)*
                }
            }
        }
    };
}

reasons! {
    /// Both directions ended in order, the client's first.
    ClientClosed = "client_closed" by Client,
    /// Both directions ended in order, the server's first.
    ServerClosed = "server_closed" by Server,
    /// The client sent RST, before or after the upstream connection stood.
    ClientReset = "client_reset" by Client,
    ServerReset = "server_reset" by Server,
    /// The client's host stopped answering, or became unreachable, in mid-connection.
    ClientLost = "client_lost" by Network,
    ServerLost = "server_lost" by Network,
    /// The server answered the SYN with RST.
    Refused = "refused" by Server,
    ConnectTimeout = "connect_timeout" by Network,
    /// ICMP unreachable in answer to the SYN, or no route.
    Unreachable = "unreachable" by Network,
    /// Every port of the source to this upstream is taken.
    SourceExhausted = "source_exhausted" by Proxy,
    /// The kernel did not let the proxy speak from the source asked for.
    SourceUnusable = "source_unusable" by Proxy,
    /// Client and server are neighbours: the server's answer would not come this way.
    SameSubnet = "same_subnet" by Proxy,
    /// No bytes either way for the idle timeout.
    IdleTimeout = "idle_timeout" by Proxy,
    /// One direction had ended, and the other gave no bytes for the half-close timeout.
    HalfCloseTimeout = "half_close_timeout" by Proxy,
    /// Cut off by a forced drain.
    Drained = "drained" by Proxy,
    /// The connection was addressed to the proxy's own listener, or would go on to it.
    Loop = "loop" by Proxy,
    /// The client has as many connections as the service's limit allows.
    ClientLimit = "client_limit" by Client,
    /// No service gives it to the proxy any more: the policy changed while it was being accepted.
    NoService = "no_service" by Proxy,
    /// A reload took its service away, and the config says to reset such connections.
    PolicyChanged = "policy_changed" by Proxy,
    /// Out of descriptors or kernel memory.
    NoResources = "no_resources" by Proxy,
    /// A fault of this program.
    InternalError = "internal_error" by Proxy,
}

impl CloseReason {
    /// What an error on an established connection to `side` means.
    #[must_use]
    pub fn of_stream_error(side: Side, error: &io::Error) -> Self {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let lost = matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable);
        match (side, lost) {
            (Side::Client, false) => Self::ClientReset,
            (Side::Client, true) => Self::ClientLost,
            (Side::Server, false) => Self::ServerReset,
            (Side::Server, true) => Self::ServerLost,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl Serialize for CloseReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_distinct_and_snake_case() {
        let labels: HashSet<_> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn the_index_of_a_reason_is_its_place_in_all() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
