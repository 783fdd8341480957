//! The `ways` map: by which way a client's packets come, for services that answer by the same one.
//!
//! Routes know one way to an address. Where clients come in by several gateways, the answer has to go to the gateway that
//! the question came from: other makers call it "auto last hop".

use crate::assert_size;

/// The value of the `ways` map, whose key is the tuple of the answers: from the server to the client.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface by which the client's packets come, as the kernel numbers it.
    pub interface: u32,
    /// Destination and source of the Ethernet header that answers get: those of the client's packets, exchanged.
    pub ethernet: [u8; 12],
    /// The tag control information of their outermost VLAN tag, host order, and its protocol in network order; both zero
    /// without a tag.
    pub vlan: Vlan,
    /// Not zero: the interface's frames begin with an Ethernet header.
    pub has_ethernet: u32,
}
assert_size!(Way, 24);

/// A VLAN tag as the kernel keeps it beside a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vlan {
    /// Priority and VLAN, host order.
    pub tci: u16,
    /// The tag's ethertype, network order; zero: no tag.
    pub protocol: u16,
}
assert_size!(Vlan, 4);

/// Capacity of the `ways` map. The connections that were quiet for the longest are forgotten when it is full; their
/// answers go by this host's routes then.
pub const MAX_WAYS: usize = 1 << 16;

/// An entry of the `devices` map: a listed interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its own Ethernet address.
    pub address: [u8; 6],
    /// Zero.
    pub _pad: u16,
}
assert_size!(Device, 8);
