//! One newtype per role that an address plays in a connection, so that two roles cannot be swapped.
//!
//! Every constructor turns an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) into plain IPv4: a
//! mapped address must neither reach the wire nor a log.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            IpAddr::V6(_) => addr,
        },
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes the address, as plain IPv4 if it is IPv4-mapped.
            #[must_use]
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            #[must_use]
            pub fn socket_addr(self) -> SocketAddr {
                self.0
            }

            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// In host byte order.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }
    };
}

address! {
    /// Who opened the connection.
    ClientAddr
}
address! {
    /// Whom the client asked for; the local address of the accepted socket.
    OriginalDst
}
address! {
    /// Where the upstream connection comes from, as the server sees it.
    SourceAddr
}
address! {
    /// Whom the proxy connects to.
    UpstreamAddr
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mapped_addresses_become_plain_ipv4() {
        let addr = ClientAddr::new(parse("[::ffff:192.0.2.7]:1234"));
        assert_eq!(addr.to_string(), "192.0.2.7:1234");
        assert_eq!(addr.socket_addr(), parse("192.0.2.7:1234"));
        assert_eq!(serde_json::to_string(&addr).unwrap(), "\"192.0.2.7:1234\"");
    }

    #[test]
    fn ipv6_and_its_scope_stay_as_they_are() {
        for text in ["[2001:db8::1]:443", "[fe80::1%3]:22", "[::1]:1"] {
            assert_eq!(OriginalDst::new(parse(text)).to_string(), text);
        }
    }
}
