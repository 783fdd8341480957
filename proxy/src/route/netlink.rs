//! One rtnetlink socket, and its errors in our words.

use std::io;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::{Error as NetlinkError, Handle};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::RouteError;

/// An open rtnetlink socket; the task that serves it ends with this value.
///
/// Strict checking is on (`NETLINK_GET_STRICT_CHK`, Linux 4.20), so that a dump of one table is filtered by the
/// kernel: a router's main table can hold a million routes.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; must run inside a tokio runtime.
    pub(super) fn open() -> Result<Self, RouteError> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection_with_strict_check().map_err(|e| RouteError::Netlink {
                action: "open",
                object: "an rtnetlink socket".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Collects a dump.
pub(super) async fn collect<T>(
    object: &str,
    dump: impl Stream<Item = Result<T, NetlinkError>>,
) -> Result<Vec<T>, RouteError> {
    dump.try_collect().await.map_err(|e| refused("list", object.to_owned(), e))
}

/// Puts an error of the netlink library in our words.
pub(super) fn refused(action: &'static str, object: String, error: NetlinkError) -> RouteError {
    let NetlinkError::NetlinkError(answer) = error else {
        return RouteError::Netlink { action, object, reason: error.to_string() };
    };
    let source = answer.to_io();
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => RouteError::NotPermitted { action, object },
        errno => RouteError::Refused { action, object, source, hint: hint(errno) },
    }
}

/// Whether the library's error is this errno.
pub(super) fn is_errno(error: &NetlinkError, errno: Errno) -> bool {
    match error {
        NetlinkError::NetlinkError(answer) => raw_errno(&answer.to_io()) == Some(errno),
        _ => false,
    }
}

fn raw_errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

fn hint(errno: Option<Errno>) -> &'static str {
    match errno {
        Some(Errno::ACCESS) => {
            ". IPv6 is probably switched off on lo: sysctl -w net.ipv6.conf.lo.disable_ipv6=0"
        }
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => {
            ". The kernel was probably built without policy routing (CONFIG_IP_MULTIPLE_TABLES, \
             CONFIG_IPV6_MULTIPLE_TABLES): use one that has it"
        }
        Some(Errno::NODEV) => ". The interface went away in the meantime",
        Some(Errno::NOMEM | Errno::NOBUFS) => ". The kernel is out of memory for routes",
        _ => "",
    }
}
