//! The kernel's helpers, wrapped: the only unsafe code of the programs beside counters and map values.

use core::{
    ffi::c_void,
    mem::{self, MaybeUninit},
    ptr::{self, NonNull},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_CSUM_LEVEL_RESET, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
        bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock, bpf_sock_tuple, iphdr, tcphdr,
    },
    helpers::{
        bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release, bpf_skb_load_bytes,
        bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
        generated::{
            bpf_clone_redirect, bpf_csum_level, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head,
            bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes_relative, bpf_skb_store_bytes,
            bpf_skb_vlan_pop, bpf_skb_vlan_push,
        },
    },
    programs::{SkLookupContext, TcContext},
};
use sheer_common::{
    abi::{Family, NetPort},
    flow::FlowKey,
    fragment::{Held, MAX_HELD_LEN},
    way::{Device, Vlan},
};
use sheer_ebpf::parse::{Layer, Packet, Segment};

use crate::maps::{asking, scratch};

/// A frame at tc.
pub struct Frame<'a> {
    ctx: &'a TcContext,
    layer: Layer,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a TcContext, layer: Layer) -> Self {
        Self { ctx, layer }
    }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let start = self.ctx.data();
        if start + offset + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the bytes lie between data and data_end, which the verifier checks again.
        Some(unsafe { &*((start + offset) as *const [u8; N]) })
    }

    #[inline(always)]
    fn copy<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::uninit();
        // SAFETY: all of it is written where the answer is yes.
        if self.read(offset, bytes.as_mut_ptr()) { Some(unsafe { bytes.assume_init() }) } else { None }
    }
}

impl<'a> Frame<'a> {
    /// What the program runs on.
    #[inline(always)]
    pub fn context(&self) -> &'a TcContext {
        self.ctx
    }

    /// What it begins with.
    #[inline(always)]
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// Writes `N` bytes of the frame to `into`, or says that it has not so many.
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32, into: *mut [u8; N]) -> bool {
        let (skb, into, len) = (self.ctx.as_ptr(), into.cast(), N as u32);
        // SAFETY: there is room for N bytes.
        let failed = unsafe {
            match self.layer {
                Layer::Ethernet => bpf_skb_load_bytes(skb, offset, into, len),
                // Before Linux 5.14 a tunnel's packets still have the outer headers in front; the network header is
                // always the inner one.
                Layer::Ip => bpf_skb_load_bytes_relative(skb, offset, into, len, BPF_HDR_START_NET),
            }
        };
        failed == 0
    }

    /// The interface that it comes in or goes out by, as the kernel numbers it.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context of the program; the access is one load at a constant offset. So are those below.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// Whether it came in from somewhere: at egress, whether it is only forwarded.
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).ingress_ifindex != 0 }
    }

    /// Its mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).mark }
    }

    /// Whether its Ethernet address is somebody else's.
    #[inline(always)]
    pub fn is_for_other_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).pkt_type == PACKET_OTHERHOST }
    }

    /// The outermost VLAN tag, which the kernel keeps beside the frame.
    #[inline(always)]
    pub fn vlan(&self) -> Vlan {
        // SAFETY: as above.
        unsafe {
            let skb = self.ctx.skb.skb;
            if (*skb).vlan_present == 0 {
                return Vlan::default();
            }
            Vlan { tci: (*skb).vlan_tci as u16, protocol: (*skb).vlan_proto as u16 }
        }
    }

    /// Replaces the outermost VLAN tag.
    #[inline(always)]
    pub fn set_vlan(&self, vlan: Vlan) -> Result<(), HelperFailed> {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context of the program.
        unsafe {
            if (*skb).vlan_present != 0 {
                done(bpf_skb_vlan_pop(skb))?;
            }
            if vlan.protocol == 0 { Ok(()) } else { done(bpf_skb_vlan_push(skb, vlan.protocol, vlan.tci)) }
        }
    }

    /// Whether the IP header stands where the frame says; before Linux 5.14 a tunnel's outer headers come first.
    #[inline(always)]
    pub fn begins_at_network_header(&self, ip_offset: u32) -> bool {
        if self.layer == Layer::Ethernet {
            return true;
        }
        let (mut there, mut network) = ([0u8; 8], [0u8; 8]);
        // SAFETY: there is room for as many bytes.
        let read = unsafe { bpf_skb_load_bytes(self.ctx.as_ptr(), ip_offset, there.as_mut_ptr().cast(), 8) };
        read == 0 && self.read(ip_offset, &raw mut network) && there == network
    }

    /// Exchanges the addresses of the Ethernet header, where there is one.
    #[inline(always)]
    pub fn exchange_ethernet(&self) -> Result<(), HelperFailed> {
        if self.layer == Layer::Ip {
            return Ok(());
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.copy::<12>(0).ok_or(HelperFailed)?;
        self.write(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
    }

    /// Mends the checksum of an IPv4 header in which two bytes have changed.
    #[inline(always)]
    pub fn fix_ipv4_checksum(&self, at: u32, from: [u8; 2], to: [u8; 2]) -> Result<(), HelperFailed> {
        let (from, to) = (u16::from_ne_bytes(from).into(), u16::from_ne_bytes(to).into());
        self.ctx.l3_csum_replace(at as usize, from, to, 2).map_err(|_| HelperFailed)
    }

    /// Mends a checksum behind the IP header when two bytes have changed.
    #[inline(always)]
    pub fn fix_checksum(&self, at: u32, from: [u8; 2], to: [u8; 2]) -> Result<(), HelperFailed> {
        let (from, to) = (u16::from_ne_bytes(from).into(), u16::from_ne_bytes(to).into());
        self.ctx.l4_csum_replace(at as usize, from, to, 2).map_err(|_| HelperFailed)
    }

    /// Writes over bytes; checksums are not mended.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> Result<(), HelperFailed> {
        // SAFETY: the context of the program, and bytes of that length.
        done(unsafe { bpf_skb_store_bytes(self.ctx.skb.skb, offset, bytes.as_ptr().cast(), N as u32, 0) })
    }

    /// Puts an Ethernet header in front of a packet that has none; its addresses are zero.
    #[inline(always)]
    pub fn add_ethernet(&self) -> Result<(), HelperFailed> {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context of the program; ethertypes are in network order in both places.
        unsafe {
            let ethertype = ((*skb).protocol as u16).to_ne_bytes();
            done(bpf_skb_change_head(skb, ETHERNET_LEN, 0))?;
            self.write(ETHERNET_LEN - 2, &ethertype)
        }
    }

    /// Makes a frame that a bridge would pass on to somebody else one for this host.
    #[inline(always)]
    pub fn take(&self, device: &Device) -> Result<(), HelperFailed> {
        self.write(0, &device.address)?;
        // SAFETY: the context of the program.
        done(unsafe { bpf_skb_change_type(self.ctx.skb.skb, PACKET_HOST) })
    }

    /// Turns a packet that leaves back to this host's own sockets; the answer is for tc.
    ///
    /// The helper routes it anew, by its mark and with `lo` as the interface that it shall leave by: the route that it
    /// finds delivers it here. So it never passes the check of sources on input, which takes an address of this
    /// host's own for forged.
    #[inline(always)]
    pub fn turn_back(&self, mark: u32) -> i32 {
        if self.vlan().protocol != 0 && self.set_vlan(Vlan::default()).is_err() {
            return TC_ACT_SHOT;
        }
        // The helper takes an Ethernet header off.
        if self.layer == Layer::Ip && self.add_ethernet().is_err() {
            return TC_ACT_SHOT;
        }
        self.ctx.set_mark(mark);
        // SAFETY: no parameters are passed.
        unsafe { bpf_redirect_neigh(LOOPBACK, ptr::null_mut(), 0, 0) as i32 }
    }

    /// Sends it out by another interface; the answer is for tc.
    #[inline(always)]
    pub fn redirect(&self, interface: u32) -> i32 {
        // SAFETY: an interface that does not exist any more makes the kernel drop the packet.
        unsafe { bpf_redirect(interface, 0) as i32 }
    }
}

