//! tc egress: what this host itself sends.
//!
//! Little of it concerns us. A server on this host answers the client whose address the proxy speaks from; a local process
//! opens a connection that a service takes: both packets would leave, and belong to a socket of ours here. And what
//! the proxy answers to a client may have to leave by the way by which the client came.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use sheer_ebpf::parse::Layer;

use crate::{
    kernel::Frame,
    policy::{self, Side},
    stats, steer, way,
};

/// Looks at a packet; the answer is for tc.
#[inline(always)]
pub fn egress(ctx: &TcContext, layer: Layer) -> i32 {
    let frame = Frame::new(ctx, layer);
    // It was judged when it came in.
    if frame.is_forwarded() {
        return TC_ACT_UNSPEC;
    }
    let Some(now) = policy::current(Side::Out) else {
        return TC_ACT_UNSPEC;
    };
    if frame.mark() == now.mark {
        return if policy::answers_same_way() { way::answer(&frame) } else { TC_ACT_UNSPEC };
    }
    let verdict = steer::decide::<false>(&frame, &now);
    if verdict.steers() {
        stats::verdict(verdict);
        return frame.turn_back(now.mark);
    }
    if verdict.drops() {
        stats::verdict(verdict);
        return TC_ACT_SHOT;
    }
    // Everything else that this host sends passes, uncounted.
    TC_ACT_UNSPEC
}
