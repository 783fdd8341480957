//! The kernel: whether it can run Sheer's programs, and where it lets them be attached.

use std::fs;

use rustix::fs::statfs;

use super::{Finding, Fix, sysctl::Sysctls};
use crate::dataplane::{
    Capabilities,
    probe::{Answer, Feature, Need},
};

const BPFFS: &str = "/sys/fs/bpf";
/// BPF_FS_MAGIC of include/uapi/linux/magic.h.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;
const JIT: &str = "net.core.bpf_jit_enable";
const HARDEN: &str = "net.core.bpf_jit_harden";

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) release: String,
    pub(super) capabilities: Capabilities,
    pub(super) bpffs: Bpffs,
    /// What stands in brackets in /sys/kernel/security/lockdown.
    pub(super) lockdown: Option<String>,
    pub(super) sysctls: Sysctls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bpffs {
    Mounted,
    NotMounted,
    /// Not even the directory: /sys is another one than the host's.
    NoDirectory,
}

impl Facts {
    pub(super) fn gather(capabilities: &Capabilities) -> Self {
        Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            capabilities: capabilities.clone(),
            bpffs: bpffs(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|t| chosen(&t)),
            sysctls: Sysctls::read([JIT, HARDEN]),
        }
    }
}

fn bpffs() -> Bpffs {
    match statfs(BPFFS) {
        Ok(s) if s.f_type as u64 == BPFFS_MAGIC => Bpffs::Mounted,
        Ok(_) => Bpffs::NotMounted,
        Err(_) => Bpffs::NoDirectory,
    }
}

/// `none [integrity] confidentiality`: the one in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![Finding::fine("kernel", "kernel", format!("is {}", facts.release), "")];
    findings.extend(programs(facts));
    findings.push(file_system(facts.bpffs));
    findings.extend(speed(&facts.sysctls));
    findings.extend(lockdown(facts.lockdown.as_deref()));
    findings
}

/// A finding for each feature, or one that explains them all.
fn programs(facts: &Facts) -> Vec<Finding> {
    match facts.capabilities.answers().next() {
        Some((_, Answer::Refused(why))) => vec![Finding::cannot(
            "bpf",
            "eBPF",
            format!("bpf(2) refused a program for tc: {why}"),
            "Sheer cannot load its programs",
            privilege_cure(facts),
        )],
        _ => facts.capabilities.answers().map(|(feature, answer)| one(feature, answer)).collect(),
    }
}

fn one(feature: Feature, answer: &Answer) -> Finding {
    let (id, name, since) = (feature.id(), feature.name(), feature.since());
    match (answer, feature.need()) {
        (Answer::Yes, _) => Finding::fine(id, name, "is there", ""),
        // Where tc programs are taken, loading the real ones will tell.
        (Answer::Refused(why), _) => {
            Finding::fine(id, name, format!("could not be asked for ({why})"), "a start will tell")
        }
        (Answer::No, Need::Else(instead)) => {
            Finding::fine(id, name, format!("is not there (it came with Linux {since})"), instead)
        }
        (Answer::No, Need::Essential) => Finding::cannot(
            id,
            name,
            "this kernel does not have it",
            "Sheer's programs cannot work without",
            format!("boot Linux {since} or later, built with {}", feature.options()),
        ),
    }
}

fn privilege_cure(facts: &Facts) -> &'static str {
    if facts.lockdown.as_deref().is_some_and(|mode| mode != "none") {
        "run as root; if that does not help, kernel lockdown or another security module forbids it: look into dmesg"
    } else {
        "run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and not in a container that filters bpf(2)"
    }
}

fn file_system(bpffs: Bpffs) -> Finding {
    let id = "bpffs";
    match bpffs {
        Bpffs::Mounted => Finding::fine(id, BPFFS, "bpffs is mounted", ""),
        Bpffs::NotMounted => {
            Finding::fine(id, BPFFS, "bpffs is not mounted", "`sheer run` mounts it by itself")
                .fixed_by(Fix::MountBpffs)
        }
        Bpffs::NoDirectory => Finding::cannot(
            id,
            BPFFS,
            "the directory is missing",
            "programs and maps cannot be kept while Sheer restarts",
            "mount -t sysfs sysfs /sys; in a container, mount the host's /sys/fs/bpf into it. `ip netns exec` hides it: \
             enter with `nsenter --net=/run/netns/NAME`",
        ),
    }
}

