//! What `sheer status` and `sheer flows` print for people.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

use crate::dataplane::view::Connection;

/// Counters of the proxy that stay at zero while all is well.
const TROUBLE: [&str; 6] = [
    "accept_failed",
    "accept_paused",
    "flow_table_failed",
    "panics",
    "records_dropped",
    "source_port_changed",
];

/// Services in a status; all are in `sheer services`.
const SERVICES_SHOWN: usize = 20;

/// The status of a running instance, out of the answer on its control socket.
#[must_use]
pub fn status(s: &Value) -> String {
    let mut out = String::new();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let uptime = humantime::format_duration(Duration::from_secs(s["uptime_s"].as_u64().unwrap_or(0)));
    let _ = writeln!(
        out,
        "instance     {}, {}, process {}, up {uptime}",
        text(&s["instance"]),
        text(&s["state"]),
        s["pid"]
    );
    let interfaces: Vec<_> =
        each(&s["interfaces"]).map(|i| format!("{} ({})", text(&i["name"]), text(&i["attached"]))).collect();
    let _ = writeln!(out, "interfaces   {}", interfaces.join(", "));
    let route = &s["route"];
    let _ = writeln!(
        out,
        "route        mark {:#x}, table {}, rule priority {}",
        route["mark"].as_u64().unwrap_or(0),
        route["table"],
        route["priority"]
    );
    let services: Vec<_> = each(&s["services"]).collect();
    for service in services.iter().take(SERVICES_SHOWN) {
        let _ = writeln!(
            out,
            "service      {}: {} ports {}, {}",
            text(&service["name"]),
            text(&service["protocol"]),
            text(&service["ports"]),
            match service["action"].as_str() {
                Some("proxy") => {
                    let (source, when_down) = (text(&service["source"]), text(&service["when_down"]));
                    format!("source {source}, when down {when_down}")
                }
                _ => text(&service["action"]),
            }
        );
    }
    if services.len() > SERVICES_SHOWN {
        let _ = writeln!(out, "             and {} more: sheer services", services.len() - SERVICES_SHOWN);
    }
    let c = &s["connections"];
    let _ = writeln!(
        out,
        "connections  {} now (at most {}), {} accepted, {} from clients, {} from servers",
        c["live"],
        s["max_connections"],
        c["accepted"],
        bytes(c["bytes_up"].as_u64().unwrap_or(0)),
        bytes(c["bytes_down"].as_u64().unwrap_or(0))
    );
    table(&mut out, "ended", &c["closed"]);
    let trouble = TROUBLE.iter().map(|&name| (name.to_owned(), c[name].clone())).collect();
    table(&mut out, "sources", &c["source_steps"]);
    table(&mut out, "same subnet", &c["same_subnet"]);
    table(&mut out, "trouble", &Value::Object(trouble));
    table(&mut out, "packets", &s["verdicts"]);
    table(&mut out, "refused", &s["failures"]);
    out
}

/// The counters that are not zero, a line each.
fn table(out: &mut String, title: &str, counters: &Value) {
    let Some(counters) = counters.as_object() else { return };
    let mut title = title;
    for (name, count) in counters {
        if count.as_u64() != Some(0) {
            let _ = writeln!(out, "{title:<12} {count:>12}  {name}");
            title = "";
        }
    }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Services, a line each, in the order in which they match.
#[must_use]
pub fn services(services: &Value) -> String {
    let mut rows = vec![
        ["service", "protocol", "action", "hits", "refused", "live", "from clients", "from servers"]
            .map(String::from),
    ];
    for s in each(services) {
        let text = |key: &str| s[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| s[key].as_u64().map_or_else(|| "-".into(), |n| n.to_string());
        let size = |key: &str| s[key].as_u64().map_or_else(|| "-".into(), bytes);
        rows.push([
            text("name"),
            text("protocol"),
            text("action"),
            number("hits"),
            number("refused"),
            number("live"),
            size("bytes_up"),
            size("bytes_down"),
        ]);
    }
    columns(&rows)
}

/// Clients that are shut out, a line each.
#[must_use]
pub fn blocked(blocked: &Value) -> String {
    let mut rows = vec![["client", "shut out of", "for", "since", "refused"].map(String::from)];
    for b in each(blocked) {
        let time = |key: &str| seconds(b[key].as_f64().unwrap_or(0.0));
        rows.push([
            b["client"].as_str().unwrap_or("-").to_owned(),
            b["service"].as_str().unwrap_or("all services").to_owned(),
            time("remaining_s"),
            time("since_s"),
            b["refused"].to_string(),
        ]);
    }
    if rows.len() == 1 { "nobody is shut out\n".to_owned() } else { columns(&rows) }
}

/// Connections, a line each.
#[must_use]
pub fn flows(connections: &[Connection]) -> String {
    let mut rows =
        vec![["client", "asked for", "seen by the server as", "up", "down", "age", "idle"].map(String::from)];
    for c in connections {
        rows.push([
            c.client.to_string(),
            match c.upstream {
                Some(upstream) if upstream != c.original => format!("{} (goes to {upstream})", c.original),
                _ => c.original.to_string(),
            },
            c.source.map_or_else(|| "not yet connected".into(), |s| s.to_string()),
            bytes(c.up.bytes),
            bytes(c.down.bytes),
            seconds(c.age_s),
            seconds(c.idle_s),
        ]);
    }
    columns(&rows)
}

/// Left-aligned columns, two blanks apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.1}s")
    } else {
        humantime::format_duration(Duration::from_secs(s as u64)).to_string()
    }
}

/// A number of bytes with three digits and a binary unit.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let shown: Vec<_> = [0, 1023, 1024, 10_000, 1_000_000, 5 << 30].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "9.77 KiB", "977 KiB", "5.00 GiB"]);
    }

    #[test]
    fn flows_stand_in_columns() {
        let c = Connection {
            id: 1,
            client: "10.0.0.1:4000".parse().unwrap(),
            original: "192.0.2.1:80".parse().unwrap(),
            source: None,
            upstream: None,
            state: "relayed",
            up: Default::default(),
            down: Default::default(),
            age_s: 1.0,
            idle_s: 90.0,
        };
        let text = flows(&[c]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("asked for"), lines[1].find("192.0.2.1:80"));
        assert!(lines[1].contains("not yet connected") && lines[1].ends_with("1.0s  1m 30s"));
    }
}
