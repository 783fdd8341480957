//! Entry points of the kernel programs. What they do is in [`steer`], [`egress`] and [`lookup`].

#![no_std]
#![no_main]
// The names of maps and programs are part of the interface: they are what bpftool shows.
#![allow(non_upper_case_globals)]

mod egress;
mod explain;
mod fragment;
mod kernel;
mod limit;
mod lookup;
mod maps;
mod ping;
mod policy;
mod stats;
mod steer;
mod trace;
mod way;

use aya_ebpf::{
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use sheer_ebpf::parse::Layer;

/// At tc ingress of devices whose frames begin with an Ethernet header.
#[classifier]
pub fn sheer_ether(ctx: TcContext) -> i32 {
    steer::ingress(&ctx, Layer::Ethernet)
}

/// At tc ingress of devices whose frames begin with the IP header.
#[classifier]
pub fn sheer_ip(ctx: TcContext) -> i32 {
    steer::ingress(&ctx, Layer::Ip)
}

/// At tc egress of devices whose frames begin with an Ethernet header.
#[classifier]
pub fn sheer_out_ether(ctx: TcContext) -> i32 {
    egress::egress(&ctx, Layer::Ethernet)
}

/// At tc egress of devices whose frames begin with the IP header.
#[classifier]
pub fn sheer_out_ip(ctx: TcContext) -> i32 {
    egress::egress(&ctx, Layer::Ip)
}

/// Not attached: asked about a packet by BPF_PROG_TEST_RUN. The frame begins with an Ethernet header.
#[classifier]
pub fn sheer_explain(ctx: TcContext) -> i32 {
    steer::explain(&ctx, Layer::Ethernet)
}

/// Not loaded but by the benchmark: what a program costs that does nothing.
#[classifier]
pub fn sheer_empty(_ctx: TcContext) -> i32 {
    aya_ebpf::bindings::TC_ACT_UNSPEC
}

/// When the stack looks for a listener: for steered packets, and for all others of this network namespace.
#[sk_lookup]
pub fn sheer_lookup(ctx: SkLookupContext) -> u32 {
    lookup::listener(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

// bpf_sk_assign and the socket lookups are for programs under a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
