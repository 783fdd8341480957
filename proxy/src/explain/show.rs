//! An answer for people: a line for each step.

use std::{fmt, time::Duration};

use sheer_common::verdict::Verdict;

use super::{
    answer::{
        Account, Answer, Blocked, Chosen, Delivery, Disagreement, Frames, Interface, Next, Onward,
        PolicyRoute, Seen, Socket,
    },
    reasons::{List, Miss, Missed, Taken},
    reference::{Destination, Dimension},
};
use crate::{
    config::{Action, Protocol, WhenDown},
    route::PROTOCOL,
};

/// Width of the first column.
const LABEL: usize = 13;

/// Lines of which only the first of a step bears its label.
struct Step<'f, 'a> {
    to: &'f mut fmt::Formatter<'a>,
    label: &'static str,
}

impl Step<'_, '_> {
    fn line(&mut self, text: impl fmt::Display) -> fmt::Result {
        let label = std::mem::take(&mut self.label);
        writeln!(self.to, "{label:<LABEL$}{text}")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        step(f, "packet").line(self.asked())?;
        step(f, "interface").line(&self.interface)?;
        step(f, "destination").line(self.destination_text())?;
        self.services_lines(&mut step(f, "services"))?;
        step(f, "socket").line(self.socket)?;
        let mut limit = step(f, "limit");
        if let Some(account) = &self.limit {
            limit.line(account)?;
        }
        if let Some(block) = self.blocked_by_hand {
            limit.line(format_args!("{} is blocked by hand, {block}", self.packet.from.ip()))?;
        }
        step(f, "verdict").line(format_args!("{}: {}", self.verdict.name(), self.verdict_text()))?;
        let flag = if self.packet.to.is_ipv6() { "-6 " } else { "" };
        step(f, "route").line(next(&self.next, flag))?;
        let mut fault = step(f, "FAULT");
        self.disagreements.iter().try_for_each(|disagreement| fault.line(disagreement))
    }
}

fn step<'f, 'a>(to: &'f mut fmt::Formatter<'a>, label: &'static str) -> Step<'f, 'a> {
    Step { to, label }
}

impl Answer {
    fn asked(&self) -> String {
        let packet = &self.packet;
        let (name, what) = match packet.protocol {
            Protocol::Tcp => ("tcp", "a SYN"),
            Protocol::Udp => ("udp", "an empty datagram"),
        };
        let interface = &self.interface.name;
        let chosen = match self.interface.chosen {
            Chosen::Asked => "",
            Chosen::WayBack => " (the way back to the client)",
        };
        format!("{name} {} > {}, {what}, in by {interface}{chosen}", packet.from, packet.to)
    }

    fn destination_text(&self) -> String {
        let address = self.packet.to.ip();
        match self.destination {
            Destination::Foreign => format!("{address} is not this host's own"),
            Destination::Own => {
                format!(
                    "{address} is this host's own: a service takes it only by an entry that is exactly it"
                )
            }
            Destination::Special(range) => {
                format!("{address} is in {range}, which a service takes only by an entry within that range")
            }
        }
    }

    fn services_lines(&self, out: &mut Step<'_, '_>) -> fmt::Result {
        let services = &self.services;
        if !services.others.is_empty() {
            let count: usize = services.others.values().sum();
            let by: Vec<_> = services.others.iter().map(|(d, count)| format!("{count} by {d}")).collect();
            let which = if services.taken.is_some() { "earlier" } else { "other" };
            let plural = if count == 1 { "" } else { "s" };
            out.line(format_args!("… {count} {which} service{plural} missed: {}", by.join(", ")))?;
        }
        let numbers = services.missed.iter().map(|m| m.number).chain(services.taken.iter().map(|t| t.number));
        let names = services.missed.iter().map(|m| &m.name).chain(services.taken.iter().map(|t| &t.name));
        let number_width = numbers.max().unwrap_or(0).to_string().len();
        let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
        for Missed { number, name, miss } in &services.missed {
            out.line(format_args!("{number:<number_width$} {name:<width$}  no: {}", self.miss_text(miss)))?;
        }
        match &services.taken {
            Some(taken) => {
                let Taken { number, name, .. } = taken;
                out.line(format_args!("{number:<number_width$} {name:<width$}  yes: {taken}"))
            }
            None => out.line(format_args!("none of {} takes it", services.count)),
        }
    }

