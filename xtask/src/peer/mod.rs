//! The two ends of the demonstration: a web server that writes down whom it talks to, and a client that asks it.
//!
//! Each is a subcommand of this program that runs inside its namespace and tells the demonstration, one JSON line each,
//! what it saw. Neither knows of Sheer.

pub mod fetch;
pub mod serve;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A connection as one of its ends sees it.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Seen {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The request line at the server, the body of the answer at the client.
    pub text: String,
}
