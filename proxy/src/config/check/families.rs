//! IPv4 and IPv6: what a service names must leave connections that can exist.

use std::net::IpAddr;

use super::common::Check;
use crate::{
    config::{Prefixes, collect::Spot, raw},
    socket::SourceMode,
    upstream::Destination,
};

#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn of(prefixes: Option<&Prefixes>) -> Self {
        prefixes.map_or(Self { v4: true, v6: true }, |p| Self { v4: !p.v4.is_empty(), v6: !p.v6.is_empty() })
    }

    fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// Their name, where there is only one.
    fn only(self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }
}

pub(super) fn check(
    raw: &raw::Service<'_>,
    destinations: Option<&Prefixes>,
    clients: Option<&Prefixes>,
    source: Option<SourceMode>,
    upstream: Option<Destination>,
    check: &mut Check<'_>,
) {
    let (to, from) = (Families::of(destinations), Families::of(clients));
    let both = Families { v4: to.v4 && from.v4, v6: to.v6 && from.v6 };
    if !both.v4 && !both.v6 {
        let spot = spot(raw.client.as_ref(), raw.client_file.as_ref());
        let what = format!(
            "clients of {} only, but destinations of {} only: no connection can match; give both of one family",
            from.only(),
            to.only()
        );
        if let Some(spot) = spot {
            check.found.add(spot, what);
        }
        return;
    }
    match upstream.and_then(Destination::ip) {
        Some(server) => sources_of(raw, server, both, source, check),
        None => source_of_original(raw, both, source, check),
    }
}

/// Connections go to whom their client asked for: the source must be of a family that the service takes.
fn source_of_original(
    raw: &raw::Service<'_>,
    both: Families,
    source: Option<SourceMode>,
    check: &mut Check<'_>,
) {
    let (Some(SourceMode::Fixed(address)), Some(field)) = (source, &raw.source) else {
        return;
    };
    if !both.has(address) {
        let what = format!(
            "{address} cannot be the source of what this service takes, which is {} only; give an address of that \
             family",
            both.only()
        );
        check.found.add(&field.spot, what);
    }
}

/// Connections go to one host: some source must be of its family.
fn sources_of(
    raw: &raw::Service<'_>,
    server: IpAddr,
    both: Families,
    source: Option<SourceMode>,
    check: &mut Check<'_>,
) {
    // What is there but wrong says nothing about which one was meant.
    let source = if raw.source.is_none() { Some(SourceMode::default()) } else { source };
    let what = match source {
        Some(SourceMode::Fixed(address)) if address.is_ipv4() != server.is_ipv4() => format!(
            "{server} cannot be reached from the source {address}: they are of different IP versions; give both of one, \
             or source = \"proxy\""
        ),
        Some(SourceMode::Client | SourceMode::ClientPort) if !both.has(server) => format!(
            "{server} cannot be reached from a client's address, since the service takes {} only; give an address of \
             that family, or source = \"proxy\"",
            both.only()
        ),
        _ => return,
    };
    if let Some(field) = &raw.upstream {
        check.found.add(&field.spot, what);
    }
}

fn spot<'r, A, B>(list: Option<&'r raw::Field<A>>, file: Option<&'r raw::Field<B>>) -> Option<&'r Spot> {
    list.map(|f| &f.spot).or(file.map(|f| &f.spot))
}
