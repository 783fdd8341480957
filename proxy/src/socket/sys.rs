//! The only unsafe code of the crate: socket options that neither rustix nor socket2 can set, and the promise
//! that a descriptor registered with the reactor stays open.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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
    set_ip_option(socket.as_fd(), libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Has `connect()` look for a source port from where it found the last one (`IP_LOCAL_PORT_RANGE`, ip(7); Linux 6.8 or
/// later, net/ipv4/inet_hashtables.c, `__inet_hash_connect`). The range that is named is cut to
/// `net.ipv4.ip_local_port_range`, and so is the same as ever; but without one the kernel tries all even ports before
/// the first odd one, 14,116 of them for each connection once they are in use, which takes more than a millisecond.
pub(super) fn search_ports_in_turn(socket: impl AsFd) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: c_int = 51;
    // Lowest port in the lower half, highest in the upper.
    set_ip_option(socket.as_fd(), IP_LOCAL_PORT_RANGE, 0xffff_0001)
}

/// A socket option of 32 bits at level IPPROTO_IP.
fn set_ip_option(socket: BorrowedFd<'_>, option: c_int, value: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the borrow, and the kernel reads exactly
    // `size_of::<u32>()` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
