//! Connection tracking, which may know an intercepted connection twice.

use super::{
    super::{Finding, sysctl::Sysctls},
    Chain, shown,
};

const COUNT: &str = "net.netfilter.nf_conntrack_count";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

pub(super) fn gather() -> Sysctls {
    Sysctls::read([COUNT, MAX, LIBERAL])
}

/// `dropping`: chains that drop what it takes for invalid.
pub(super) fn judge(
    sysctls: &Sysctls,
    client_port: bool,
    dropping: &[&Chain],
    mark: Option<u32>,
) -> Vec<Finding> {
    let (id, object) = ("conntrack", "conntrack");
    let Some(count) = sysctls.number(COUNT) else {
        return vec![Finding::fine(id, object, "is not loaded", "")];
    };
    let max = sysctls.number(MAX).unwrap_or(0);
    let mut findings = Vec::new();
    let what = match count {
        0 => "tracks nothing here".to_owned(),
        count => format!("tracks {count} connections of at most {max}"),
    };
    if max > 0 && count * 100 > max * 80 {
        findings.push(Finding::warning(
            "conntrack-full",
            object,
            what.clone(),
            "when it is full, new connections are dropped; one that is intercepted counts twice",
            format!("sysctl -w {MAX}={}", max * 4),
        ));
    }
    let liberal = sysctls.number(LIBERAL) == Some(1);
    if client_port && !liberal {
        findings.extend(dropping.iter().map(|chain| invalid(chain, mark)));
    }
    if findings.is_empty() {
        let why = match (client_port, liberal, dropping.len()) {
            (_, _, 0) => "no rule drops what it takes for invalid",
            (_, true, _) => "and is liberal about sequence numbers",
            _ => "the halves of a connection have different ports",
        };
        findings.push(Finding::fine(id, object, what, why));
    }
    findings
}

/// Measured with an initial sequence number of each side's own: of 20 connections 7 to 14 stall.
fn invalid(chain: &Chain, mark: Option<u32>) -> Finding {
    Finding::warning(
        "conntrack-invalid",
        chain.to_string(),
        "drops what conntrack takes for invalid",
        format!(
            "with `source = client-port` both halves of a connection look alike to conntrack, which then takes packets of \
             one for invalid ones of the other: about every second connection stalls. `source = client` is not touched by \
             it; {LIBERAL}=1 keeps it quiet for all connections"
        ),
        chain.accept(&shown(mark)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{
        chains::{Hook, made_up},
        rules::{Action, Condition, Rule},
    };
    use super::*;
    use crate::doctor::Severity;

    fn tracked(count: &str, liberal: &str, client_port: bool, drops: bool) -> Vec<(&'static str, Severity)> {
        let sysctls = Sysctls::of(&[(COUNT, count), (MAX, "1000"), (LIBERAL, liberal)]);
        let rule = Rule { condition: Condition::Invalid, action: Action::Drop };
        let chain = made_up(Hook::Input, false, vec![rule]);
        let dropping: &[&Chain] = if drops { &[&chain] } else { &[] };
        let findings = judge(&sysctls, client_port, dropping, Some(1));
        findings.into_iter().map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn it_matters_where_both_halves_look_alike_and_the_invalid_are_dropped() {
        let fine = [("conntrack", Severity::Fine)];
        assert_eq!(judge(&Sysctls::default(), true, &[], None)[0].severity, Severity::Fine);
        assert_eq!(tracked("10", "0", true, true), [("conntrack-invalid", Severity::Warning)]);
        assert_eq!(tracked("0", "0", true, true), [("conntrack-invalid", Severity::Warning)]);
        assert_eq!(tracked("10", "0", true, false), fine);
        assert_eq!(tracked("10", "0", false, true), fine);
        assert_eq!(tracked("10", "1", true, true), fine);
    }

    #[test]
    fn a_table_that_is_nearly_full_is_a_warning() {
        assert_eq!(tracked("801", "0", false, false), [("conntrack-full", Severity::Warning)]);
        assert_eq!(tracked("800", "0", false, false), [("conntrack", Severity::Fine)]);
    }
}
