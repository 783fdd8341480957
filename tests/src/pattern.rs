//! Bytes that say where they belong: a checksum that also tells at which byte it went wrong.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use crate::connect::read;

/// A long, non-repeating block, sent over and over. Its length is a prime, so that a lost, doubled or moved piece of any
/// likely size shows.
#[derive(Debug)]
pub struct Pattern {
    block: Vec<u8>,
}

/// How a received stream differs from the pattern.
#[derive(Debug)]
pub enum PatternError {
    /// The bytes from this offset on (somewhere in the next 256 KiB) are not those that were sent.
    Wrong(u64),
    /// The stream broke after so many bytes.
    Broken(u64, io::Error),
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(offset) => write!(f, "other bytes than were sent, after byte {offset}"),
            Self::Broken(offset, error) => write!(f, "the stream broke after byte {offset}: {error}"),
        }
    }
}

const PRIME: usize = 1_048_583;
const CHUNK: usize = 256 * 1024;

impl Pattern {
    /// Patterns of different seeds differ, so that the two directions of a connection cannot be mixed up.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut block = Vec::with_capacity(PRIME + CHUNK);
        while block.len() < PRIME {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(PRIME);
        // The beginning once more, so that every chunk is one slice.
        block.extend_from_within(..CHUNK);
        Self { block }
    }

    fn at(&self, offset: u64, length: usize) -> &[u8] {
        let start = usize::try_from(offset % PRIME as u64).unwrap();
        &self.block[start..start + length]
    }

    /// Sends that many bytes.
    ///
    /// # Errors
    /// Those of write(2), with the offset.
    pub fn send(&self, to: &mut impl Write, bytes: u64) -> Result<(), PatternError> {
        self.send_while(to, |offset| bytes - offset).map(|_| ())
    }

    /// Sends until `left`, which is told how many bytes went out, says that none is; gives their count.
    ///
    /// # Errors
    /// Those of write(2), with the offset.
    pub fn send_while(
        &self,
        to: &mut impl Write,
        mut left: impl FnMut(u64) -> u64,
    ) -> Result<u64, PatternError> {
        let mut offset = 0;
        loop {
            let length = CHUNK.min(usize::try_from(left(offset)).unwrap_or(CHUNK));
            if length == 0 {
                return Ok(offset);
            }
            to.write_all(self.at(offset, length)).map_err(|e| PatternError::Broken(offset, e))?;
            offset += length as u64;
        }
    }

    /// Sends that many bytes to an echo server, and compares what comes back meanwhile; gives its count.
    ///
    /// # Errors
    /// At the first difference, or when the stream breaks.
    pub fn there_and_back(&self, mut stream: TcpStream, bytes: u64) -> Result<u64, PatternError> {
        let mut writing = stream.try_clone().map_err(|e| PatternError::Broken(0, e))?;
        thread::scope(|scope| {
            let sending = scope.spawn(move || {
                self.send(&mut writing, bytes)?;
                writing.shutdown(Shutdown::Write).map_err(|e| PatternError::Broken(bytes, e))
            });
            let received = self.receive(&mut stream);
            sending.join().unwrap().and(received)
        })
    }

    /// Receives to the end of the stream, comparing every byte, and gives the count.
    ///
    /// # Errors
    /// At the first difference.
    pub fn receive(&self, from: &mut impl Read) -> Result<u64, PatternError> {
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        loop {
            let count = match read(from, &mut buffer) {
                Ok(0) => return Ok(offset),
                Ok(count) => count,
                Err(error) => return Err(PatternError::Broken(offset, error)),
            };
            if buffer[..count] != *self.at(offset, count) {
                return Err(PatternError::Wrong(offset));
            }
            offset += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_recognised() {
        let pattern = Pattern::new(1);
        let mut wire = Vec::new();
        pattern.send(&mut wire, 3_000_000).unwrap();
        assert_eq!(pattern.receive(&mut wire.as_slice()).unwrap(), 3_000_000);
    }

    #[test]
    fn a_lost_byte_and_swapped_pieces_are_noticed() {
        let pattern = Pattern::new(1);
        let mut wire = Vec::new();
        pattern.send(&mut wire, 3_000_000).unwrap();
        let mut lost = wire.clone();
        lost.remove(2_000_000);
        assert!(matches!(pattern.receive(&mut lost.as_slice()), Err(PatternError::Wrong(_))));
        wire[..65536].rotate_left(4096);
        assert!(matches!(pattern.receive(&mut wire.as_slice()), Err(PatternError::Wrong(0))));
    }

    #[test]
    fn the_two_directions_differ() {
        let mut wire = Vec::new();
        Pattern::new(1).send(&mut wire, 100).unwrap();
        assert!(Pattern::new(2).receive(&mut wire.as_slice()).is_err());
    }
}