/// A helper refused its work.
pub struct HelperFailed;

#[inline(always)]
fn done(result: i64) -> Result<(), HelperFailed> {
    if result == 0 { Ok(()) } else { Err(HelperFailed) }
}

/// The first interface of every network namespace is `lo` (LOOPBACK_IFINDEX of include/net/flow.h).
const LOOPBACK: u32 = 1;
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;
const ETHERNET_LEN: u32 = 14;

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
        let (mut ip, mut tcp) = ([0u8; N], [0u8; TCP_HEADER_LEN]);
        // Read in place: a copy would make the stack too deep for kernels that round it up for every function.
        if !frame.read(segment.ip_offset, &raw mut ip) || !frame.read(segment.tcp_offset, &raw mut tcp) {
            return false;
        }
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

/// Fragments, put aside and sent on.
impl Frame<'_> {
    /// Copies the packet from this offset on; false where it is too long.
    #[inline(always)]
    pub fn take_down(&self, at: u32, to: &mut Held) -> bool {
        to.len = self.ctx.len().wrapping_sub(at);
        if to.len == 0 || to.len > MAX_HELD_LEN as u32 || !self.begins_at_network_header(at) {
            return false;
        }
        let (bytes, len) = (to.bytes.as_mut_ptr().cast(), length(to));
        // SAFETY: the bytes are as many as there is room for.
        unsafe { bpf_skb_load_bytes(self.ctx.as_ptr(), at, bytes, len) == 0 }
    }

    /// Replaces everything from this offset on; false where the kernel refuses, and the packet is then good for nothing.
    #[inline(always)]
    pub fn become_bytes(&self, at: u32, held: &Held) -> bool {
        let skb = self.ctx.skb.skb;
        let len = length(held);
        // SAFETY: the bytes are as many as the entry has.
        unsafe {
            // What the network card has checked was another packet.
            bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET.into());
            bpf_skb_change_tail(skb, at + len, 0) == 0
                && bpf_skb_store_bytes(skb, at, held.bytes.as_ptr().cast(), len, BPF_F_RECOMPUTE_CSUM.into())
                    == 0
        }
    }

    /// Has a copy of the packet, as it is now, come in once more by the same interface.
    #[inline(always)]
    pub fn come_in_anew(&self) -> bool {
        // SAFETY: the context of the program.
        unsafe { bpf_clone_redirect(self.ctx.skb.skb, self.interface(), BPF_F_INGRESS.into()) == 0 }
    }
}

/// The length of an entry, which is not empty.
#[inline(always)]
fn length(held: &Held) -> u32 {
    // SAFETY: a number. Volatile, because the verifier wants to see for itself that it is within bounds, and the compiler
    // would spare it that.
    let len = unsafe { (&raw const held.len).read_volatile() };
    // Before Linux 5.15 it does not learn from a comparison that a number is not zero.
    (len.wrapping_sub(1) & (MAX_HELD_LEN as u32 - 1)) + 1
}
