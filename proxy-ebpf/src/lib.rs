//! The pure half of the kernel programs: what does not touch a map, a helper or a socket.
//!
//! It is compiled for the BPF target into the programs, and for the host into unit tests.
//!
//! - [`parse`]: bytes of a frame → the tuple, the flags and the offsets that steering needs

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod parse;
