//! The accept loop of a listener: takes what waits, in batches, as long as there is room for it.
//!
//! At the limit of connections, or out of descriptors, it stops accepting: the kernel's backlog holds what comes,
//! and the clients' SYN retries what that does not hold.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, getsockname};
use tokio::io::Interest;

use crate::drain::DrainStage;
use crate::limit::Permit;
use crate::session::Accepted;
use crate::socket::source::socket_addr;
use crate::socket::sys::{self, Registered};
use crate::socket::{ClientAddr, OriginalDst};
use crate::worker::{Throttle, User, WARN_EVERY, Worker};

/// Connections accepted before other tasks get their turn.
const BATCH: usize = 32;

pub(crate) struct Acceptor {
    listener: Registered,
    /// The listener's own address: nobody but a loop asks for it.
    own: SocketAddr,
    worker: User,
    warnings: Throttle,
    /// Since when nothing is accepted; counted once per pause.
    paused: bool,
}

enum Step {
    Accepted(Accepted),
    /// Nothing waits.
    Empty,
    /// No room: to be polled again when there is, or on the next tick.
    Paused,
    Failed,
}

impl Acceptor {
    /// Must be called on a thread of a runtime.
    pub(crate) fn new(listener: TcpListener, worker: &Rc<Worker>) -> io::Result<Self> {
        Ok(Self {
            own: listener.local_addr()?,
            listener: sys::register(listener.into(), Interest::READABLE).map_err(|(_, error)| error)?,
            worker: worker.user(),
            warnings: Throttle::new(WARN_EVERY),
            paused: false,
        })
    }

    /// Accepts and hands to `start` until the worker drains. What waits in the backlog by then is still
    /// accepted: the kernel programs send no new ones here any more.
    pub(crate) async fn run(mut self, mut start: impl FnMut(&Rc<Worker>, Accepted)) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll(cx, &mut start)).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        start: &mut impl FnMut(&Rc<Worker>, Accepted),
    ) -> Poll<io::Result<()>> {
        for _ in 0..BATCH {
            let stage = self.worker.stage();
            if stage == DrainStage::Forced {
                return Poll::Ready(Ok(()));
            }
            if stage == DrainStage::Running {
                let ready = self.listener.poll_read_ready(cx);
                if ready.is_pending() {
                    self.worker.call_acceptor(cx.waker());
                }
                ready!(ready)?.retain_ready();
            }
            match self.step(cx) {
                Step::Accepted(accepted) => {
                    self.paused = false;
                    start(&self.worker, accepted);
                }
                Step::Empty if stage == DrainStage::Running => self.forget_ready(cx)?,
                Step::Empty => return Poll::Ready(Ok(())),
                Step::Paused => {
                    self.worker.call_acceptor(cx.waker());
                    return Poll::Pending;
                }
                Step::Failed => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn forget_ready(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Poll::Ready(guard) = self.listener.poll_read_ready(cx) {
            guard?.clear_ready();
        }
        Ok(())
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(permit) = self.worker.gate.enter_or_wait(cx.waker()) else {
            let max = self.worker.gate.max();
            return self.pause(&format!(
                "{max} connections are live, which is the limit: new ones wait; raise --max-connections, or look for \
                 clients that never close"
            ));
        };
        match acceptfrom_with(self.listener.get_ref(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((fd, from)) => self.accepted(fd, from, permit),
            Err(Errno::AGAIN) => Step::Empty,
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => self.pause(&format!(
                "no descriptor for a new connection ({error}): new ones wait; a connection takes two, and two more in \
                 bulk: raise the limit of open files (ulimit -n, LimitNOFILE=, fs.file-max)"
            )),
            // The client was gone before it was accepted, or a passing network error of it (accept(2)).
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => Step::Failed,
            Err(error) => {
                self.worker.stats.accept_failed.add(1);
                self.pause(&format!("accept failed: {error}"))
            }
        }
    }

    fn accepted(&mut self, fd: OwnedFd, from: Option<rustix::net::SocketAddrAny>, permit: Permit) -> Step {
        // The socket's own address is whom the client asked for: that is what transparency means.
        let original = getsockname(&fd).map_err(io::Error::from).and_then(socket_addr);
        let client = from.ok_or_else(|| Errno::NOTCONN.into()).and_then(socket_addr);
        let (Ok(original), Ok(client)) = (original, client) else {
            self.worker.stats.accept_failed.add(1);
            return Step::Failed;
        };
        Step::Accepted(Accepted::new(
            self.worker.next_id(),
            ClientAddr::new(client),
            OriginalDst::new(original),
            original == self.own,
            fd,
            permit,
        ))
    }

    fn pause(&mut self, why: &str) -> Step {
        if !self.paused {
            self.paused = true;
            self.worker.stats.accept_paused.add(1);
        }
        if self.warnings.permits() {
            log::warn!("accepting on {} is paused: {why}", self.own);
        }
        Step::Paused
    }
}
