//! Pings to addresses that services answer for: see [`sheer_common::ping`].

use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_SHOT};
use sheer_common::{
    abi::Family,
    ping::{PingKey, Pinged},
    verdict::HelperFailure,
};
use sheer_ebpf::parse::{Packet as _, Segment, icmp};

use crate::{
    kernel::{Frame, HelperFailed, room_for_segment},
    maps::pinged,
    policy::{self, Now, Question, Side},
    stats,
};

const HOP_LIMIT: u8 = 64;

/// Whether an ICMP message is a ping that is to be answered. That somebody asks is noted.
#[inline(always)]
pub fn is_for_service<const DRY: bool>(frame: &Frame<'_>, segment: &Segment, now: &Now) -> bool {
    !DRY && now.side == Side::In
        && policy::in_force(now).is_some_and(|policy| policy.answers_ping != 0)
        && icmp::is_echo_request(frame, segment)
        && is_answered(frame, segment, now)
}

#[inline(never)]
fn is_answered(frame: &Frame<'_>, segment: &Segment, now: &Now) -> bool {
    let key = &segment.key;
    // The stack answers for this host's own addresses, and tunnels' outer headers are not ours to write to.
    if policy::is_own(key) || !frame.begins_at_network_header(segment.ip_offset) {
        return false;
    }
    let mut question = Question::new(now, key, frame.interface(), false);
    question.ping = true;
    let Some(service) = question.first_match(now).and_then(|number| policy::service(now, number)) else {
        return false;
    };
    let asked = PingKey::new(service.id, key.family, key.dst);
    let time = policy::coarse_now();
    match pinged.get_ptr_mut(&asked) {
        // SAFETY: the entry's memory stays what it is while the program runs (RCU).
        Some(known) => unsafe {
            (*known).asked_ns = time;
            (*known).reachable_until_ns > time
        },
        None => {
            let first = Pinged { asked_ns: time, reachable_until_ns: 0 };
            if pinged.insert(&asked, &first, BPF_NOEXIST.into()).is_err() {
                stats::failure(HelperFailure::PingInsert);
            }
            false
        }
    }
}

/// Turns the request into its reply and sends it back; the answer is for tc. The segment is still where the request was
/// read into.
#[inline(always)]
pub fn answer(frame: &Frame<'_>) -> i32 {
    let Some(segment) = room_for_segment::<false>() else {
        return TC_ACT_SHOT;
    };
    match turn(frame, segment) {
        Ok(()) => frame.redirect(frame.interface()),
        Err(HelperFailed) => {
            stats::failure(HelperFailure::Redirect);
            TC_ACT_SHOT
        }
    }
}

/// That addresses are exchanged changes no checksum.
#[inline(never)]
fn turn(frame: &Frame<'_>, segment: &Segment) -> Result<(), HelperFailed> {
    let (ip, icmp) = (segment.ip_offset, segment.tcp_offset);
    frame.exchange_ethernet()?;
    match segment.key.family {
        Family::V4 => {
            frame.write(ip + 12, &segment.key.dst.v4_bytes())?;
            frame.write(ip + 16, &segment.key.src.v4_bytes())?;
            let [ttl, protocol] = frame.copy::<2>(ip + 8).ok_or(HelperFailed)?;
            frame.write(ip + 8, &[HOP_LIMIT])?;
            frame.fix_ipv4_checksum(ip + 10, [ttl, protocol], [HOP_LIMIT, protocol])?;
            frame.write(icmp, &[0])?;
            frame.fix_checksum(icmp + 2, [8, 0], [0, 0])
        }
        Family::V6 => {
            frame.write(ip + 8, &segment.key.dst.bytes)?;
            frame.write(ip + 24, &segment.key.src.bytes)?;
            frame.write(ip + 7, &[HOP_LIMIT])?;
            frame.write(icmp, &[129])?;
            frame.fix_checksum(icmp + 2, [128, 0], [129, 0])
        }
    }
}
