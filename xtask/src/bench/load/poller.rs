use std::{os::fd::AsFd, time::Duration};

use anyhow::{Context, Result};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};

/// How many events one wait may bring.
const EVENTS: usize = 512;

/// epoll, with an index in place of each file.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll instance")?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS) })
    }

    pub fn add(&self, file: impl AsFd, index: usize, flags: epoll::EventFlags) -> Result<()> {
        epoll::add(&self.epoll, file, epoll::EventData::new_u64(index as u64), flags)
            .context("cannot add to epoll")
    }

    /// The indices that are ready, and for what. None after `patience`.
    pub fn wait(
        &mut self,
        patience: Option<Duration>,
    ) -> Result<impl Iterator<Item = (usize, epoll::EventFlags)>> {
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting on epoll"),
        }
        Ok(self.events.iter().map(|event| (event.data.u64() as usize, event.flags)))
    }
}
