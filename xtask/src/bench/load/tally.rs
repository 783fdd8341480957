//! What the receiver has received, asked of the receiver itself.
//!
//! What a sender has sent may lie in buffers, or be lost in a proxy that takes more than it gives.

use std::{
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream},
};

use anyhow::{Context, Result};

/// Bytes swallowed since the server started, and the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub bytes: u64,
    pub nanoseconds: u64,
}

/// The size of a tally on the wire.
pub const SIZE: usize = 16;

impl Tally {
    pub fn to_wire(self) -> [u8; SIZE] {
        let mut wire = [0; SIZE];
        wire[..8].copy_from_slice(&self.bytes.to_be_bytes());
        wire[8..].copy_from_slice(&self.nanoseconds.to_be_bytes());
        wire
    }

    fn from_wire(wire: [u8; SIZE]) -> Self {
        let number = |half: &[u8]| half.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Self { bytes: number(&wire[..8]), nanoseconds: number(&wire[8..]) }
    }

    /// Bytes and seconds since `earlier`.
    pub fn since(self, earlier: Self) -> (u64, f64) {
        (self.bytes - earlier.bytes, (self.nanoseconds - earlier.nanoseconds) as f64 / 1e9)
    }
}

/// A connection to the server over which it can be asked.
pub struct Teller(TcpStream);

impl Teller {
    pub fn connect(address: SocketAddrV4) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    pub fn ask(&mut self) -> Result<Tally> {
        self.0.write_all(&[0]).context("the server cannot be asked for its tally")?;
        let mut wire = [0; SIZE];
        self.0.read_exact(&mut wire).context("the server does not tell its tally")?;
        Ok(Tally::from_wire(wire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_survives_the_wire() {
        let tally = Tally { bytes: 0x0102_0304_0506_0708, nanoseconds: u64::MAX - 1 };
        assert_eq!(Tally::from_wire(tally.to_wire()), tally);
    }
}