fn speed(sysctls: &Sysctls) -> Vec<Finding> {
    let mut findings = Vec::new();
    match sysctls.number(JIT) {
        Some(0) => findings.push(
            Finding::warning(
                "bpf-jit",
                JIT,
                "is 0",
                "every packet is looked at by an interpreter, several times slower",
                format!("sysctl -w {JIT}=1"),
            )
            .fixed_by(Fix::Sysctl { name: JIT, value: 1 }),
        ),
        Some(value) => {
            findings.push(Finding::fine("bpf-jit", JIT, format!("is {value}"), "programs are compiled"));
        }
        // Not shown in a network namespace other than the host's.
        None => {}
    }
    if sysctls.number(HARDEN) == Some(2) {
        findings.push(Finding::fine(
            "bpf-jit-harden",
            HARDEN,
            "is 2",
            "programs of root are hardened too and a little slower",
        ));
    }
    findings
}

/// Lockdown takes away `bpf_probe_read_kernel` and `bpf_probe_write_user` (kernel/bpf/helpers.c), which Sheer's programs do
/// not call; a kernel that forbids more is found out by the probes.
fn lockdown(mode: Option<&str>) -> Option<Finding> {
    let mode = mode.filter(|mode| *mode != "none")?;
    Some(Finding::fine(
        "lockdown",
        "kernel lockdown",
        format!("is {mode}"),
        "Sheer's programs read no kernel memory, which is what it forbids programs",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn good() -> Facts {
        Facts {
            release: "6.18.1-1-amd64".into(),
            capabilities: Capabilities::without(&[]),
            bpffs: Bpffs::Mounted,
            lockdown: Some("none".into()),
            sysctls: Sysctls::of(&[(JIT, "1")]),
        }
    }

    fn worst(facts: &Facts) -> (Severity, Vec<&'static str>) {
        let findings = judge(facts);
        let worst = findings.iter().map(|f| f.severity).max().unwrap();
        (worst, findings.iter().filter(|f| f.severity == worst).map(|f| f.id).collect())
    }

    #[test]
    fn a_good_kernel_is_fine() {
        assert_eq!(worst(&good()).0, Severity::Fine);
    }

    fn lacking(features: &[Feature]) -> Facts {
        Facts { capabilities: Capabilities::without(features), ..good() }
    }

    #[test]
    fn what_is_essential_is_named_with_the_kernel_that_brought_it_whatever_the_release_says() {
        let facts = Facts { release: "9.9.9".into(), ..lacking(&[Feature::InnerMap, Feature::SkAssign]) };
        assert_eq!(worst(&facts), (Severity::CannotWork, vec!["sk-assign", "inner-map"]));
        let findings = judge(&facts);
        let finding = findings.iter().find(|f| f.id == "inner-map").unwrap();
        assert!(finding.cure.contains("Linux 5.10 or later"), "{finding}");
        let old = Facts { release: "4.4.0".into(), ..good() };
        assert_eq!(worst(&old).0, Severity::Fine);
    }

    #[test]
    fn one_refusal_explains_all_others() {
        let facts = Facts { capabilities: Capabilities::refused("Operation not permitted"), ..good() };
        assert_eq!(worst(&facts), (Severity::CannotWork, vec!["bpf"]));
        let asked = Answer::Refused("Argument list too long".into());
        assert_eq!(one(Feature::SkAssign, &asked).severity, Severity::Fine);
    }

    #[test]
    fn what_can_be_done_otherwise_is_fine_and_says_how() {
        let facts = lacking(&[Feature::Tcx, Feature::CoarseClock, Feature::Btf]);
        let findings = judge(&facts);
        for (id, word) in [("tcx", "clsact"), ("coarse-clock", "bpf_ktime_get_ns"), ("btf", "bpftool")] {
            let finding = findings.iter().find(|f| f.id == id).unwrap();
            assert!(finding.severity == Severity::Fine && finding.why.contains(word), "{finding}");
        }
    }

    #[test]
    fn bpffs_is_mounted_or_mountable_or_its_directory_is_missing() {
        let unmounted = file_system(Bpffs::NotMounted);
        assert_eq!((unmounted.severity, unmounted.fix), (Severity::Fine, Some(Fix::MountBpffs)));
        assert_eq!(file_system(Bpffs::NoDirectory).severity, Severity::CannotWork);
    }

    #[test]
    fn the_interpreter_is_a_warning_that_can_be_fixed() {
        let findings = speed(&Sysctls::of(&[(JIT, "0")]));
        assert_eq!(findings[0].fix, Some(Fix::Sysctl { name: JIT, value: 1 }));
        assert_eq!(speed(&Sysctls::of(&[(JIT, "1"), (HARDEN, "2")])).len(), 2);
        assert!(speed(&Sysctls::default()).is_empty());
    }

    #[test]
    fn lockdown_is_told() {
        assert_eq!(chosen("none integrity [confidentiality]\n").as_deref(), Some("confidentiality"));
        assert_eq!(lockdown(Some("confidentiality")).unwrap().severity, Severity::Fine);
        assert!(lockdown(Some("none")).is_none() && lockdown(None).is_none());
    }
}
