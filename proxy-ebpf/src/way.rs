//! Answers that leave by the way by which the client came: see [`sheer_common::way`].

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use sheer_common::{
    flow::FlowKey,
    verdict::HelperFailure,
    way::{Vlan, Way},
};
use sheer_ebpf::parse::{Layer, Packet as _, parse};

use crate::{
    kernel::{Frame, HelperFailed, room_for_segment},
    maps::ways,
    stats,
};

/// Remembers by which way a client's first packet came.
#[inline(never)]
pub fn learn(frame: &Frame<'_>, key: &FlowKey) {
    let learnt = of(frame).is_some_and(|way| ways.insert(&key.reversed(), &way, 0).is_ok());
    if !learnt {
        stats::failure(HelperFailure::WayInsert);
    }
}

/// A client may come by another way from some packet on: its gateway has been replaced, or its routes have changed.
#[inline(never)]
pub fn follow(frame: &Frame<'_>, key: &FlowKey) {
    let answers = key.reversed();
    let Some(known) = ways.get_ptr_mut(&answers) else {
        return;
    };
    // SAFETY: the entry's memory stays a way while the program runs (RCU).
    if let Some(way) = of(frame).filter(|way| unsafe { *known } != *way) {
        // It was there a moment ago; an answer meanwhile goes by the routes.
        let _ = ways.insert(&answers, &way, 0);
    }
}

/// The way that leads back to where a frame came from.
#[inline(always)]
fn of(frame: &Frame<'_>) -> Option<Way> {
    let interface = frame.interface();
    if frame.layer() == Layer::Ip {
        return Some(Way { interface, ethernet: [0; 12], vlan: Vlan::default(), has_ethernet: 0 });
    }
    let came = frame.head::<12>(0)?;
    let mut ethernet = [0; 12];
    ethernet[..6].copy_from_slice(&came[6..]);
    ethernet[6..].copy_from_slice(&came[..6]);
    Some(Way { interface, ethernet, vlan: frame.vlan(), has_ethernet: 1 })
}

/// Sends a packet of the proxy's by the way that its client came by, if that is known; the answer is for tc.
#[inline(never)]
pub fn answer(frame: &Frame<'_>) -> i32 {
    let Some(segment) = room_for_segment::<false>() else {
        return TC_ACT_UNSPEC;
    };
    if parse(frame, frame.layer(), segment).is_err() {
        return TC_ACT_UNSPEC;
    }
    let Some(way) = ways.get_ptr(&segment.key) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the entry's memory stays a way while the program runs (RCU).
    let way = unsafe { *way };
    if address(frame, &way).is_err() {
        stats::failure(HelperFailure::Redirect);
        return TC_ACT_UNSPEC;
    }
    if way.interface == frame.interface() { TC_ACT_UNSPEC } else { frame.redirect(way.interface) }
}

/// Gives a packet the Ethernet header of its way. Where the way has none the kernel takes it off.
#[inline(never)]
fn address(frame: &Frame<'_>, way: &Way) -> Result<(), HelperFailed> {
    if way.has_ethernet == 0 {
        return Ok(());
    }
    if frame.layer() == Layer::Ip {
        frame.add_ethernet()?;
    } else if frame.head::<12>(0) == Some(&way.ethernet) && frame.vlan() == way.vlan {
        return Ok(());
    }
    frame.write(0, &way.ethernet)?;
    if frame.vlan() == way.vlan { Ok(()) } else { frame.set_vlan(way.vlan) }
}
