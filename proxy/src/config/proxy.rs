//! What the workers need to know.

use std::time::Duration;

use crate::{
    record::{AccessLog, RecordFormat},
    relay::pipe::MAX_PIPES,
};

/// How long the proxy waits for others. Each may be late by [`crate::clock::TICK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the SYN to the server until its answer.
    pub connect: Duration,
    /// Without a byte either way. The default is what RFC 5382 (REQ-5) grants an established connection that passes
    /// through a middlebox unawares: 2 hours and 4 minutes. An idle connection costs little here.
    pub idle: Duration,
    /// Without a byte, once one direction has ended. The default is the least that RFC 5382 (REQ-5) allows for such
    /// a connection: 4 minutes.
    pub half_close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(2 * 3600 + 4 * 60),
            half_close: Duration::from_secs(4 * 60),
        }
    }
}

/// What the proxy shall do with the connections that reach it.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// SO_MARK of upstream sockets, by which the kernel program knows them; 0: none (needs no privilege).
    pub mark: u32,
    pub timeouts: Timeouts,
    /// Over all workers; fewer if the limit of open files is too low for them.
    pub max_connections: usize,
    /// Pipes for splice(2), per worker, likewise; 0: bulk is copied.
    pub max_pipes: usize,
    pub access_log: AccessLog,
    pub access_format: RecordFormat,
    /// Ties worker n to the n-th CPU that this process may use.
    pub pin_workers: bool,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            mark: 0,
            timeouts: Timeouts::default(),
            max_connections: super::values::MAX_CONNECTIONS,
            max_pipes: MAX_PIPES,
            access_log: AccessLog::default(),
            access_format: RecordFormat::default(),
            pin_workers: false,
        }
    }
}
