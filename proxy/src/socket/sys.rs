//! The only unsafe code of the crate: a socket option that neither rustix nor socket2 can set, and the promise
//! that a descriptor registered with the reactor stays open.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// A descriptor in the reactor of the runtime. It can be looked at but not exchanged, so that the reactor never
/// holds a number that means something else by now.
#[derive(Debug)]
pub(crate) struct Registered(AsyncFd<OwnedFd>);

impl Deref for Registered {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }
}

/// Registers a nonblocking descriptor; must be called on a thread of a runtime. A failure gives it back.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> Result<Registered, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` is open, always reports the same number, and is owned by the `AsyncFd` from here on;
    // `Registered` hands out shared references only, through which an `OwnedFd` can be neither closed nor replaced.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
        .map(Registered)
        .map_err(AsyncFdRegisterError::into_parts)
}

/// Leaves the choice of the source port to `connect()`, which then only needs the 4-tuple to be free, not
/// the port (`IP_BIND_ADDRESS_NO_PORT`, ip(7)). Linux takes it at level IPPROTO_IP for IPv6 sockets too.
pub(super) fn set_bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the descriptor is open for the length of the borrow, and the kernel reads exactly
    // `size_of::<c_int>()` bytes of `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
