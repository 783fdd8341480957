//! A line for each decision, where the proxy was started with `--trace`.
//!
//! The level is fixed when the programs are loaded: without it the verifier finds these branches dead and
//! removes them.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use sheer_common::{abi::Family, flow::FlowKey, verdict::Verdict};

/// Tells what was decided about a segment that `flows` did not know.
#[inline(always)]
pub fn decision(ctx: &TcContext, key: &FlowKey, verdict: Verdict) {
    if level_enabled(Level::Debug) {
        tell(ctx, key, verdict);
    }
}

#[inline(never)]
fn tell(ctx: &TcContext, key: &FlowKey, verdict: Verdict) {
    let (from, to) = (key.src_port, key.dst_port);
    match key.family {
        Family::V4 => {
            let (src, dst) = (key.src.v4_bytes(), key.dst.v4_bytes());
            debug!(ctx, "{:i}:{} > {:i}:{} {}", src, from, dst, to, verdict.name());
        }
        Family::V6 => {
            debug!(ctx, "[{:i}]:{} > [{:i}]:{} {}", key.src.bytes, from, key.dst.bytes, to, verdict.name());
        }
    }
}