    fn miss_text(&self, miss: &Miss) -> String {
        let address = self.packet.to.ip();
        match miss {
            Miss::Protocol { takes: Protocol::Tcp } => "it takes tcp".into(),
            Miss::Protocol { takes: Protocol::Udp } => "it takes udp".into(),
            Miss::Destination { takes: None } => format!("{address} is not named"),
            Miss::Destination { takes: Some(list) } => match self.destination {
                Destination::Foreign => format!("destination {address} is {}", outside(list)),
                Destination::Own => format!("none of {list} is exactly {address}"),
                Destination::Special(range) => format!("none of {list} is within {range} and has {address}"),
            },
            Miss::Port { takes } => format!("port {} is not among {takes}", self.packet.to.port()),
            Miss::Client { takes } => format!("client {} is {}", self.packet.from.ip(), outside(takes)),
            Miss::Local => {
                let from = self.packet.from.ip();
                format!("{from} is this host's own, and the service has no intercept_local")
            }
            Miss::Interface { takes } => format!("interface {} is not among {takes}", self.seen_on()),
        }
    }

    fn seen_on(&self) -> &str {
        match &self.interface.seen {
            Seen::Below { interface, .. } => interface,
            Seen::Here { .. } | Seen::Not => &self.interface.name,
        }
    }

    fn verdict_text(&self) -> String {
        let taken = self.services.taken.as_ref();
        let name = taken.map_or("no service", |taken| &taken.name);
        let worker = self.worker.map_or_else(String::new, |n| format!(" of worker {n}"));
        match self.verdict {
            Verdict::SteerNew => format!("given to the listener{worker}"),
            Verdict::SteerTimeWait => {
                format!(
                    "a SYN on a connection in TIME_WAIT: marked only, the socket lookup finds the listener{worker}"
                )
            }
            Verdict::SteerSocket => "marked only: the stack finds the proxy's socket by itself".into(),
            Verdict::PassLocal => "let pass: no service takes this address".into(),
            Verdict::PassNoService => "let pass: no service takes it".into(),
            Verdict::PassService => format!("let pass: {name} says so"),
            Verdict::PassDown => format!("let pass: {}, and when_down of {name} is open", self.down()),
            Verdict::DropService => format!("dropped: {name} says so"),
            Verdict::DropRate => format!("dropped: the client opens connections of {name} too fast"),
            Verdict::DropConcurrent => {
                format!("dropped: the client has all connections of {name} that it may have")
            }
            Verdict::DropBlocked => "dropped: the client is blocked; sheer unblock lets it in again".into(),
            Verdict::DropDown => format!("dropped: {}, and when_down of {name} is closed", self.down()),
            other if other.steers() => "goes to the proxy".into(),
            other if other.drops() => "dropped".into(),
            _ => "let pass".into(),
        }
    }

    fn down(&self) -> &'static str {
        if self.draining { "the proxy is leaving" } else { "no listener is there" }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.seen {
            Seen::Here { by } => write!(f, "{name} is listed, attached by {by}")?,
            Seen::Below { interface, by } => {
                write!(f, "{name} is over {interface}, which is listed, attached by {by}")?;
            }
            Seen::Not => write!(f, "{name} is not listed: Sheer sees no packet there. As if it were:")?,
        }
        match self.frames {
            Frames::Ethernet => Ok(()),
            Frames::Ip => f.write_str("; packets begin with the IP header"),
            Frames::Unreadable => f.write_str("; Sheer cannot read its packets"),
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "protocol",
            Self::Destination => "destination",
            Self::Port => "port",
            Self::Client => "client",
            Self::Interface => "interface",
            Self::Local => "intercept_local",
        })
    }
}

