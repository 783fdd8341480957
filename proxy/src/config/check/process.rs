//! `[dataplane]` and `[proxy]`.

use std::time::Duration;

use super::common::Check;
use crate::{
    config::{AttachMode, Existing, Timeouts, WhenDown, raw, values},
    record::{AccessLog, RecordFormat},
};

#[derive(Debug, Default)]
pub(super) struct Dataplane {
    pub interfaces: Vec<String>,
    pub when_down: WhenDown,
    pub existing: Existing,
    pub attach: AttachMode,
    pub mark: Option<u32>,
    pub table: Option<u32>,
}

pub(super) const WHEN_DOWN: [(&str, WhenDown); 2] = [("open", WhenDown::Open), ("closed", WhenDown::Closed)];

pub(super) fn dataplane(raw: &raw::Dataplane<'_>, check: &mut Check<'_>) -> Dataplane {
    let example = "write for example interfaces = [\"eth0\", \"eth1\"]: the clients' side and the servers'";
    if !raw.has_interfaces {
        check.found.lacking(raw.at, "dataplane.interfaces", format!("it is missing; {example}"));
    }
    let names = raw.interfaces.as_ref();
    check.list(names, &format!("an empty list; {example}"), |name| values::interface_name(name));
    check.twice(names);
    // Also the wrong ones, so that services that name them are not reported on their account.
    let interfaces = names.into_iter().flat_map(|names| &names.value).map(|name| name.value.to_owned());
    Dataplane {
        interfaces: interfaces.collect(),
        when_down: check.choice(raw.when_down.as_ref(), &WHEN_DOWN).unwrap_or_default(),
        existing: check
            .choice(raw.existing.as_ref(), &[("keep", Existing::Keep), ("reset", Existing::Reset)])
            .unwrap_or_default(),
        attach: check.choice(raw.attach.as_ref(), &ATTACH).unwrap_or_default(),
        mark: check.value(raw.mark.as_ref(), |n| values::within(n, 1, u32::MAX)),
        table: check.value(raw.table.as_ref(), |n| values::within(n, 1, u32::MAX)),
    }
}

const ATTACH: [(&str, AttachMode); 3] =
    [("auto", AttachMode::Auto), ("tcx", AttachMode::Tcx), ("clsact", AttachMode::Clsact)];

#[derive(Debug)]
pub(super) struct Process {
    pub workers: usize,
    pub max_connections: usize,
    pub timeouts: Timeouts,
    pub drain_timeout: Duration,
    pub access_log: AccessLog,
    pub access_format: RecordFormat,
}

pub(super) fn proxy(raw: &raw::Proxy<'_>, check: &mut Check<'_>) -> Process {
    let default = Timeouts::default();
    let mut time = |field: &Option<raw::Field<&str>>, default| {
        check.value(field.as_ref(), values::duration).unwrap_or(default)
    };
    let timeouts = Timeouts {
        connect: time(&raw.connect_timeout, default.connect),
        idle: time(&raw.idle_timeout, default.idle),
        half_close: time(&raw.half_close_timeout, default.half_close),
    };
    let drain_timeout = time(&raw.drain_timeout, values::DRAIN_TIMEOUT);
    let formats = [("text", RecordFormat::Text), ("json", RecordFormat::Json)];
    Process {
        workers: check.value(raw.workers.as_ref(), values::workers).unwrap_or_else(values::default_workers),
        max_connections: check
            .value(raw.max_connections.as_ref(), values::max_connections)
            .unwrap_or(values::MAX_CONNECTIONS),
        timeouts,
        drain_timeout,
        access_log: check.value(raw.access_log.as_ref(), values::access_log).unwrap_or_default(),
        access_format: check.choice(raw.access_format.as_ref(), &formats).unwrap_or_default(),
    }
}
