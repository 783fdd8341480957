//! The host's settings, as far as Sheer depends on them. Each that people suspect and that does no harm is named too.

use super::{Finding, Fix, sysctl::Sysctls};
use crate::socket::transparent::BACKLOG;

const FORWARD4: &str = "net.ipv4.ip_forward";
const FORWARD6: &str = "net.ipv6.conf.all.forwarding";
const DISABLE6: &str = "net.ipv6.conf.all.disable_ipv6";
const SOMAXCONN: &str = "net.core.somaxconn";
const SYN_BACKLOG: &str = "net.ipv4.tcp_max_syn_backlog";
const COOKIES: &str = "net.ipv4.tcp_syncookies";
const PORTS: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
const EARLY_DEMUX: [&str; 2] = ["net.ipv4.ip_early_demux", "net.ipv4.tcp_early_demux"];

/// Any value of these does; why in one clause.
const HARMLESS: [(&str, &str); 5] = [
    (
        "net.ipv4.conf.all.rp_filter",
        "any value does: the rules of Sheer are bound to interfaces, the check never asks them",
    ),
    ("net.ipv4.conf.all.src_valid_mark", "any value does, for the same reason"),
    ("net.ipv4.tcp_fwmark_accept", "any value does: listeners and accepted connections carry one mark"),
    ("net.ipv4.fwmark_reflect", "any value does: what the kernel itself answers is routed as ever"),
    ("net.ipv4.ip_nonlocal_bind", "any value does: Sheer's sockets are transparent"),
];

/// With fewer ports to connect from, busy servers run out of them.
const FEW_PORTS: u64 = 10_000;

/// All that is looked at.
pub(super) fn gather() -> Sysctls {
    let judged = [FORWARD4, FORWARD6, DISABLE6, SOMAXCONN, SYN_BACKLOG, COOKIES, PORTS, RESERVED];
    Sysctls::read(judged.into_iter().chain(EARLY_DEMUX).chain(HARMLESS.map(|(name, _)| name)))
}

pub(super) fn judge(sysctls: &Sysctls) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(forwarding(sysctls, "ip-forward", FORWARD4, "IPv4"));
    findings.extend(ipv6(sysctls));
    findings.extend(somaxconn(sysctls));
    findings.extend(syn_backlog(sysctls));
    findings.extend(ports(sysctls));
    findings.extend(early_demux(sysctls));
    for (name, why) in HARMLESS {
        findings.extend(
            sysctls.text(name).map(|value| Finding::fine("harmless", name, format!("is {value}"), why)),
        );
    }
    findings
}

/// Not fixed unasked: it makes the host a router for everybody.
fn forwarding(sysctls: &Sysctls, id: &'static str, name: &'static str, family: &str) -> Option<Finding> {
    let value = sysctls.text(name)?;
    if value != "0" {
        return Some(Finding::fine(
            id,
            name,
            format!("is {value}"),
            format!("{family} that Sheer lets pass goes on"),
        ));
    }
    let care = if name == FORWARD6 {
        "; an interface that got its address from router advertisements also needs accept_ra=2"
    } else {
        ""
    };
    Some(Finding::warning(
        id,
        name,
        "is 0",
        format!(
            "{family} that Sheer lets pass goes nowhere: other ports, and all connections while it is down, \
             `when_down = open` or not. What it intercepts works"
        ),
        format!("sysctl -w {name}=1 (opens this host as a router{care})"),
    ))
}

fn ipv6(sysctls: &Sysctls) -> Option<Finding> {
    match sysctls.number(DISABLE6) {
        None => Some(Finding::fine("ipv6", "IPv6", "the kernel has none", "Sheer leaves it out")),
        Some(1) => Some(Finding::fine("ipv6", DISABLE6, "is 1", "Sheer leaves IPv6 out where it is off")),
        Some(_) => forwarding(sysctls, "ip6-forward", FORWARD6, "IPv6"),
    }
}

