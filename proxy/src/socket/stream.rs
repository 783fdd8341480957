//! A nonblocking TCP stream registered with the runtime's reactor once, for both directions.
//!
//! The reactor is edge-triggered. What it reported is remembered until a call shows that it is used up, and a
//! short read or write shows that as well as EAGAIN does (epoll(7), question 9): the extra call is spared.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;

use super::sys::{self, Registered};

#[derive(Debug)]
pub struct Stream {
    io: Registered,
}

impl Stream {
    /// Takes a nonblocking socket; must be called on a thread of a runtime. On failure the peer gets an RST.
    pub fn register(fd: OwnedFd) -> io::Result<Self> {
        match sys::register(fd, Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY) {
            Ok(io) => Ok(Self { io }),
            Err((fd, error)) => {
                reset(&fd);
                Err(error)
            }
        }
    }

    /// The end of a connection attempt: Ok once established.
    pub fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let guard = ready!(self.io.poll_write_ready(cx))?;
        let ready = guard.ready();
        if ready.is_error() || ready.is_write_closed() {
            return Poll::Ready(self.take_error().map_or(Ok(()), Err));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there; 0 is the end of the stream.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_read_ready(cx))?;
            match rustix::net::recv(self.io.get_ref(), &mut *buffer, RecvFlags::empty()) {
                Ok((_, n)) => {
                    if n > 0 && n < buffer.len() && !self.saw_urgent() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Reads what is there now, without asking the reactor first.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.io.get_ref(), &mut *buffer, RecvFlags::DONTWAIT)?.1)
    }

    /// The peer has sent urgent data (RFC 6093), once in the connection's life. A read ends before and after an urgent
    /// byte, so that a short one says nothing, and splice(2) does not get past it.
    pub fn saw_urgent(&self) -> bool {
        // Asks the reactor's memory, not the kernel; what it saw is never forgotten.
        self.io.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Moves up to `limit` bytes into an empty pipe; 0 is the end of the stream.
    pub fn poll_splice_into(
        &self,
        cx: &mut Context<'_>,
        pipe: BorrowedFd<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_read_ready(cx))?;
            match splice(self.io.as_fd(), pipe, limit) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes as much as the socket takes now, without asking the reactor first; 0 when it takes nothing.
    pub fn write_now(&self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::net::send(self.io.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    if n < bytes.len() {
                        self.forget_writable(cx)?;
                    }
                    return Ok(n);
                }
                Err(Errno::AGAIN) => {
                    self.forget_writable(cx)?;
                    return Ok(0);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves up to `limit` bytes out of a pipe, as [`Stream::write_now`] does.
    pub fn splice_from_now(
        &self,
        cx: &mut Context<'_>,
        pipe: BorrowedFd<'_>,
        limit: usize,
    ) -> io::Result<usize> {
        loop {
            match splice(pipe, self.io.as_fd(), limit) {
                // A partial move may end at the pipe's or at the socket's bounds: only EAGAIN tells.
                Ok(n) => return Ok(n),
                Err(Errno::AGAIN) => {
                    self.forget_writable(cx)?;
                    return Ok(0);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ready when the socket may take bytes again.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_write_ready(cx).map_ok(drop)
    }

    /// Ready with the error when the peer reset the connection, for a side that nothing is read from at the
    /// moment. The task is woken when that happens. Ready without an error: both directions have ended
    /// in order, there is nothing left to watch for.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        // One round forgets what was reported before, the other registers the task.
        for _ in 0..2 {
            let Ok(mut guard) = ready!(self.io.poll_write_ready(cx)) else { return Poll::Ready(None) };
            let ready = guard.ready();
            if ready.is_error() || ready.is_write_closed() {
                return Poll::Ready(self.take_error());
            }
            guard.clear_ready();
        }
        Poll::Pending
    }

    pub fn shutdown_write(&self) -> io::Result<()> {
        rustix::net::shutdown(self.io.get_ref(), Shutdown::Write).map_err(io::Error::from)
    }

    /// Closes with RST instead of FIN (SO_LINGER with zero seconds, socket(7)).
    pub fn reset(self) {
        reset(self.io.get_ref());
    }

    fn take_error(&self) -> Option<io::Error> {
        match rustix::net::sockopt::socket_error(self.io.get_ref()) {
            Ok(Ok(())) => None,
            Ok(Err(error)) | Err(error) => Some(error.into()),
        }
    }

    fn forget_writable(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Poll::Ready(guard) = self.io.poll_write_ready(cx) {
            guard?.clear_ready();
        }
        Ok(())
    }
}

/// Makes the close of this socket an RST. Closing goes on without it if the kernel refuses.
pub fn reset(socket: impl AsFd) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, limit: usize) -> Result<usize, Errno> {
    rustix::pipe::splice(from, None, to, None, limit, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
}
