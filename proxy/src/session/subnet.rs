//! A server that sees its client's address answers it. Where both are neighbours, that answer does not come through this
//! host; the client throws it away, and the connection would hang until it times out.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::{Relayed, Session};
use crate::config::SameSubnet;
use crate::policy::Service;
use crate::reason::CloseReason;
use crate::socket::{SourceMode, UpstreamAddr};
use crate::worker::Worker;

/// Where client and server meet without us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// On the link of this number.
    Link(u32),
    /// They are the same host.
    Itself,
}

impl Session {
    /// Does what the service says where the server would answer somebody else than this host.
    pub(super) fn mind_neighbours(mut self, worker: &Worker) -> Result<Self, Relayed> {
        let source = match self.route.source {
            SourceMode::Proxy => return Ok(self),
            SourceMode::Client | SourceMode::ClientPort => self.case.client.ip(),
            SourceMode::Fixed(ip) => ip,
        };
        let Some(meeting) = meeting(worker, source, self.to) else { return Ok(self) };
        let Some(served) = &self.case.service else { return Ok(self) };
        let service = &served.service;
        let done = service.same_subnet;
        if !service.told.swap(true, Ordering::Relaxed) {
            let place = Place { meeting, socket: &self.client };
            log::warn!("{}", warning(service, source, self.to, &place));
        }
        self.case.same_subnet = Some(done);
        worker.stats.same_subnet[done as usize].add(1);
        match done {
            SameSubnet::Refuse => return Err(self.case.refuse(self.client, CloseReason::SameSubnet)),
            SameSubnet::Proxy => self.route.source = SourceMode::Proxy,
            SameSubnet::Redirect => {}
        }
        Ok(self)
    }
}

/// The rough answer costs next to nothing; only where it says yes is the kernel asked.
fn meeting(worker: &Worker, source: IpAddr, to: UpstreamAddr) -> Option<Meeting> {
    let server = to.ip();
    {
        let services = worker.services();
        let itself = source == server;
        if !(itself || services.on_link().may_share(source, server)) {
            return None;
        }
        // What is sent to an address of this host comes here by itself.
        if source.is_loopback() || services.own().contains(&source) || services.own().contains(&server) {
            return None;
        }
        if itself {
            return Some(Meeting::Itself);
        }
    }
    let mut neighbours = worker.neighbours.borrow_mut();
    let mut link_to = |ip| {
        neighbours.link_to(ip).unwrap_or_else(|error| {
            worker.warn_of_neighbours(&error);
            None
        })
    };
    let link = link_to(server)?;
    (link_to(source)? == link).then_some(Meeting::Link(link))
}

/// A meeting in words; the socket is one to ask for names of links.
struct Place<'a> {
    meeting: Meeting,
    socket: &'a OwnedFd,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meeting {
            Meeting::Itself => f.write_str("are the same host"),
            Meeting::Link(link) => match rustix::net::netdevice::index_to_name(self.socket, link) {
                Ok(name) => write!(f, "are neighbours on {name}"),
                Err(_) => write!(f, "are neighbours on interface {link}"),
            },
        }
    }
}

fn warning(service: &Service, source: IpAddr, to: UpstreamAddr, place: &Place<'_>) -> String {
    let done = match service.same_subnet {
        SameSubnet::Refuse => "refused",
        SameSubnet::Proxy => "made from this host's own address",
        SameSubnet::Redirect => {
            "made as everywhere, and hang unless the server's answers pass through a listed port of a bridge here"
        }
    };
    format!(
        "service {}: the client's address {source} and the server {to} {place}, so that the server answers it directly and \
         not through this host. Such connections are {done}. What can be done: same_subnet = \"proxy\", and the server sees \
         this host's address; same_subnet = \"redirect\", where both are behind ports of a bridge on this host that are among \
         the interfaces; or a subnet of its own for the server",
        service.name
    )
}