fn somaxconn(sysctls: &Sysctls) -> Option<Finding> {
    let (id, allowed, wanted) = ("somaxconn", sysctls.number(SOMAXCONN)?, backlog());
    if allowed >= wanted {
        return Some(Finding::fine(
            id,
            SOMAXCONN,
            format!("is {allowed}"),
            "bursts of connections find room",
        ));
    }
    let finding = Finding::warning(
        id,
        SOMAXCONN,
        format!("is {allowed}"),
        format!(
            "of the {wanted} connections that may wait for a worker only {allowed} can; bursts beyond lose their SYN"
        ),
        format!("sysctl -w {SOMAXCONN}={wanted}"),
    );
    Some(finding.fixed_by(Fix::Sysctl { name: SOMAXCONN, value: wanted }))
}

/// The kernel asks it only where SYN cookies are off (tcp_conn_request in net/ipv4/tcp_input.c).
fn syn_backlog(sysctls: &Sysctls) -> Option<Finding> {
    let (id, size, wanted) = ("syn-backlog", sysctls.number(SYN_BACKLOG)?, backlog());
    let cookies = sysctls.text(COOKIES).unwrap_or("1");
    if cookies != "0" || size >= wanted {
        let what = format!("is {size}, tcp_syncookies is {cookies}");
        return Some(Finding::fine(id, SYN_BACKLOG, what, "handshakes find room"));
    }
    let finding = Finding::warning(
        id,
        SYN_BACKLOG,
        format!("is {size}, and tcp_syncookies is 0"),
        format!(
            "beyond {} open handshakes at a worker new clients are refused; a flood of SYNs does it",
            size / 4 * 3
        ),
        format!("sysctl -w {SYN_BACKLOG}={wanted}, or, against floods: sysctl -w {COOKIES}=1"),
    );
    Some(finding.fixed_by(Fix::Sysctl { name: SYN_BACKLOG, value: wanted }))
}

fn backlog() -> u64 {
    u64::from(BACKLOG.unsigned_abs())
}

fn ports(sysctls: &Sysctls) -> Option<Finding> {
    let id = "local-ports";
    let (first, last) = port_range(sysctls.text(PORTS)?)?;
    let reserved = sysctls.text(RESERVED).map_or(0, |list| reserved_within(list, first, last));
    let free = (last + 1).saturating_sub(first).saturating_sub(reserved);
    let mut what = format!("is {first} to {last}");
    if reserved > 0 {
        what = format!("{what}, {reserved} of them in ip_local_reserved_ports");
    }
    if free >= FEW_PORTS {
        return Some(Finding::fine(id, PORTS, what, format!("{free} ports to connect from")));
    }
    Some(Finding::warning(
        id,
        PORTS,
        what,
        format!(
            "only {free} connections at a time from one source address to one server's port; with `source = proxy` all \
             clients share that"
        ),
        format!("sysctl -w {PORTS}=\"10240 65535\", and reserve no more than is needed"),
    ))
}

