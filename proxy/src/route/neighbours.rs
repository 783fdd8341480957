//! By which link an address is reached without a router in between, as the kernel says it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteType};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::ask::{outgoing, request};
use super::onlink::direct;

/// Answers for single addresses, remembered until [`Neighbours::forget`].
///
/// Not asynchronous: the kernel looks up a route while it is being asked, without a lock, and the answer is there when
/// send(2) returns.
#[derive(Debug, Default)]
pub struct Neighbours {
    socket: Option<Socket>,
    known: HashMap<IpAddr, Option<u32>>,
}

impl Neighbours {
    /// The number of the link on which an address is a neighbour; nothing for this host's own, those behind a router,
    /// and those that cannot be reached.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_to(&mut self, ip: IpAddr) -> io::Result<Option<u32>> {
        if let Some(known) = self.known.get(&ip) {
            return Ok(*known);
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let answer = ask(&socket, ip)?;
        // One that failed is not used again: an answer could still be in it.
        self.socket = Some(socket);
        self.known.insert(ip, answer);
        Ok(answer)
    }

    /// Forgets all answers: routes may have changed.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn ask(socket: &Socket, ip: IpAddr) -> io::Result<Option<u32>> {
    let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(request(ip)));
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    Ok(match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => neighbour_on(&route),
        // Unreachable, prohibited, no route, no such family.
        _ => None,
    })
}

fn neighbour_on(route: &RouteMessage) -> Option<u32> {
    let reached = route.header.kind == RouteType::Unicast && direct(&route.attributes);
    if reached { outgoing(route) } else { None }
}