fn outside(list: &List) -> String {
    let single = list.first.len() == 1 && list.more == 0;
    format!("{} {list}", if single { "not in" } else { "in none of" })
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join(", "))?;
        if self.more == 0 { Ok(()) } else { write!(f, " … and {} more", self.more) }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(entry) => write!(f, "destination {entry}, ")?,
            None => f.write_str("any destination, ")?,
        }
        match self.port {
            Some((first, last)) if first == last => write!(f, "port {first}, ")?,
            Some((first, last)) => write!(f, "port {first}-{last}, ")?,
            None => f.write_str("any port, ")?,
        }
        match self.client {
            Some(entry) => write!(f, "client {entry}")?,
            None => f.write_str("any client")?,
        }
        if let Some(interface) = &self.interface {
            write!(f, ", interface {interface}")?;
        }
        f.write_str(match (self.action, self.when_down) {
            (Action::Proxy, WhenDown::Open) => " → proxy (when down: open)",
            (Action::Proxy, WhenDown::Closed) => " → proxy (when down: closed)",
            (Action::Pass, _) => " → pass",
            (Action::Drop, _) => " → drop",
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "not looked for: nothing depends on it",
            Self::None => "none has this tuple",
            Self::TimeWait => "one in TIME_WAIT has this tuple",
            Self::Request => "a handshake of this tuple is under way",
            Self::Listener => "a listener bound to every address; foreign addresses are not its own",
            Self::Proxys => "one of the proxy's has this tuple",
            Self::Foreign => "one of another process has this tuple",
        })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.client.prefix_len() == self.client.max_prefix_len() {
            write!(f, "{}: ", self.client.addr())?;
        } else {
            write!(f, "{}: ", self.client)?;
        }
        let mut between = "";
        if let Some(rate) = self.rate {
            let (left, burst, per_second) = (rate.left, rate.burst, rate.per_second);
            write!(f, "{left} of {burst} at once are left, {per_second} a second in the long run")?;
            between = "; ";
        }
        if let Some(concurrent) = self.concurrent {
            write!(f, "{between}{} of {} connections", concurrent.held, concurrent.allowed)?;
            between = "; ";
        }
        if let Some(block) = self.blocked {
            write!(f, "{between}blocked, {block}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last second counts as one.
        let remaining = Duration::from_secs(self.remaining_s.ceil() as u64);
        write!(f, "for {} more, {} refused since", humantime::format_duration(remaining), self.refused)
    }
}

/// `flag` is `-6 ` for IPv6.
fn next(next: &Next, flag: &str) -> String {
    match next {
        Next::Dropped => "not asked: the packet ends here".into(),
        Next::Routed { onward } => format!("as if Sheer were not there: {onward}"),
        Next::Unseen { onward } => format!("Sheer does not see the packet: {onward}"),
        Next::PolicyRoute { route, delivery } => policy_route(route, delivery, flag),
    }
}

fn policy_route(route: &PolicyRoute, delivery: &Delivery, flag: &str) -> String {
    let PolicyRoute { mark, priority, interface, table } = route;
    let rule = format!("marked {mark:#x}; rule {priority} for {interface}");
    let lost = "somebody removed it, and the packet does not reach the proxy";
    match delivery {
        Delivery::Here { table: by } if by == table => {
            format!("{rule} leads to table {table}: local default dev lo, so it is delivered here")
        }
        Delivery::Here { table: by } => {
            format!(
                "marked {mark:#x}; table {by} has the address as this host's own, so it is delivered here"
            )
        }
        Delivery::NoRule { onward } => format!(
            "{rule} is missing: {lost} ({onward}); restart the instance, or: ip {flag}rule add priority {priority} \
             fwmark {mark:#x} iif {interface} lookup {table} protocol {PROTOCOL}"
        ),
        Delivery::NoRoute { onward } => format!(
            "{rule} leads to table {table}, whose route is missing: {lost} ({onward}); restart the instance, or: ip \
             {flag}route add local default dev lo table {table} protocol {PROTOCOL}"
        ),
        Delivery::Astray { onward } => format!(
            "{rule} leads to table {table}, and all of it is there; and yet {onward}: a rule before it leads elsewhere \
             (ip {flag}rule), or the reverse-path check refuses the client (rp_filter)"
        ),
    }
}

impl fmt::Display for Onward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here { .. } => f.write_str("delivered to this host"),
            Self::There { interface, gateway: None } => write!(f, "forwarded by {interface}"),
            Self::There { interface, gateway: Some(via) } => write!(f, "forwarded by {interface} to {via}"),
            Self::Nowhere { why } => write!(f, "the kernel sends it nowhere ({why})"),
        }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |number: &Option<usize>| number.map_or_else(|| "none".into(), |n| format!("service {n}"));
        match self {
            Self::Service { programs, config } => write!(
                f,
                "the kernel programs take {}, by the config it is {}: this is a bug in Sheer, please report it with \
                 the config",
                said(programs),
                said(config)
            ),
            Self::Own { programs } => write!(
                f,
                "the kernel programs {} the destination as this host's own, and this host's addresses say the opposite: \
                 the map local_addresses is full, or this is a bug in Sheer",
                if *programs { "have" } else { "do not have" }
            ),
        }
    }
}

#[cfg(test)]
mod tests;
