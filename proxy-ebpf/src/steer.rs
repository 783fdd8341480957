//! tc ingress: packet → verdict.
//!
//! Steering changes no byte of a packet. It marks it, so that the route rule delivers it to this host, and
//! for a new connection it names the listener. The stack finds every other socket by itself.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_ktime_get_coarse_ns,
    programs::TcContext,
};
use sheer_common::{
    abi::Settings,
    flow::FlowKey,
    policy::{Action, Service, WhenDown},
    verdict::{HelperFailure, Verdict},
};
use sheer_ebpf::parse::{Layer, NotASegment, Segment, icmp, parse};

use crate::{
    kernel::{Frame, Socket, State},
    maps::flows,
    policy, stats, trace,
};

/// Looks at a packet; the answer is for tc.
#[inline(always)]
pub fn ingress(ctx: &TcContext, layer: Layer) -> i32 {
    let Some(now) = policy::current() else {
        stats::failure(HelperFailure::MapLookup);
        return TC_ACT_UNSPEC;
    };
    let verdict = decide(ctx, layer, now);
    stats::verdict(verdict);
    if verdict.steers() {
        ctx.set_mark(now.mark);
    }
    // "Unspecified" lets the programs behind ours have their say; plain OK would cut them off.
    if verdict.drops() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[inline(always)]
fn decide(ctx: &TcContext, layer: Layer, now: &Settings) -> Verdict {
    let frame = Frame(ctx);
    let mut segment = Segment::EMPTY;
    match parse(&frame, layer, &mut segment) {
        Ok(()) => {}
        Err(NotASegment::Icmp) => return complaint(&frame, &mut segment, now),
        Err(reason) => return reason.verdict(),
    }
    let verdict = if segment.opens() {
        open(ctx, &segment.key, now)
    } else if known(ctx, &segment) {
        return Verdict::SteerFlow;
    } else if policy::is_own(&segment.key) {
        Verdict::PassLocal
    } else {
        orphan(&frame, &segment, now)
    };
    trace::decision(ctx, &segment.key, verdict);
    verdict
}

/// Counts a packet of a proxied connection; false where `flows` does not have it.
#[inline(always)]
fn known(ctx: &TcContext, segment: &Segment) -> bool {
    let Some(flow) = flows.get_ptr_mut(&segment.key) else {
        return false;
    };
    // SAFETY: the entry outlives the program run (RCU). Two CPUs that meet in one direction of a connection,
    // which receive steering avoids, may lose a count between them, nothing else.
    unsafe {
        (*flow).packets += 1;
        (*flow).bytes += u64::from(ctx.len() - segment.ip_offset);
        (*flow).last_seen_ns = bpf_ktime_get_coarse_ns();
    }
    true
}

/// An ICMP message. An error about a packet that the proxy sent from a foreign address goes to that address;
/// the stack finds the socket by the packet inside, once the error is delivered here.
#[inline(never)]
fn complaint(frame: &Frame<'_>, segment: &mut Segment, now: &Settings) -> Verdict {
    if icmp::embedded(frame, segment).is_none() {
        return Verdict::PassNotTcp;
    }
    let ours = flows.get_ptr(&segment.key).is_some()
        || Socket::of_tuple(frame.0, &segment.key)
            .is_some_and(|s| s.state() == State::Full && s.mark() == Some(now.mark));
    if ours { Verdict::SteerIcmp } else { Verdict::PassNotTcp }
}

/// A SYN. The flow table is not asked: an entry may be left from a proxy that is gone.
#[inline(never)]
fn open(ctx: &TcContext, key: &FlowKey, now: &Settings) -> Verdict {
    if policy::is_own(key) {
        return Verdict::PassLocal;
    }
    let Some(service) = policy::service(key) else {
        return Verdict::PassNoService;
    };
    match service.action {
        Action::Pass | Action::None => return Verdict::PassService,
        Action::Drop => return Verdict::DropService,
        Action::Proxy => {}
    }
    let Some(listener) = policy::listener(now, key) else {
        // While the proxy leaves, a SYN may be the repeated one of a handshake that it still finishes.
        let under_way =
            now.draining != 0 && Socket::of_tuple(ctx, key).is_some_and(|s| s.state() == State::Request);
        return if under_way { Verdict::SteerSocket } else { down(service, key) };
    };
    // A client that reuses a port may meet what the connection before left behind. The stack knows best how
    // to go on, and assigning the listener here would keep it from that: a SYN on TIME_WAIT would be lost.
    if let Some(socket) = Socket::of_tuple(ctx, key) {
        match socket.state() {
            State::TimeWait => return Verdict::SteerTimeWait,
            State::Request => return Verdict::SteerSocket,
            State::Full if socket.mark() == Some(now.mark) => return Verdict::SteerSocket,
            // A listener of somebody else's that is bound to every address does not own foreign ones, and
            // ours may be found here too, through the socket lookup.
            State::Full | State::Listen => {}
        }
    }
    if listener.take_packet(ctx).is_err() {
        stats::failure(HelperFailure::SkAssign);
        return down(service, key);
    }
    Verdict::SteerNew
}

/// What happens to a new connection while nobody can take it. One that passes is no longer the proxy's: an entry
/// that a killed proxy left on its tuple, in either direction, would have the rest of it delivered here.
#[inline(always)]
fn down(service: &Service, key: &FlowKey) -> Verdict {
    if service.when_down == WhenDown::Closed {
        return Verdict::DropDown;
    }
    // Most have none, and that is all that removing can complain of.
    let _ = flows.remove(key);
    let _ = flows.remove(&key.reversed());
    Verdict::PassDown
}

/// A segment of no known flow: the rest of a handshake, the end of a connection, the server's answer to our
/// SYN before the proxy has made the entry, or a connection that is none of ours.
#[inline(never)]
fn orphan(frame: &Frame<'_>, segment: &Segment, now: &Settings) -> Verdict {
    if let Some(socket) = Socket::of_tuple(frame.0, &segment.key) {
        match socket.state() {
            // The destination is not this host's own, so this can only be the rest of a transparent socket.
            State::TimeWait | State::Request => return Verdict::SteerSocket,
            State::Full if socket.mark() == Some(now.mark) => return Verdict::SteerSocket,
            State::Full => return Verdict::PassForeignSocket,
            State::Listen => {}
        }
    }
    if segment.may_answer_cookie() && answers_cookie(frame, segment, now) {
        return Verdict::SteerCookie;
    }
    Verdict::PassNoSocket
}

/// A connection that was under way before its service came must not reach the listener, which would reset
/// it; only a cookie that the listener itself made recently lets a segment in.
#[inline(never)]
fn answers_cookie(frame: &Frame<'_>, segment: &Segment, now: &Settings) -> bool {
    policy::service(&segment.key).is_some_and(|s| s.action == Action::Proxy)
        && policy::listener(now, &segment.key).is_some_and(|l| l.sent_cookie(frame, segment))
}
