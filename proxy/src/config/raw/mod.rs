//! What a configuration file says, by its types alone: which keys there are, and what kind of value each has. What
//! the values mean is checked afterwards.

mod keys;

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use self::keys::Keys;
pub(super) use self::keys::{Field, Item};
use super::{
    collect::{Collector, Spot},
    error::quoted,
    suggest,
};

/// The whole file.
#[derive(Debug)]
pub(super) struct Raw<'t> {
    pub dataplane: Option<Dataplane<'t>>,
    pub proxy: Proxy<'t>,
    pub has_dataplane: bool,
    pub services: Vec<Service<'t>>,
    /// Whether `service` stands there at all, in whatever form.
    pub has_services: bool,
}

#[derive(Debug)]
pub(super) struct Dataplane<'t> {
    pub at: usize,
    pub interfaces: Option<Field<Vec<Item<&'t str>>>>,
    pub has_interfaces: bool,
    pub when_down: Option<Field<&'t str>>,
    pub mark: Option<Field<i128>>,
    pub table: Option<Field<i128>>,
    pub existing: Option<Field<&'t str>>,
    pub attach: Option<Field<&'t str>>,
}

#[derive(Debug, Default)]
pub(super) struct Proxy<'t> {
    pub workers: Option<Field<i128>>,
    pub max_connections: Option<Field<i128>>,
    pub connect_timeout: Option<Field<&'t str>>,
    pub idle_timeout: Option<Field<&'t str>>,
    pub half_close_timeout: Option<Field<&'t str>>,
    pub drain_timeout: Option<Field<&'t str>>,
    pub access_log: Option<Field<&'t str>>,
    pub access_format: Option<Field<&'t str>>,
}

#[derive(Debug)]
pub(super) struct Service<'t> {
    /// The service as such: `service "web"`, or `service[2]` while it has no name.
    pub spot: Spot,
    pub name: Option<Field<&'t str>>,
    pub has_name: bool,
    pub protocol: Option<Field<&'t str>>,
    pub destination: Option<Field<Vec<Item<&'t str>>>>,
    pub destination_file: Option<Field<&'t str>>,
    pub port: Option<Field<Vec<Item<Cow<'t, str>>>>>,
    pub client: Option<Field<Vec<Item<&'t str>>>>,
    pub client_file: Option<Field<&'t str>>,
    pub interface: Option<Field<Vec<Item<&'t str>>>>,
    pub action: Option<Field<&'t str>>,
    pub source: Option<Field<&'t str>>,
    pub upstream: Option<Field<&'t str>>,
    pub when_down: Option<Field<&'t str>>,
    pub reply: Option<Field<&'t str>>,
    pub same_subnet: Option<Field<&'t str>>,
    pub intercept_local: Option<Field<bool>>,
    pub answer_ping: Option<Field<bool>>,
    pub limit: Option<Limit<'t>>,
}

#[derive(Debug)]
pub(super) struct Limit<'t> {
    pub spot: Spot,
    /// Whether a key of it is there that may have the wrong type.
    pub is_empty: bool,
    pub new_per_second: Option<Field<i128>>,
    pub burst: Option<Field<i128>>,
    pub concurrent: Option<Field<i128>>,
    pub block: Option<Field<&'t str>>,
    pub per: Option<Field<Vec<Item<&'t str>>>>,
}

const ROOT: [&str; 3] = ["dataplane", "proxy", "service"];
const DATAPLANE: [&str; 6] = ["interfaces", "when_down", "mark", "table", "existing", "attach"];
const PROXY: [&str; 8] = [
    "workers",
    "max_connections",
    "connect_timeout",
    "idle_timeout",
    "half_close_timeout",
    "drain_timeout",
    "access_log",
    "access_format",
];
const SERVICE: [&str; 17] = [
    "name",
    "protocol",
    "destination",
    "destination_file",
    "port",
    "client",
    "client_file",
    "interface",
    "action",
    "source",
    "upstream",
    "when_down",
    "reply",
    "same_subnet",
    "intercept_local",
    "answer_ping",
    "limit",
];
const LIMIT: [&str; 5] = ["new_per_second", "burst", "concurrent", "block", "per"];

impl<'t> Raw<'t> {
    pub fn read(table: &'t DeTable<'t>, found: &mut Collector) -> Self {
        let mut root = Keys::open(table, String::new(), &ROOT, found);
        let dataplane = root.table("dataplane").map(|(at, t)| Dataplane::read(at, t, root.found));
        let proxy = root.table("proxy").map(|(_, t)| Proxy::read(t, root.found)).unwrap_or_default();
        let has_dataplane = root.has("dataplane");
        let has_services = root.has("service");
        let tables = root.tables("service").into_iter().zip(1..);
        let services = tables.map(|((at, t), n)| Service::read(at, t, n, root.found)).collect();
        Self { dataplane, has_dataplane, proxy, services, has_services }
    }
}

