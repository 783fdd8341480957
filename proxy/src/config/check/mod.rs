//! From what a file says to what an instance shall do: every value is checked, then what they mean together.

mod common;
mod families;
mod limit;
mod process;
mod service;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::Path};

use toml::de::DeTable;

use self::common::Check;
use super::{
    Config, Mistakes, Service, WhenDown,
    collect::{Collector, Places, Spot},
    raw::{Raw, is_service_name},
};
use crate::{instance::InstanceName, policy};

/// Checks the text of a configuration file. Nothing is read but the files of prefixes that it names.
///
/// `file` is what the file is called in messages; `directory` is where relative names of files of prefixes begin. A
/// relative access log is left as it is, and [`Config::file`] empty.
///
/// # Errors
/// Every mistake.
pub fn check(text: &str, file: &str, directory: &Path, instance: InstanceName) -> Result<Config, Mistakes> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut found = Collector::default();
    for error in errors {
        // Without a span it is about the end, as in an unfinished string.
        let at = error.span().map_or(text.len(), |span| span.start);
        found.syntax(at, syntax(error.message()));
    }
    let raw = Raw::read(table.get_ref(), &mut found);
    let config = checked(&raw, directory, instance, &mut found);
    if found.is_empty() {
        shadowed(&config.services, &config.interfaces, &raw, text, &mut found);
    }
    if found.is_empty() { Ok(config) } else { Err(found.into_mistakes(text, file)) }
}

/// How the parser's messages begin, and what to do.
const CURES: [(&str, &str); 6] = [
    ("duplicate key", "each key and each [table] stands once; services begin with [[service]]"),
    ("string values must be quoted", "the value is missing or lacks its quotes, as in name = \"web\""),
    ("invalid basic string", "is a quote missing at its end?"),
    ("missing escaped value", "put a string with backslashes into single quotes"),
    ("key with no value", "write key = value"),
    ("unexpected leading zero", "write the number without it"),
];

/// The parser's words, and a cure for the most common mistakes.
fn syntax(message: &str) -> String {
    let said = message.strip_suffix(", expected nothing").unwrap_or(message);
    match CURES.iter().find(|(begin, _)| said.starts_with(begin)) {
        Some((_, cure)) => format!("{said}; {cure}"),
        None => said.to_owned(),
    }
}

fn checked(raw: &Raw<'_>, directory: &Path, instance: InstanceName, found: &mut Collector) -> Config {
    let mut check = Check::new(directory, found);
    if !raw.has_dataplane {
        let what =
            "it is missing; write [dataplane] and below it for example interfaces = [\"eth0\", \"eth1\"]";
        check.found.lacking(0, "dataplane", what);
    }
    let dataplane = raw.dataplane.as_ref().map(|raw| process::dataplane(raw, &mut check)).unwrap_or_default();
    let process = process::proxy(&raw.proxy, &mut check);
    let services = services(raw, &dataplane.interfaces, dataplane.when_down, &mut check);
    Config {
        instance,
        file: None,
        interfaces: dataplane.interfaces,
        when_down: dataplane.when_down,
        services,
        existing: dataplane.existing,
        attach: dataplane.attach,
        mark: dataplane.mark,
        table: dataplane.table,
        workers: process.workers,
        max_connections: process.max_connections,
        timeouts: process.timeouts,
        drain_timeout: process.drain_timeout,
        access_log: process.access_log,
        access_format: process.access_format,
        trace: false,
    }
}

fn services(
    raw: &Raw<'_>,
    interfaces: &[String],
    when_down: WhenDown,
    check: &mut Check<'_>,
) -> Vec<Service> {
    if !raw.has_services {
        let what =
            "there is none; write [[service]] and below it for example name = \"web\" and port = [80, 443]";
        check.found.lacking(usize::MAX, "service", what);
    }
    names(raw, check);
    let most = sheer_common::policy::MAX_SERVICES;
    if let Some(beyond) = raw.services.get(most) {
        let what = format!("{} services; at most {most} are possible", raw.services.len());
        check.found.add(&beyond.spot, what);
    }
    raw.services.iter().map(|raw| service::service(raw, interfaces, when_down, check)).collect()
}

/// Names are there, well formed and unique.
fn names(raw: &Raw<'_>, check: &mut Check<'_>) {
    let mut before = HashMap::new();
    for (number, service) in (1..).zip(&raw.services) {
        let Some(name) = &service.name else {
            if !service.has_name {
                let what = "the service has no name; write for example name = \"web\"";
                check.found.lacking(service.spot.at, &format!("{}.name", service.spot.key), what);
            }
            continue;
        };
        if !is_service_name(name.value) {
            let what = format!(
                "{} is no name of a service: 1 to {} letters, digits, `-`, `_` and `.`",
                super::error::quoted(name.value),
                sheer_common::policy::NAME_LEN
            );
            check.found.add(&name.spot, what);
        } else if let Some(first) = before.get(name.value) {
            let what = format!("service number {first} has this name already; give each a name of its own");
            check.found.add(&name.spot, what);
        } else {
            before.insert(name.value, number);
        }
    }
}

/// Services that can never match because those before them take everything.
fn shadowed(services: &[Service], interfaces: &[String], raw: &Raw<'_>, text: &str, found: &mut Collector) {
    let lines: Vec<usize> = {
        let mut places = Places::new(text);
        raw.services.iter().map(|service| places.of(service.spot.at).line).collect()
    };
    let shadowed = policy::shadowed(services, interfaces).unwrap_or_else(|e| {
        found.add(
            &Spot { at: raw.services.first().map_or(0, |first| first.spot.at), key: "service".to_owned() },
            e.to_string(),
        );
        Vec::new()
    });
    for policy::Shadowed { service, by } in shadowed {
        let (Some(hidden), Some(hiding), Some(line)) =
            (raw.services.get(service), services.get(by), lines.get(by))
        else {
            continue;
        };
        if let Some(name) = &hidden.name {
            let what = format!(
                "it can never match: service \"{}\" (line {line}) takes all that it would; put it before that one, \
                 or leave it out",
                hiding.name
            );
            found.add(&name.spot, what);
        }
    }
}
