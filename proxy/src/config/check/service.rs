//! `[[service]]`: its values, and which of them make sense together.

use std::borrow::Cow;

use super::{common::Check, families, limit, process::WHEN_DOWN};
use crate::{
    config::{
        Action, Ports, Protocol, Reply, SameSubnet, Service, WhenDown,
        collect::Spot,
        error::quoted,
        ports, raw,
        raw::{Field, Item},
        suggest, values,
    },
    socket::SourceMode,
    upstream::Destination,
};

const PROTOCOL: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
const ACTION: [(&str, Action); 3] =
    [("proxy", Action::Proxy), ("pass", Action::Pass), ("drop", Action::Drop)];
const REPLY: [(&str, Reply); 2] = [("route", Reply::Route), ("same-way", Reply::SameWay)];
const SAME_SUBNET: [(&str, SameSubnet); 3] =
    [("refuse", SameSubnet::Refuse), ("proxy", SameSubnet::Proxy), ("redirect", SameSubnet::Redirect)];
const ANY: &str = "an empty list matches nothing; leave the key out for any";

pub(super) fn service(
    raw: &raw::Service<'_>,
    interfaces: &[String],
    when_down: WhenDown,
    check: &mut Check<'_>,
) -> Service {
    let destinations = check.prefixes(raw.destination.as_ref(), raw.destination_file.as_ref());
    let clients = check.prefixes(raw.client.as_ref(), raw.client_file.as_ref());
    let protocol = check.choice(raw.protocol.as_ref(), &PROTOCOL);
    let action = match &raw.action {
        Some(field) => check.choice(Some(field), &ACTION),
        None => Some(Action::Proxy),
    };
    let source = check.value(raw.source.as_ref(), values::source);
    let upstream = check.value(raw.upstream.as_ref(), values::upstream);
    let reply = check.choice(raw.reply.as_ref(), &REPLY);
    let same_subnet = check.choice(raw.same_subnet.as_ref(), &SAME_SUBNET);
    let own_when_down = check.choice(raw.when_down.as_ref(), &WHEN_DOWN);
    let limit = raw.limit.as_ref().and_then(|raw| limit::limit(raw, check));
    if let Some(action) = action {
        without_proxy(raw, action, check);
        udp(raw, protocol.unwrap_or_default(), action, check);
        proxied(raw, action, source, upstream, check);
    }
    families::check(raw, destinations.as_ref(), clients.as_ref(), source, upstream, check);
    Service {
        name: raw.name.as_ref().map(|name| name.value.to_owned()).unwrap_or_default(),
        protocol: protocol.unwrap_or_default(),
        destinations,
        ports: listed_ports(raw.port.as_ref(), check),
        clients,
        interfaces: listed_interfaces(raw.interface.as_ref(), interfaces, check),
        action: action.unwrap_or_default(),
        source: source.unwrap_or_default(),
        when_down: own_when_down.unwrap_or(when_down),
        upstream: upstream.unwrap_or_default(),
        reply: reply.unwrap_or_default(),
        same_subnet: same_subnet.unwrap_or_default(),
        intercept_local: raw.intercept_local.as_ref().is_some_and(|field| field.value),
        answer_ping: raw.answer_ping.as_ref().is_some_and(|field| field.value),
        limit,
    }
}

fn listed_ports(field: Option<&Field<Vec<Item<Cow<'_, str>>>>>, check: &mut Check<'_>) -> Option<Ports> {
    let ranges = check.list(field, ANY, |port| ports::parse_range(port).map_err(|e| e.to_string()))?;
    Some(Ports::from_ranges(ranges))
}

fn listed_interfaces(
    field: Option<&Field<Vec<Item<&str>>>>,
    known: &[String],
    check: &mut Check<'_>,
) -> Option<Vec<String>> {
    check.twice(field);
    let Field { spot, value: items } = field?;
    if items.is_empty() {
        check.found.add(spot, ANY);
    }
    for item in items {
        if let Err(what) = values::interface_name(item.value) {
            check.found.add_at(item.at, &spot.key, what);
        } else if !known.is_empty() && !known.iter().any(|name| name == item.value) {
            // What is there may be hidden by a mistake.
            let hint = suggest::hint(item.value, known.iter().map(String::as_str));
            let what = format!("{} is not among dataplane.interfaces; {hint}", quoted(item.value));
            check.found.lacking(item.at, &spot.key, what);
        }
    }
    Some(items.iter().map(|item| item.value.to_owned()).collect())
}

/// Keys that only concern proxied connections.
fn without_proxy(raw: &raw::Service<'_>, action: Action, check: &mut Check<'_>) {
    let (word, becomes) = match action {
        Action::Proxy => return,
        Action::Pass => ("pass", "passes by the proxy"),
        Action::Drop => ("drop", "is dropped"),
    };
    let mut useless = |spot: Option<&Spot>, key: &str| {
        if let Some(spot) = spot {
            let what = format!(
                "`{key}` has no meaning beside action = \"{word}\": what matches {becomes}; leave it out"
            );
            check.found.add(spot, what);
        }
    };
    useless(raw.source.as_ref().map(|f| &f.spot), "source");
    useless(raw.upstream.as_ref().map(|f| &f.spot), "upstream");
    useless(raw.when_down.as_ref().map(|f| &f.spot), "when_down");
    useless(raw.reply.as_ref().map(|f| &f.spot), "reply");
    useless(raw.same_subnet.as_ref().map(|f| &f.spot), "same_subnet");
    useless(raw.intercept_local.as_ref().map(|f| &f.spot), "intercept_local");
    useless(raw.answer_ping.as_ref().map(|f| &f.spot), "answer_ping");
    match (&raw.limit, action) {
        (Some(limit), Action::Drop) => useless(Some(&limit.spot), "limit"),
        (Some(limit), _) => useless(limit.concurrent.as_ref().map(|f| &f.spot), "limit.concurrent"),
        (None, _) => {}
    }
}

/// Keys of proxied connections that do not go together.
fn proxied(
    raw: &raw::Service<'_>,
    action: Action,
    source: Option<SourceMode>,
    upstream: Option<Destination>,
    check: &mut Check<'_>,
) {
    if action != Action::Proxy {
        return;
    }
    if let (Some(field), Some(SourceMode::Proxy)) = (&raw.same_subnet, source) {
        let what = "`same_subnet` has no meaning beside source = \"proxy\": servers answer this host, wherever the client \
                    is; leave it out";
        check.found.add(&field.spot, what);
    }
    let known = raw.port.is_some() || matches!(upstream, Some(Destination::Fixed(_)));
    // An upstream that is wrong may have a port.
    let known = known || (raw.upstream.is_some() && upstream.is_none());
    if let Some(field) = raw.answer_ping.as_ref().filter(|field| field.value && !known) {
        let what = "pings are answered while the server answers at a port, and none is named; add for example port = 443, \
                    or a port to upstream";
        check.found.add(&field.spot, what);
    }
}

fn udp(raw: &raw::Service<'_>, protocol: Protocol, action: Action, check: &mut Check<'_>) {
    if protocol != Protocol::Udp {
        return;
    }
    if let (Some(protocol), Action::Proxy) = (&raw.protocol, action) {
        let what = "UDP is not proxied in this version; add action = \"pass\" or action = \"drop\", or leave the service \
                    out: UDP that no service takes passes";
        check.found.add(&protocol.spot, what);
    }
    if let (Some(limit), Action::Proxy | Action::Pass) = (&raw.limit, action) {
        let what = "a limit counts TCP connections, and UDP has none; leave it out";
        check.found.add(&limit.spot, what);
    }
}
