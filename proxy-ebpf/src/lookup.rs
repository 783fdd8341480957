//! The stack's search for a listener.
//!
//! tc gives new connections to a listener itself. Where it only marks (a SYN on TIME_WAIT, the answer to a
//! SYN cookie) it notes the connection, and the stack comes here, because no listener is bound to a foreign address.

use core::ptr::read_volatile as read;

use aya_ebpf::programs::SkLookupContext;
use sheer_common::{
    abi::{Address, Family},
    flow::FlowKey,
    verdict::{HelperFailure, Verdict},
};

use crate::{
    kernel::is_asking,
    policy::{self, Side},
    stats,
};

/// Let the search go on, with the listener that was assigned if there is one (`SK_PASS`).
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

/// Assigns our listener where a service takes the connection; otherwise the search goes on without us.
#[inline(always)]
pub fn listener(ctx: &SkLookupContext) -> u32 {
    if let Some(verdict) = assign(ctx) {
        stats::verdict(verdict);
    }
    SK_PASS
}

#[inline(always)]
fn assign(ctx: &SkLookupContext) -> Option<Verdict> {
    // The tc program wants to know of every other socket.
    if is_asking() {
        return None;
    }
    let key = key(ctx)?;
    let now = &policy::current(Side::In)?;
    // Everybody's search comes through here: for this host's own services, of local processes, of the proxy itself.
    // Only what tc has just given to the proxy is ours.
    if !policy::is_fresh_opening(&key) {
        return None;
    }
    let listener = policy::listener(now, &key)?;
    if listener.take_lookup(ctx).is_err() {
        stats::failure(HelperFailure::LookupAssign);
        return None;
    }
    Some(Verdict::LookupListener)
}

/// The tuple, from the peer to us; nothing where the protocol is not TCP.
#[inline(always)]
fn key(ctx: &SkLookupContext) -> Option<FlowKey> {
    let c = ctx.lookup;
    // Volatile, because the verifier takes loads at constant offsets only: the compiler would make one load of those
    // of both families, at an offset that depends.
    // SAFETY: `lookup` is the context of the program.
    unsafe {
        if read(&raw const (*c).protocol) != IPPROTO_TCP {
            return None;
        }
        // A 16-bit field in network order behind a 32-bit window (include/uapi/linux/bpf.h); the local port
        // alone is in host order.
        let remote_port = u16::from_be(read(&raw const (*c).remote_port));
        let local_port = read(&raw const (*c).local_port) as u16;
        match read(&raw const (*c).family) {
            AF_INET => {
                let src = Address::v4(read(&raw const (*c).remote_ip4).to_ne_bytes());
                let dst = Address::v4(read(&raw const (*c).local_ip4).to_ne_bytes());
                Some(FlowKey::tcp(Family::V4, src, remote_port, dst, local_port))
            }
            AF_INET6 => {
                let r = &raw const (*c).remote_ip6;
                let l = &raw const (*c).local_ip6;
                let words = |w: *const [u32; 4]| [0, 1, 2, 3].map(|n| read(w.cast::<u32>().add(n)));
                Some(FlowKey::tcp(Family::V6, v6(words(r)), remote_port, v6(words(l)), local_port))
            }
            _ => None,
        }
    }
}

#[inline(always)]
fn v6(words: [u32; 4]) -> Address {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Address::v6(bytes)
}
