//! tc egress: what this host itself sends.
//!
//! Little of it concerns us. A server on this host answers the client whose address the proxy speaks from; a local process
//! opens a connection that a service takes: both packets would leave, and belong to a socket of ours here. And what
//! the proxy answers to a client may have to leave by the way by which the client came.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use sheer_common::fragment::Fate;
use sheer_ebpf::parse::Layer;

use crate::{
    fragment,
    kernel::{Frame, room_for_segment},
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
    let Some(segment) = room_for_segment::<false>() else {
        return TC_ACT_UNSPEC;
    };
    let verdict = steer::decide::<false>(&frame, &now, segment);
    // Everything else that this host sends passes, uncounted.
    if verdict.steers() || verdict.drops() {
        stats::verdict(verdict);
    }
    match fragment::settle(&frame, segment, &now, Fate::of(verdict)) {
        Fate::Steer => frame.turn_back(now.mark),
        Fate::Drop => TC_ACT_SHOT,
        Fate::Pass | Fate::Waiting => TC_ACT_UNSPEC,
    }
}
