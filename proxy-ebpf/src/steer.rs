//! tc ingress: packet → verdict.
//!
//! Steering changes no byte of a packet. It marks it, so that the route rule delivers it to this host, and
//! for a new connection it names the listener. The stack finds every other socket by itself.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use sheer_common::{
    abi::Protocol,
    flow::{FlowKey, Opening},
    fragment::Fate,
    policy::{Action, Service, WhenDown, is_special},
    verdict::{HelperFailure, Verdict},
};
use sheer_ebpf::parse::{Layer, NotASegment, Part, Segment, icmp, parse};

use crate::{
    explain, fragment,
    kernel::{Frame, Socket, State, room_for_segment},
    limit,
    maps::{devices, flows, openings},
    ping,
    policy::{self, Now, Question, Side},
    stats, trace, way,
};

/// Looks at a packet; the answer is for tc.
#[inline(always)]
pub fn ingress(ctx: &TcContext, layer: Layer) -> i32 {
    let Some(now) = policy::current(Side::In) else {
        stats::failure(HelperFailure::MapLookup);
        return TC_ACT_UNSPEC;
    };
    let Some(segment) = room_for_segment::<false>() else {
        stats::failure(HelperFailure::MapLookup);
        return TC_ACT_UNSPEC;
    };
    let frame = Frame::new(ctx, layer);
    let verdict = decide::<false>(&frame, &now, segment);
    stats::verdict(verdict);
    if verdict == Verdict::AnswerPing {
        return ping::answer(&frame);
    }
    let fate = fragment::settle(&frame, segment, &now, Fate::of(verdict));
    if fate == Fate::Steer {
        ctx.set_mark(now.mark);
        if policy::answers_same_way() {
            way::follow(&frame, &segment.key);
        }
        if now.switched != 0 && frame.is_for_other_host() {
            take(&frame);
        }
    }
    // "Unspecified" lets the programs behind ours have their say; plain OK would cut them off.
    if fate == Fate::Drop { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

/// Decides as [`ingress`] does, writes down how, and changes nothing.
#[inline(always)]
pub fn explain(ctx: &TcContext, layer: Layer) -> i32 {
    if let Some(now) = policy::current(Side::In)
        && let Some(segment) = room_for_segment::<true>()
    {
        explain::verdict(decide::<true>(&Frame::new(ctx, layer), &now, segment));
    }
    TC_ACT_UNSPEC
}

/// A frame that comes in by a port of a bridge and is for somebody behind another one: the bridge would pass it on.
#[inline(always)]
fn take(frame: &Frame<'_>) {
    // SAFETY: an entry is not written again while its interface is listed.
    let taken = unsafe { devices.get(&frame.interface()) }.is_some_and(|device| frame.take(device).is_ok());
    if !taken {
        stats::failure(HelperFailure::Redirect);
    }
}

/// With `DRY` nothing is changed: no count, no entry, no socket given.
#[inline(always)]
pub fn decide<const DRY: bool>(frame: &Frame<'_>, now: &Now, segment: &mut Segment) -> Verdict {
    let ctx = frame.context();
    match parse(frame, frame.layer(), segment) {
        Ok(()) => {}
        Err(NotASegment::Icmp) if ping::is_for_service::<DRY>(frame, segment, now) => {
            return Verdict::AnswerPing;
        }
        Err(NotASegment::Icmp) => return complaint(frame, segment, now),
        Err(NotASegment::LaterFragment) => return fragment::later::<DRY>(frame, segment, now),
        Err(reason) => return reason.verdict(),
    }
    let verdict = if segment.key.protocol == Protocol::Udp {
        datagram::<DRY>(frame, &segment.key, now)
    } else if segment.opens() {
        open::<DRY>(frame, segment, now)
    } else if known::<DRY>(ctx, segment) {
        return Verdict::SteerFlow;
    } else if policy::is_own(&segment.key) && !policy::names_own(now, &segment.key) {
        // Delivered here without our help, whatever it is.
        Verdict::PassLocal
    } else {
        orphan::<DRY>(frame, segment, now)
    };
    if !DRY {
        trace::decision(ctx, &segment.key, verdict);
    }
    verdict
}

/// Counts a packet of a proxied connection; false where `flows` does not have it.
#[inline(always)]
fn known<const DRY: bool>(ctx: &TcContext, segment: &Segment) -> bool {
    let Some(flow) = flows.get_ptr_mut(&segment.key) else {
        return false;
    };
    if !DRY {
        // SAFETY: the entry outlives the program run (RCU). Two CPUs that meet in one direction of a connection,
        // which receive steering avoids, may lose a count between them, nothing else.
        unsafe {
            (*flow).packets += 1;
            (*flow).bytes += u64::from(ctx.len() - segment.ip_offset);
            (*flow).last_seen_ns = policy::coarse_now();
        }
    }
    true
}

/// An ICMP message. An error about a packet that the proxy sent from a foreign address goes to that address;
/// the stack finds the socket by the packet inside, once the error is delivered here.
#[inline(never)]
fn complaint(frame: &Frame<'_>, segment: &mut Segment, now: &Now) -> Verdict {
    if icmp::embedded(frame, segment).is_none() {
        return Verdict::PassOtherProtocol;
    }
    let ours = flows.get_ptr(&segment.key).is_some()
        || Socket::of_tuple(frame.context(), &segment.key)
            .is_some_and(|s| s.state() == State::Full && s.mark() == Some(now.mark));
    if ours { Verdict::SteerIcmp } else { Verdict::PassOtherProtocol }
}

/// The service that takes a tuple, or why none does.
#[inline(always)]
fn service<const DRY: bool>(
    frame: &Frame<'_>,
    key: &FlowKey,
    now: &Now,
) -> Result<&'static Service, Verdict> {
    let own = policy::is_own(key);
    let mut question = Question::new(now, key, frame.interface(), own);
    if DRY {
        // A crafted packet comes in, also one that a process of this host would send.
        question.local = policy::is_own(&key.reversed());
    }
    let number = question.first_match(now);
    explain::matched::<DRY>(now, &question, number);
    match number.and_then(|number| policy::service(now, number)) {
        Some(service) => Ok(service),
        None if own || is_special(key.family, &key.dst) => Err(Verdict::PassLocal),
        None => Err(Verdict::PassNoService),
    }
}

/// A UDP datagram: each one is judged by itself.
#[inline(never)]
fn datagram<const DRY: bool>(frame: &Frame<'_>, key: &FlowKey, now: &Now) -> Verdict {
    if now.side == Side::Out || policy::in_force(now).is_none_or(|policy| policy.takes_udp == 0) {
        return Verdict::PassNoService;
    }
    let service = match service::<DRY>(frame, key, now) {
        Ok(service) => service,
        Err(none) => return none,
    };
    let verdict = if limit::blocked_by_hand::<DRY>(now, key) {
        Verdict::DropBlocked
    } else if service.action == Action::Drop {
        Verdict::DropService
    } else {
        Verdict::PassService
    };
    if !DRY {
        stats::hit(service, verdict == Verdict::DropBlocked);
    }
    verdict
}

/// A SYN. The flow table is not asked: an entry may be left from a proxy that is gone.
#[inline(never)]
fn open<const DRY: bool>(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Verdict {
    if now.side == Side::Out && policy::in_force(now).is_none_or(|policy| policy.intercepts_local == 0) {
        return Verdict::PassNoService;
    }
    let key = &segment.key;
    let service = match service::<DRY>(frame, key, now) {
        Ok(service) => service,
        Err(none) => return none,
    };
    let verdict = match service.action {
        _ if limit::blocked_by_hand::<DRY>(now, key) => Verdict::DropBlocked,
        Action::Proxy => proxy::<DRY>(frame, segment, now, service),
        Action::Pass => limit::refusal::<DRY>(service, key).unwrap_or(Verdict::PassService),
        Action::Drop | Action::None => Verdict::DropService,
    };
    // The SYN of a handshake that is under way has been counted before.
    if !DRY && verdict != Verdict::SteerSocket {
        let refused = matches!(verdict, Verdict::DropRate | Verdict::DropConcurrent | Verdict::DropBlocked);
        stats::hit(service, refused);
    }
    verdict
}

/// A SYN for a service that the proxy stands behind.
///
/// In steps that are not inlined and do not call each other: the stack is small, and kernels before 6.6 round it up for
/// every function of a chain.
#[inline(always)]
fn proxy<const DRY: bool>(frame: &Frame<'_>, segment: &Segment, now: &Now, service: &Service) -> Verdict {
    let key = &segment.key;
    let waits = match ground::<DRY>(frame, key, now, service) {
        Ground::Decided(verdict) => return verdict,
        Ground::TimeWait => true,
        Ground::Clear => false,
    };
    match limit::refusal::<DRY>(service, key) {
        Some(refusal) => refusal,
        None => hand_over::<DRY>(frame, segment, now, service, waits),
    }
}

/// What a SYN finds on its tuple.
enum Ground {
    /// Nothing: it is a new connection.
    Clear,
    /// A connection in TIME_WAIT.
    TimeWait,
    /// There is no more to find out.
    Decided(Verdict),
}

#[inline(never)]
fn ground<const DRY: bool>(frame: &Frame<'_>, key: &FlowKey, now: &Now, service: &Service) -> Ground {
    let ctx = frame.context();
    if policy::listener(now, key).is_none() {
        // While the proxy leaves, a SYN may be the repeated one of a handshake that it still finishes.
        let under_way =
            now.draining != 0 && Socket::of_tuple(ctx, key).is_some_and(|s| s.state() == State::Request);
        if under_way {
            return Ground::Decided(Verdict::SteerSocket);
        }
        if !DRY {
            forget(key);
        }
        return Ground::Decided(down(service));
    }
    explain::listener::<DRY>(now, key);
    // A client that reuses a port may meet what the connection before left behind. The stack knows best how
    // to go on, and assigning the listener here would keep it from that: a SYN on TIME_WAIT would be lost.
    let met = Socket::of_tuple(ctx, key);
    explain::socket::<DRY>(now, met.as_ref());
    let Some(socket) = met else {
        return Ground::Clear;
    };
    match socket.state() {
        State::TimeWait => Ground::TimeWait,
        State::Request => Ground::Decided(Verdict::SteerSocket),
        State::Full if socket.mark() == Some(now.mark) => Ground::Decided(Verdict::SteerSocket),
        // A listener of somebody else's that is bound to every address does not own foreign ones.
        State::Full | State::Listen => Ground::Clear,
    }
}

/// Gives a new connection to its listener; `waits`: another one is in TIME_WAIT on its tuple.
#[inline(never)]
fn hand_over<const DRY: bool>(
    frame: &Frame<'_>,
    segment: &Segment,
    now: &Now,
    service: &Service,
    waits: bool,
) -> Verdict {
    let key = &segment.key;
    let leaves = now.side == Side::Out;
    // Only a packet that comes in can be given a socket, and a fragment loses it when it is put together with the
    // others; for them the stack looks for the listener.
    let by_lookup = leaves || segment.part != Part::Whole;
    if !DRY && (waits || by_lookup || now.switched != 0 || policy::by_interface()) {
        note_opening(frame, key, service);
    }
    if !DRY && service.same_way != 0 && !leaves {
        way::learn(frame, key);
    }
    if waits {
        return Verdict::SteerTimeWait;
    }
    // Others have no use for it: the stack looks for their listener.
    if !DRY && !by_lookup {
        let taken = policy::listener(now, key).map(|listener| listener.take_packet(frame.context()));
        if !matches!(taken, Some(Ok(()))) {
            stats::failure(HelperFailure::SkAssign);
            return down(service);
        }
    }
    Verdict::SteerNew
}

/// Writes down what the socket lookup and the proxy cannot find out for themselves.
#[inline(always)]
fn note_opening(frame: &Frame<'_>, key: &FlowKey, service: &Service) {
    let opening = Opening { service: service.id, interface: frame.interface(), at_ns: policy::coarse_now() };
    if openings.insert(key, &opening, 0).is_err() {
        stats::failure(HelperFailure::OpeningInsert);
    }
}

/// What happens to a new connection while nobody can take it.
#[inline(always)]
fn down(service: &Service) -> Verdict {
    if service.when_down == WhenDown::Closed { Verdict::DropDown } else { Verdict::PassDown }
}

/// A connection that passes because the proxy is gone is not its any more: an entry that it left on the tuple, in
/// either direction, would have the rest of the connection delivered here.
#[inline(always)]
fn forget(key: &FlowKey) {
    // Most have none, and that is all that removing can complain of.
    let _ = flows.remove(key);
    let _ = flows.remove(&key.reversed());
}

/// A segment of no known flow: the rest of a handshake, the end of a connection, the server's answer to our
/// SYN before the proxy has made the entry, or a connection that is none of ours.
#[inline(never)]
fn orphan<const DRY: bool>(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Verdict {
    let met = Socket::of_tuple(frame.context(), &segment.key);
    explain::socket::<DRY>(now, met.as_ref());
    if let Some(socket) = met {
        match socket.state() {
            // Where the destination is not this host's own, this can only be the rest of a transparent socket; where
            // it is, the packet is delivered here either way.
            State::TimeWait | State::Request => return Verdict::SteerSocket,
            State::Full if socket.mark() == Some(now.mark) => return Verdict::SteerSocket,
            State::Full => return Verdict::PassForeignSocket,
            State::Listen => {}
        }
    }
    if segment.may_answer_cookie()
        && let Some(service) = answers_cookie(frame, segment, now)
    {
        if !DRY {
            note_opening(frame, &segment.key, service);
        }
        return Verdict::SteerCookie;
    }
    Verdict::PassNoSocket
}

/// The service whose listener made the cookie that a segment answers, recently. A connection that was under way
/// before its service came must not reach the listener, which would reset it.
#[inline(never)]
fn answers_cookie(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Option<&'static Service> {
    let key = &segment.key;
    let number = Question::new(now, key, frame.interface(), policy::is_own(key)).first_match(now)?;
    let service = policy::service(now, number).filter(|service| service.action == Action::Proxy)?;
    policy::listener(now, key)?.sent_cookie(frame, segment).then_some(service)
}
