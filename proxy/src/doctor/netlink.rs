//! Two kinds of netlink socket: rtnetlink through its crate, and a small raw one for what has no crate of ours.
//!
//! The raw one asks generic netlink (ethtool) and nfnetlink (nftables). It is synchronous: the kernel has the
//! answer ready when the question has been sent.

use std::{io, time::Duration};

use futures_util::{Stream, TryStreamExt};
use rtnetlink::Handle;
use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use tokio::task::JoinHandle;

/// An rtnetlink socket; the task that serves it ends with this value.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A whole dump, or nothing where the kernel refuses it (no such family, no such table).
pub(super) async fn collect<T>(dump: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Option<Vec<T>> {
    dump.try_collect().await.ok()
}

/// `NLM_F_REQUEST | NLM_F_ACK` of linux/netlink.h: one object, and a word when it is complete.
pub(super) const ONE: u16 = 0x1 | 0x4;
/// `NLM_F_REQUEST | NLM_F_DUMP`: all objects.
pub(super) const ALL: u16 = 0x1 | 0x300;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The two highest bits of an attribute's type say nested and big-endian (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
const PATIENCE: Duration = Duration::from_millis(500);

/// A socket for questions in bytes.
pub(super) struct Raw(OwnedFd);

impl Raw {
    pub(super) fn open(protocol: Protocol) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends one question and gives the payloads of the answers, without their headers.
    pub(super) fn ask(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
        let mut question = Vec::with_capacity(HEADER + payload.len());
        question.extend(length.to_ne_bytes());
        question.extend(kind.to_ne_bytes());
        question.extend(flags.to_ne_bytes());
        question.extend([0; 8]);
        question.extend(payload);
        send(&self.0, &question, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (count, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
            if take(&buffer[..count], &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of one datagram; says whether the last one has come.
fn take(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(payload) = datagram.get(HEADER..length) else { break };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return if errno == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
            _ => answers.push(payload.to_owned()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One attribute with its padding.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in these bytes; what is cut off at the end is left out.
pub(super) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(header) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The first attribute of that kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A string as the kernel sends it, with or without its final zero.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way_there_and_back_also_cut_off_ones() {
        let bytes = [attribute(1, b"lo\0"), attribute(0x8002, &7_u32.to_ne_bytes())].concat();
        let expected: Vec<(u16, &[u8])> = vec![(1, b"lo\0"), (2, &[7, 0, 0, 0])];
        if cfg!(target_endian = "little") {
            assert_eq!(attributes(&bytes), expected);
        }
        assert_eq!(attributes(&bytes[..10]).len(), 1);
        assert_eq!(text(b"lo\0"), "lo");
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for lie in [0_u16, 1, 3, 200] {
            let bytes = [&lie.to_ne_bytes()[..], &[1, 0, 9, 9, 9, 9]].concat();
            assert_eq!(attributes(&bytes), vec![]);
        }
        let mut answers = Vec::new();
        assert!(!take(&[1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut answers).unwrap());
        assert!(answers.is_empty());
    }
}
