//! Sockets as the proxy needs them: addresses that cannot be mixed up, transparent listeners,
//! upstream sockets with a chosen source, and streams that tell readiness.
//!
//! Everything that the kernel can refuse is named here, with its likely cause; the stages behind this
//! module deal in typed errors only.

pub mod addr;
pub mod ports;
pub mod source;
pub mod stream;
pub(crate) mod sys;
pub mod transparent;

pub use addr::{ClientAddr, OriginalDst, SourceAddr, UpstreamAddr};
pub use ports::UsedUp;
pub use source::{SourceError, SourceMode, SourceStep};
pub use stream::Stream;
pub use transparent::{ListenError, Listeners, bind_listeners};
