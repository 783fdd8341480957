//! Fragments: all of a datagram take the way of the first, in whatever order they come.
//!
//! The first one has the ports and is judged as any packet; what became of it is noted, and the others are treated
//! alike. Those that come before it are copied into a map and taken out of the way. When it comes, they come in anew by
//! the interface that it came by, and find the note.
//!
//! The marked ones are delivered to this host, whose stack puts them together. The socket that tc may have assigned is lost
//! on the way (`skb_orphan` in net/ipv4/ip_fragment.c), so a fragmented SYN is given to the listener by the socket
//! lookup.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use sheer_common::{
    abi::{Family, Protocol},
    fragment::{FRAGMENTS_NS, Fate, FragmentKey, Fragments, Held, HeldKey, MAX_HELD_EACH},
    policy::WhenDown,
    verdict::{HelperFailure, Verdict},
};
use sheer_ebpf::parse::{Part, Segment};

use crate::{
    kernel::Frame,
    maps::{aside, fragments, held},
    policy::{self, Now, Question, Side},
    stats,
};

/// `-EEXIST`: the entry is there already.
const EXISTS: i32 = -17;

/// Without options.
const TCP_HEADER_LEN: u32 = 20;

/// A fragment behind the first.
#[inline(never)]
pub fn later<const DRY: bool>(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Verdict {
    if is_indifferent(segment, now) {
        return Verdict::PassFragment;
    }
    let tcp = segment.key.protocol == Protocol::Tcp && !segment.hides_protocol();
    if tcp && segment.fragment.offset < TCP_HEADER_LEN {
        // The first one had the whole header: another one would be put together from both (RFC 3128).
        return Verdict::DropFragment;
    }
    let mut key = key(segment);
    match known::<DRY>(&key.datagram, segment) {
        // What this host sends is in order.
        Fate::Waiting if now.side == Side::Out => Verdict::PassFragment,
        Fate::Waiting if !DRY => hold(frame, segment, now, &mut key),
        fate => fate.verdict(),
    }
}

/// What is done with a packet that this is to become of: where it is a first fragment, the others are to fare alike.
///
/// Its verdict has been counted before, and is not asked for here: each one more would have the verifier follow all this
/// anew.
#[inline(always)]
pub fn settle(frame: &Frame<'_>, segment: &mut Segment, now: &Now, fate: Fate) -> Fate {
    if segment.part != Part::First {
        return fate;
    }
    segment.fate = fate;
    first(frame, segment, now)
}

#[inline(never)]
fn first(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Fate {
    // SAFETY: a reference. Volatile, so that the compiler does not hand over what the verifier should forget.
    let fate = unsafe { (&raw const segment.fate).read_volatile() };
    if is_indifferent(segment, now) {
        return fate;
    }
    let mut key = key(segment);
    let note = note(fate, segment.fragment.len);
    match fragments.insert(&key.datagram, &note, BPF_NOEXIST.into()) {
        Ok(()) => return fate,
        // Others wait, or the identification is in use again.
        Err(EXISTS) if fragments.insert(&key.datagram, &note, BPF_ANY.into()).is_ok() => {}
        Err(_) => {
            stats::failure(HelperFailure::FragmentInsert);
            return unnoted(frame, segment, now, fate);
        }
    }
    // Those that have waited for one that is dropped are swept out.
    if now.side == Side::Out || fate == Fate::Drop || release(frame, segment, &mut key) {
        return fate;
    }
    stats::verdict(Verdict::DropFragment);
    Fate::Drop
}

/// Fragments whose way does not depend on the first: no service can ask for it.
#[inline(always)]
fn is_indifferent(segment: &Segment, now: &Now) -> bool {
    let udp = segment.key.protocol == Protocol::Udp && !segment.hides_protocol();
    (udp && policy::in_force(now).is_none_or(|policy| policy.takes_udp == 0))
        || (policy::is_own(&segment.key) && !policy::names_own(now, &segment.key))
}

#[inline(always)]
fn key(segment: &Segment) -> HeldKey {
    let (key, fragment) = (&segment.key, &segment.fragment);
    let protocol = match key.family {
        Family::V4 => fragment.protocol,
        Family::V6 => 0,
    };
    let datagram =
        FragmentKey { src: key.src, dst: key.dst, id: fragment.id, protocol, family: key.family, _pad: 0 };
    HeldKey { datagram, place: 0 }
}

#[inline(always)]
fn note(fate: Fate, seen: u32) -> Fragments {
    Fragments { until_ns: policy::coarse_now() + FRAGMENTS_NS, fate, seen, total: 0, _pad: 0 }
}

/// What was noted of a datagram; "waiting" where nothing is. When its last fragment has come the note goes: a sender
/// of many would fill the map otherwise.
#[inline(always)]
fn known<const DRY: bool>(key: &FragmentKey, segment: &Segment) -> Fate {
    let Some(note) = fragments.get_ptr_mut(key) else {
        return Fate::Waiting;
    };
    let fragment = &segment.fragment;
    // SAFETY: the entry's memory stays one of this map while the program runs (RCU). Where two CPUs lose a count
    // between them, or it goes to another datagram, the note stays until it is swept away, or goes too early: then a
    // fragment waits in vain, as if it were lost.
    let (fate, complete) = unsafe {
        if (*note).until_ns <= policy::coarse_now() || (*note).fate == Fate::Waiting {
            return Fate::Waiting;
        }
        if !DRY {
            (*note).seen += fragment.len;
            if fragment.more == 0 {
                (*note).total = fragment.offset + fragment.len;
            }
        }
        ((*note).fate, (*note).total != 0 && (*note).seen >= (*note).total)
    };
    if !DRY && complete {
        // That somebody else was faster is no failure.
        let _ = fragments.remove(key);
    }
    fate
}

/// Lets a fragment wait for the first.
#[inline(never)]
fn hold(frame: &Frame<'_>, segment: &Segment, now: &Now, key: &mut HeldKey) -> Verdict {
    match fragments.insert(&key.datagram, &note(Fate::Waiting, 0), BPF_NOEXIST.into()) {
        Ok(()) => {}
        Err(EXISTS) => renew(&key.datagram),
        Err(_) => return unfollowed(now, HelperFailure::FragmentInsert),
    }
    if !put_aside(frame, segment, key) {
        return unfollowed(now, HelperFailure::FragmentHold);
    }
    // The first may have come meanwhile, on another CPU, and not have found this one.
    match known::<false>(&key.datagram, segment) {
        Fate::Waiting => Verdict::HoldFragment,
        fate if held.remove(&*key).is_ok() => fate.verdict(),
        // It has found it.
        _ => Verdict::HoldFragment,
    }
}

/// What an old datagram of the same identification left counts as nothing.
#[inline(always)]
fn renew(key: &FragmentKey) {
    if let Some(note) = fragments.get_ptr_mut(key) {
        // SAFETY: as above; an entry that is still good is left alone.
        unsafe {
            if (*note).until_ns <= policy::coarse_now() {
                (*note).fate = Fate::Waiting;
                (*note).until_ns = policy::coarse_now() + FRAGMENTS_NS;
            }
        }
    }
}

/// Copies a fragment into a free place of its datagram; false where there is none.
#[inline(always)]
fn put_aside(frame: &Frame<'_>, segment: &Segment, key: &mut HeldKey) -> bool {
    let Some(room) = aside.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the map is per CPU, and a program at tc is not interrupted by another one on its CPU.
    let room = unsafe { &mut *room };
    let now = policy::coarse_now();
    room.until_ns = now + FRAGMENTS_NS;
    if !frame.take_down(segment.ip_offset, room) {
        return false;
    }
    // Written so that the loop begins where it jumps back to, and that it counts in a register: Linux 5.10 takes no other.
    let mut place = 0;
    loop {
        key.place = place;
        match put(key, room, now) {
            Put::Done => return true,
            Put::Failed => return false,
            Put::Taken => {}
        }
        place += 1;
        if place >= MAX_HELD_EACH {
            return false;
        }
    }
}

/// What came of putting a fragment into a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    /// Another one is there.
    Taken,
    Failed,
}

#[inline(never)]
fn put(key: &HeldKey, room: &Held, now: u64) -> Put {
    match held.insert(key, room, BPF_NOEXIST.into()) {
        Ok(()) => return Put::Done,
        Err(EXISTS) => {}
        Err(_) => return Put::Failed,
    }
    // SAFETY: one number is read, of an entry of this map.
    let old = held.get_ptr(key).is_some_and(|h| unsafe { (*h).until_ns } <= now);
    if old && held.insert(key, room, BPF_ANY.into()).is_ok() { Put::Done } else { Put::Taken }
}

/// Sends on what has waited for this first fragment; false where that has spoilt the fragment itself.
///
/// Packets cannot be made in a program. So this one is turned into each of them, a copy of it comes in by the
/// interface anew, and at last it becomes again what it was.
#[inline(never)]
fn release(frame: &Frame<'_>, segment: &Segment, key: &mut HeldKey) -> bool {
    let Some(room) = aside.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: as above.
    let room = unsafe { &mut *room };
    let at = segment.ip_offset;
    if !frame.take_down(at, room) {
        stats::failure(HelperFailure::FragmentRelease);
        return true;
    }
    // See `put_aside` for its form.
    let mut place = 0;
    loop {
        key.place = place;
        send_on(frame, at, key);
        place += 1;
        if place >= MAX_HELD_EACH {
            break;
        }
    }
    frame.become_bytes(at, room)
}

/// Turns the packet at hand into the fragment that has waited in a place, if there is one.
#[inline(never)]
fn send_on(frame: &Frame<'_>, at: u32, key: &HeldKey) {
    let Some(waiting) = held.get_ptr(key) else { return };
    // Whoever removes it has it.
    if held.remove(key).is_err() {
        return;
    }
    // SAFETY: memory of a removed entry is given to another one on this CPU at the earliest, where nothing of ours
    // runs before this program ends.
    let waiting = unsafe { &*waiting };
    let fresh = waiting.until_ns > policy::coarse_now();
    if fresh && !(frame.become_bytes(at, waiting) && frame.come_in_anew()) {
        stats::failure(HelperFailure::FragmentRelease);
    }
}

/// A first fragment where there is no room for a note: the others will be treated as strangers.
#[inline(never)]
fn unnoted(frame: &Frame<'_>, segment: &Segment, now: &Now, fate: Fate) -> Fate {
    if fate != Fate::Steer {
        return fate;
    }
    // Without it the others lead nowhere. A connection that is the proxy's repeats what is dropped; if it passed, the
    // server would answer with a reset.
    let verdict = if segment.opens() { as_when_down(frame, segment, now) } else { Verdict::DropFragment };
    stats::verdict(verdict);
    Fate::of(verdict)
}

/// What the service says that takes the connection.
#[inline(always)]
fn as_when_down(frame: &Frame<'_>, segment: &Segment, now: &Now) -> Verdict {
    let mut question = Question::new(now, &segment.key, frame.interface(), policy::is_own(&segment.key));
    let service = question.first_match(now).and_then(|number| policy::service(now, number));
    match service.map(|service| service.when_down) {
        Some(WhenDown::Closed) => Verdict::DropFragment,
        Some(_) => Verdict::PassFragment,
        None => without_service(now),
    }
}

/// A fragment behind the first that cannot wait for it.
#[inline(always)]
fn unfollowed(now: &Now, failure: HelperFailure) -> Verdict {
    stats::failure(failure);
    without_service(now)
}

#[inline(always)]
fn without_service(now: &Now) -> Verdict {
    if now.closed != 0 { Verdict::DropFragment } else { Verdict::PassFragment }
}