impl<'t> Dataplane<'t> {
    fn read(at: usize, table: &'t DeTable<'t>, found: &mut Collector) -> Self {
        let mut keys = Keys::open(table, "dataplane".to_owned(), &DATAPLANE, found);
        Self {
            at,
            interfaces: keys.strings("interfaces", "[\"eth0\", \"eth1\"]"),
            has_interfaces: keys.has("interfaces"),
            when_down: keys.string("when_down", "\"open\""),
            mark: keys.number("mark", "0x53480000"),
            table: keys.number("table", "8300"),
            existing: keys.string("existing", "\"keep\""),
            attach: keys.string("attach", "\"auto\""),
        }
    }
}

impl<'t> Proxy<'t> {
    fn read(table: &'t DeTable<'t>, found: &mut Collector) -> Self {
        let mut keys = Keys::open(table, "proxy".to_owned(), &PROXY, found);
        Self {
            workers: keys.number("workers", "4"),
            max_connections: keys.number("max_connections", "100000"),
            connect_timeout: keys.time("connect_timeout", "\"5s\""),
            idle_timeout: keys.time("idle_timeout", "\"2h 4m\""),
            half_close_timeout: keys.time("half_close_timeout", "\"4m\""),
            drain_timeout: keys.time("drain_timeout", "\"30s\""),
            access_log: keys.string("access_log", "\"-\""),
            access_format: keys.string("access_format", "\"text\""),
        }
    }
}

impl<'t> Service<'t> {
    fn read(at: usize, table: &'t DeTable<'t>, number: usize, found: &mut Collector) -> Self {
        let key = label(table, number);
        let mut keys = Keys::open(table, key.clone(), &SERVICE, found);
        Self {
            spot: Spot { at, key },
            name: keys.string("name", "\"web\""),
            has_name: keys.has("name"),
            protocol: keys.string("protocol", "\"tcp\""),
            destination: keys.strings("destination", "[\"203.0.113.0/24\", \"2001:db8::/32\"]"),
            destination_file: keys.string("destination_file", "\"lists/eu.txt\""),
            port: keys.ports("port", "[80, 443, \"8000-8099\"]"),
            client: keys.strings("client", "[\"10.0.0.0/8\"]"),
            client_file: keys.string("client_file", "\"lists/clients.txt\""),
            interface: keys.strings("interface", "[\"eth0\"]"),
            action: keys.string("action", "\"proxy\""),
            source: keys.string("source", "\"client\""),
            upstream: keys.string("upstream", "\"original\""),
            when_down: keys.string("when_down", "\"open\""),
            reply: keys.string("reply", "\"same-way\""),
            same_subnet: keys.string("same_subnet", "\"refuse\""),
            intercept_local: keys.switch("intercept_local"),
            answer_ping: keys.switch("answer_ping"),
            limit: Limit::read(&mut keys),
        }
    }
}

/// What a service is called in messages.
fn label(table: &DeTable<'_>, number: usize) -> String {
    let name = table.get("name").and_then(|name| match name.get_ref() {
        DeValue::String(name) => Some(name.as_ref()),
        _ => None,
    });
    match name {
        Some(name) if is_service_name(name) => format!("service \"{name}\""),
        _ => format!("service[{number}]"),
    }
}

/// 1 to 28 letters, digits, `-`, `_` and `.`: what fits into the `services` map, and into any line.
pub(super) fn is_service_name(name: &str) -> bool {
    (1..=sheer_common::policy::NAME_LEN).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

impl<'t> Limit<'t> {
    fn read(service: &mut Keys<'t, '_>) -> Option<Self> {
        let (at, table) = service.table("limit")?;
        let key = service.full("limit");
        let mut keys = Keys::open(table, key.clone(), &LIMIT, service.found);
        Some(Self {
            spot: Spot { at, key },
            is_empty: !(keys.has("new_per_second") || keys.has("concurrent")),
            new_per_second: keys.number("new_per_second", "100"),
            burst: keys.number("burst", "200"),
            concurrent: keys.number("concurrent", "50"),
            block: keys.time("block", "\"10m\""),
            per: keys.strings("per", "[\"/24\", \"/64\"]"),
        })
    }
}

/// The tables, by the words that say where a key stands.
const TABLES: [(&str, &[&str]); 5] = [
    ("at the top of the file", &ROOT),
    ("in [dataplane]", &DATAPLANE),
    ("in [proxy]", &PROXY),
    ("in a [[service]]", &SERVICE),
    ("in a service's limit", &LIMIT),
];

/// Reports a key that is not known.
fn unknown(key: &Spanned<Cow<'_, str>>, path: &str, known: &[&str], found: &mut Collector) {
    let word = key.get_ref().as_ref();
    let here = TABLES.iter().find(|(_, keys)| *keys == known).map_or("here", |(table, _)| *table);
    let elsewhere = TABLES.iter().find(|(_, keys)| keys.contains(&word));
    let hint = match elsewhere {
        Some((table, _)) if suggest::nearest(word, known.iter().copied()).is_empty() => {
            format!("it belongs {table}")
        }
        _ => suggest::hint(word, known.iter().copied()),
    };
    let spot = Spot { at: key.span().start, key: keys::join(path, word) };
    found.add(&spot, format!("{} is no key {here}; {hint}", quoted(word)));
}
