//! The task of a connection: polls its stage, obeys its deadline, and sees that a record is left in any case.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{Case, Connecting, Relayed};
use crate::clock::{Signal, Slot};
use crate::flow::{Moved, WORTH_ENTERING};
use crate::reason::CloseReason;
use crate::relay::Relay;
use crate::upstream;
use crate::worker::{User, Worker};

struct Task {
    stage: Stage,
    slot: Slot,
    /// The deadline knows whom to wake.
    known: bool,
    worker: User,
}

#[allow(clippy::large_enum_variant, reason = "boxing the relay would cost an allocation per connection")]
enum Stage {
    Connecting(Connecting),
    Relaying(Case, Relay),
    Over,
}

pub(super) fn spawn(worker: &Rc<Worker>, connecting: Connecting) {
    let slot = worker.deadlines.borrow_mut().open(worker.limits.connect);
    let stage = Stage::Connecting(connecting);
    tokio::task::spawn_local(Task { stage, slot, known: false, worker: worker.user() });
}

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = self.get_mut();
        if !task.known {
            task.worker.deadlines.borrow_mut().set_waker(task.slot, cx.waker());
            task.known = true;
        }
        let signal = task.signal();
        if let Stage::Connecting(connecting) = &task.stage {
            let Poll::Ready(connected) = poll_connecting(cx, connecting, signal) else {
                return Poll::Pending;
            };
            let Stage::Connecting(connecting) = task.take_stage() else { return Poll::Ready(()) };
            if let Err(reason) = connected {
                connecting.abandon(&task.worker, reason);
                return Poll::Ready(());
            }
            task.worker.deadlines.borrow_mut().touch(task.slot, task.worker.limits.idle);
            let (case, relay) = connecting.relay();
            task.stage = Stage::Relaying(case, relay);
        }
        if let Stage::Relaying(case, relay) = &mut task.stage {
            let polled = poll_relay(cx, (case, relay), &task.worker, task.slot, signal);
            let Poll::Ready(reason) = polled else {
                let moved = moved(relay);
                if moved.up + moved.down >= WORTH_ENTERING {
                    case.enter(&task.worker, moved);
                }
                return Poll::Pending;
            };
            task.end(reason);
        }
        Poll::Ready(())
    }
}

fn poll_connecting(
    cx: &mut Context<'_>,
    connecting: &Connecting,
    signal: Signal,
) -> Poll<Result<(), CloseReason>> {
    match signal {
        Signal::None | Signal::Lasting => {}
        Signal::Review => return Poll::Ready(Err(CloseReason::PolicyChanged)),
        Signal::Expired => return Poll::Ready(Err(CloseReason::ConnectTimeout)),
        Signal::Forced => return Poll::Ready(Err(CloseReason::Drained)),
    }
    if let Poll::Ready(connected) = upstream::poll_connected(&connecting.server, cx) {
        return Poll::Ready(connected);
    }
    match connecting.client.poll_reset(cx) {
        Poll::Ready(Some(_)) => Poll::Ready(Err(CloseReason::ClientReset)),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    }
}

/// One turn of the relay; bytes or a half-close put the deadline off.
fn poll_relay(
    cx: &mut Context<'_>,
    (case, relay): (&Case, &mut Relay),
    worker: &Worker,
    slot: Slot,
    signal: Signal,
) -> Poll<CloseReason> {
    match signal {
        Signal::None | Signal::Lasting => {}
        Signal::Review => return Poll::Ready(CloseReason::PolicyChanged),
        Signal::Expired if relay.half_closed() => return Poll::Ready(CloseReason::HalfCloseTimeout),
        Signal::Expired => return Poll::Ready(CloseReason::IdleTimeout),
        Signal::Forced => return Poll::Ready(CloseReason::Drained),
    }
    let before = (relay.bytes(), relay.half_closed());
    let polled = relay.poll(cx, &mut worker.bench.borrow_mut());
    let after = (relay.bytes(), relay.half_closed());
    if before != after {
        let (up, down) = (after.0.0 - before.0.0, after.0.1 - before.0.1);
        worker.stats.bytes_up.add(up);
        worker.stats.bytes_down.add(down);
        case.count_bytes(up, down);
        let limit = if after.1 { worker.limits.half_close } else { worker.limits.idle };
        worker.deadlines.borrow_mut().touch(slot, limit);
    }
    polled
}

fn moved(relay: &Relay) -> Moved {
    let (up, down) = relay.bytes();
    Moved { up, down }
}

impl Task {
    /// What the clock says. That the connection has lived through a tick is dealt with here; a review is passed on
    /// where it ends the connection.
    fn signal(&mut self) -> Signal {
        let signal = self.worker.deadlines.borrow_mut().take_signal(self.slot);
        if signal == Signal::Review && self.may_go_on() {
            return Signal::None;
        }
        if signal != Signal::Lasting {
            return signal;
        }
        match &mut self.stage {
            Stage::Connecting(connecting) => connecting.case.enter(&self.worker, Moved::default()),
            Stage::Relaying(case, relay) => case.enter(&self.worker, moved(relay)),
            Stage::Over => {}
        }
        Signal::None
    }

    fn may_go_on(&self) -> bool {
        match &self.stage {
            Stage::Connecting(Connecting { case, .. }) | Stage::Relaying(case, _) => {
                self.worker.keeps(case.client, case.original, case.interface)
            }
            Stage::Over => true,
        }
    }

    fn take_stage(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Over)
    }

    fn end(&mut self, reason: CloseReason) {
        match self.take_stage() {
            Stage::Connecting(connecting) => connecting.abandon(&self.worker, reason),
            Stage::Relaying(case, relay) => {
                Relayed { case, outcome: relay.outcome(reason) }.record(&self.worker);
                relay.close(reason, &mut self.worker.bench.borrow_mut().pipes);
            }
            Stage::Over => {}
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.worker.deadlines.borrow_mut().close(self.slot);
        // Only a panic, or the end of the runtime, drops a task that has not ended.
        if std::thread::panicking() {
            self.worker.stats.panics.add(1);
            self.end(CloseReason::InternalError);
        } else {
            self.end(CloseReason::Drained);
        }
    }
}
