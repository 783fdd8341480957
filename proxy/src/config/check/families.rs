//! IPv4 and IPv6: what a service names must leave connections that can exist.

use super::common::Check;
use crate::{
    config::{Prefixes, collect::Spot, raw},
    socket::SourceMode,
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
    let (Some(SourceMode::Fixed(address)), Some(field)) = (source, &raw.source) else {
        return;
    };
    let fits = if address.is_ipv4() { both.v4 } else { both.v6 };
    if !fits {
        let what = format!(
            "{address} cannot be the source of what this service takes, which is {} only; give an address of that \
             family",
            both.only()
        );
        check.found.add(&field.spot, what);
    }
}

fn spot<'r, A, B>(list: Option<&'r raw::Field<A>>, file: Option<&'r raw::Field<B>>) -> Option<&'r Spot> {
    list.map(|f| &f.spot).or(file.map(|f| &f.spot))
}
