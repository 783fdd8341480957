//! The kernel's helpers, wrapped: the only unsafe code of the programs beside counters and map values.

use core::{ffi::c_void, mem, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, iphdr, tcphdr},
    helpers::{
        bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release, bpf_skc_lookup_tcp,
        bpf_tcp_check_syncookie,
    },
    programs::{SkLookupContext, TcContext},
};
use sheer_common::{
    abi::{Family, NetPort},
    flow::FlowKey,
};
use sheer_ebpf::parse::{Packet, Segment};

use crate::maps::{asking, scratch};

/// A frame at tc.
pub struct Frame<'a>(pub &'a TcContext);

impl Packet for Frame<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let start = self.0.data();
        if start + offset + N > self.0.data_end() {
            return None;
        }
        // SAFETY: the bytes lie between data and data_end, which the verifier checks again.
        Some(unsafe { &*((start + offset) as *const [u8; N]) })
    }

    #[inline(always)]
    fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(offset as usize).ok()
    }
}

impl Frame<'_> {
    /// The interface that it came in by, as the kernel numbers it.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context of the program; the access is one load at a constant offset.
        unsafe { (*self.0.skb.skb).ifindex }
    }
}

/// States of a TCP socket that steering tells apart (include/net/tcp_states.h).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// TIME_WAIT.
    TimeWait,
    /// A handshake on a listener.
    Request,
    /// A listener.
    Listen,
    /// Any other: a full socket.
    Full,
}

/// Without options; the bindings know the structure by name only.
const TCP_HEADER_LEN: usize = 20;

const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// A referenced socket; the reference ends with the value.
pub struct Socket(NonNull<bpf_sock>);

impl Drop for Socket {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: every way to a `Socket` is a helper that took a reference.
        unsafe { bpf_sk_release(self.0.as_ptr().cast()) };
    }
}

impl Socket {
    /// The socket in a slot of a sockmap.
    #[inline(always)]
    pub fn in_map<T>(map: &'static T, slot: u32) -> Option<Self> {
        let map: *const T = map;
        // SAFETY: `map` is a map definition that the loader relocates; a sockmap's lookup takes a reference.
        let found = unsafe { bpf_map_lookup_elem(map.cast_mut().cast(), (&raw const slot).cast()) };
        NonNull::new(found.cast()).map(Self)
    }

    /// The socket that the stack would give a packet of this tuple to, of any state, but for the listener that our own
    /// socket lookup would name: it is not asked.
    #[inline(always)]
    pub fn of_tuple(ctx: &TcContext, key: &FlowKey) -> Option<Self> {
        // Zeroed first: the helper reads all of it, and the verifier wants every byte written.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        let size = match key.family {
            Family::V4 => {
                // SAFETY: both members of the union are plain numbers.
                let t = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
                t.saddr = u32::from_ne_bytes(key.src.v4_bytes());
                t.daddr = u32::from_ne_bytes(key.dst.v4_bytes());
                t.sport = NetPort::from_host(key.src_port).0;
                t.dport = NetPort::from_host(key.dst_port).0;
                mem::size_of_val(t)
            }
            Family::V6 => {
                // SAFETY: as above.
                let t = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
                t.saddr = words(&key.src.bytes);
                t.daddr = words(&key.dst.bytes);
                t.sport = NetPort::from_host(key.src_port).0;
                t.dport = NetPort::from_host(key.dst_port).0;
                mem::size_of_val(t)
            }
        };
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        set_asking(1);
        // SAFETY: the tuple lives on the stack and its size is that of the family's member.
        let found = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size as u32, netns, 0) };
        set_asking(0);
        NonNull::new(found).map(Self)
    }

    /// Its state.
    #[inline(always)]
    pub fn state(&self) -> State {
        // SAFETY: the state may be read of any socket, full or not.
        match unsafe { (*self.0.as_ptr()).state } {
            TCP_TIME_WAIT => State::TimeWait,
            TCP_NEW_SYN_RECV => State::Request,
            TCP_LISTEN => State::Listen,
            _ => State::Full,
        }
    }

    /// Its mark; nothing for sockets in TIME_WAIT and for handshakes, which carry none.
    #[inline(always)]
    pub fn mark(&self) -> Option<u32> {
        // SAFETY: the helper checks the kind of the socket and takes no reference of its own.
        let full = NonNull::new(unsafe { bpf_sk_fullsock(self.0.as_ptr()) })?;
        // SAFETY: a full socket has a mark.
        Some(unsafe { (*full.as_ptr()).mark })
    }

    /// Gives the packet to this listener.
    #[inline(always)]
    pub fn take_packet(&self, ctx: &TcContext) -> Result<(), i64> {
        self.assign(ctx.as_ptr())
    }

    /// Answers the stack's search for a listener with this one.
    #[inline(always)]
    pub fn take_lookup(&self, ctx: &SkLookupContext) -> Result<(), i64> {
        self.assign(ctx.as_ptr())
    }

    #[inline(always)]
    fn assign(&self, ctx: *mut c_void) -> Result<(), i64> {
        // SAFETY: context and socket are what the helper takes for these two kinds of program.
        match unsafe { bpf_sk_assign(ctx, self.0.as_ptr().cast(), 0) } {
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// Whether a segment is the ACK that answers a SYN cookie of this listener, and a recent one.
    #[inline(always)]
    pub fn sent_cookie(&self, frame: &Frame<'_>, segment: &Segment) -> bool {
        match segment.key.family {
            Family::V4 => self.check_cookie::<20>(frame, segment),
            Family::V6 => self.check_cookie::<40>(frame, segment),
        }
    }

    /// Not inlined: both headers are copied, and the stack is small.
    #[inline(never)]
    fn check_cookie<const N: usize>(&self, frame: &Frame<'_>, segment: &Segment) -> bool {
        let (Some(ip), Some(tcp)) =
            (frame.copy::<N>(segment.ip_offset), frame.copy::<TCP_HEADER_LEN>(segment.tcp_offset))
        else {
            return false;
        };
        let ip = ip.as_ptr().cast_mut().cast::<iphdr>();
        let tcp_header = tcp.as_ptr().cast_mut().cast::<tcphdr>();
        // SAFETY: both headers are on the stack, of the stated lengths; the helper only reads them.
        unsafe {
            bpf_tcp_check_syncookie(self.0.as_ptr().cast(), ip.cast(), N as u32, tcp_header, tcp.len() as u32)
                == 0
        }
    }
}

/// Where a segment is read into: memory of which the verifier knows nothing.
///
/// On the stack it remembers by which way each byte came there, and follows for each way anew what is done with them:
/// many times the instructions, and time at every start. The stack is small besides.
///
/// A test run, with `DRY`, has a place of its own: a packet may come in between.
#[inline(always)]
pub fn room_for_segment<const DRY: bool>() -> Option<&'static mut Segment> {
    // SAFETY: the map is per CPU, and a program at tc is not interrupted by another one on its CPU.
    scratch.get_ptr_mut(u32::from(DRY)).map(|room| unsafe { &mut *room })
}

/// Whether it is a program of ours, at tc on this CPU, that searches for a listener.
#[inline(always)]
pub fn is_asking() -> bool {
    asking.get(0).is_some_and(|set| *set != 0)
}

#[inline(always)]
fn set_asking(value: u32) {
    if let Some(flag) = asking.get_ptr_mut(0) {
        // SAFETY: the map is per CPU, and nothing of ours runs on this one between a question and its answer but the
        // socket lookup itself.
        unsafe { *flag = value };
    }
}

/// An IPv6 address as the four words that socket tuples hold, still in network order.
#[inline(always)]
fn words(b: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}
