//! Pipes for splice(2), pooled per worker.
//!
//! A pipe of 256 KiB pins up to 64 pages; without CAP_SYS_RESOURCE all pipes of a user share
//! `fs.pipe-user-pages-soft` (16384 pages by default). So their number is bounded, and a direction that gets none
//! goes on with read and write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Bytes that a pipe holds.
pub const PIPE_SIZE: usize = 1024 * 1024;
/// Pipes in use at once, per worker: 64 MiB if every page of each is filled.
pub const MAX_PIPES: usize = 256;
/// Pipes kept for the next user.
const MAX_IDLE: usize = 64;

#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// The receiver did not take bytes at the last try.
    pub(super) blocked: bool,
}

impl Pipe {
    fn new() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // A smaller pipe would make bulk slower than copying.
        fcntl_setpipe_size(&write, PIPE_SIZE).ok()?;
        Some(Self { read, write, blocked: false })
    }

    pub(super) fn read_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    pub(super) fn write_end(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }
}

#[derive(Debug)]
pub struct PipePool {
    idle: Vec<Pipe>,
    in_use: usize,
    max: usize,
    /// The kernel gave no pipe; not asked again until [`PipePool::retry`].
    exhausted: bool,
    /// Times that a direction asked in vain.
    refused: u64,
}

impl PipePool {
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { idle: Vec::new(), in_use: 0, max, exhausted: false, refused: 0 }
    }

    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Lets the kernel be asked again; to be called once in a while.
    pub fn retry(&mut self) {
        self.exhausted = false;
    }

    pub(super) fn take(&mut self) -> Option<Pipe> {
        let pipe = match self.idle.pop() {
            Some(pipe) => Some(pipe),
            None if self.in_use < self.max && !self.exhausted => {
                let pipe = Pipe::new();
                self.exhausted = pipe.is_none();
                pipe
            }
            None => None,
        };
        match pipe {
            Some(_) => self.in_use += 1,
            None => self.refused += 1,
        }
        pipe
    }

    /// Takes a pipe back; one that still holds bytes is closed.
    pub(super) fn put_back(&mut self, mut pipe: Pipe, drained: bool) {
        self.in_use -= 1;
        if drained && self.idle.len() < MAX_IDLE {
            pipe.blocked = false;
            self.idle.push(pipe);
        }
    }
}