fn port_range(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// How many of `8080,9000-9100` are in the range.
fn reserved_within(list: &str, first: u64, last: u64) -> u64 {
    let ranges = list.split(',').filter_map(|part| {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        Some((a.trim().parse::<u64>().ok()?.max(first), b.trim().parse::<u64>().ok()?.min(last)))
    });
    ranges.map(|(a, b)| (b + 1).saturating_sub(a)).sum()
}

fn early_demux(sysctls: &Sysctls) -> Option<Finding> {
    let id = "early-demux";
    let off = EARLY_DEMUX.into_iter().find(|name| sysctls.text(name) == Some("0"));
    match off {
        Some(name) => Some(Finding::warning(
            id,
            name,
            "is 0",
            "each packet of an intercepted connection costs a route lookup more; it works, but slower",
            format!("sysctl -w {name}=1"),
        )),
        None => sysctls
            .text(EARLY_DEMUX[1])
            .map(|value| Finding::fine(id, EARLY_DEMUX[1], format!("is {value}"), "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn without_forwarding_what_passes_goes_nowhere_and_nobody_opens_the_host_unasked() {
        let findings = judge(&Sysctls::of(&[(FORWARD4, "0"), (FORWARD6, "0"), (DISABLE6, "0")]));
        for id in ["ip-forward", "ip6-forward"] {
            let finding = findings.iter().find(|f| f.id == id).unwrap();
            assert_eq!((finding.severity, &finding.fix), (Severity::Warning, &None));
            assert!(finding.cure.starts_with("sysctl -w net.ipv"), "{finding}");
        }
        let on = judge(&Sysctls::of(&[(FORWARD4, "1"), (FORWARD6, "1"), (DISABLE6, "0")]));
        assert!(on.iter().all(|f| f.severity == Severity::Fine));
    }

    #[test]
    fn a_host_without_ipv6_is_fine() {
        assert_eq!(ipv6(&Sysctls::default()).unwrap().severity, Severity::Fine);
        assert_eq!(ipv6(&Sysctls::of(&[(DISABLE6, "1"), (FORWARD6, "0")])).unwrap().severity, Severity::Fine);
    }

    #[test]
    fn a_short_accept_queue_can_be_fixed() {
        let short = somaxconn(&Sysctls::of(&[(SOMAXCONN, "128")])).unwrap();
        assert_eq!(short.fix, Some(Fix::Sysctl { name: SOMAXCONN, value: 4096 }));
        assert_eq!(somaxconn(&Sysctls::of(&[(SOMAXCONN, "4096")])).unwrap().severity, Severity::Fine);
    }

    #[test]
    fn the_syn_queue_matters_only_without_cookies() {
        let judged =
            |cookies, size| syn_backlog(&Sysctls::of(&[(COOKIES, cookies), (SYN_BACKLOG, size)])).unwrap();
        assert_eq!(judged("1", "128").severity, Severity::Fine);
        assert_eq!(judged("2", "128").severity, Severity::Fine);
        assert_eq!(judged("0", "4096").severity, Severity::Fine);
        assert_eq!(judged("0", "128").fix, Some(Fix::Sysctl { name: SYN_BACKLOG, value: 4096 }));
    }

    #[test]
    fn few_ports_to_connect_from_are_a_warning_reserved_ones_taken_off() {
        let judged = |range, reserved| ports(&Sysctls::of(&[(PORTS, range), (RESERVED, reserved)])).unwrap();
        assert_eq!(judged("32768\t60999", "").severity, Severity::Fine);
        assert_eq!(judged("32768\t60999", "80,8080-8099").why, "28232 ports to connect from");
        assert_eq!(judged("32768\t40000", "").severity, Severity::Warning);
        let reserved = judged("32768\t60999", "30000-59999,60001");
        assert_eq!(reserved.severity, Severity::Warning);
        assert!(reserved.what.contains("27233 of them"), "{reserved}");
    }

    #[test]
    fn early_demux_off_is_slower() {
        assert_eq!(early_demux(&Sysctls::of(&[(EARLY_DEMUX[0], "0")])).unwrap().severity, Severity::Warning);
        assert_eq!(early_demux(&Sysctls::of(&[(EARLY_DEMUX[1], "1")])).unwrap().severity, Severity::Fine);
        assert!(early_demux(&Sysctls::default()).is_none());
    }

    #[test]
    fn suspects_that_do_no_harm_are_named_as_fine() {
        let findings = judge(&Sysctls::of(&[(HARMLESS[0].0, "1"), (HARMLESS[1].0, "1")]));
        let harmless: Vec<_> = findings.iter().filter(|f| f.id == "harmless").collect();
        assert!(harmless.len() == 2 && harmless.iter().all(|f| f.severity == Severity::Fine));
    }
}
