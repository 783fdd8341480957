//! The kernel: whether it can run Sheer's programs, and where it lets them be attached.

use std::{fs, path::Path};

use aya::{
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};
use rustix::fs::statfs;

use super::{Finding, Fix, sysctl::Sysctls};

const BPFFS: &str = "/sys/fs/bpf";
/// BPF_FS_MAGIC of include/uapi/linux/magic.h.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;
const JIT: &str = "net.core.bpf_jit_enable";
const HARDEN: &str = "net.core.bpf_jit_harden";
/// The first that has all maps and helpers which the programs use.
const OLDEST: (u32, u32) = (5, 10);

/// What a question to the kernel came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Yes,
    No,
    /// It would not say, mostly for want of a privilege.
    Refused(String),
}

impl Probe {
    fn of(answer: Result<bool, ProgramError>) -> Self {
        match answer {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(e) => Self::Refused(causes(&e)),
        }
    }
}

/// An error with its causes: aya keeps the errno in the last one.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) release: String,
    /// bpf(2) takes a program for tc.
    pub(super) tc: Probe,
    /// bpf(2) takes a program for the socket lookup.
    pub(super) lookup: Probe,
    /// A program at tc may choose the socket (`bpf_sk_assign`).
    pub(super) assign: Probe,
    pub(super) tcx: Probe,
    pub(super) bpffs: Bpffs,
    pub(super) btf: bool,
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
    pub(super) fn gather() -> Self {
        let helper = BpfHelper::BPF_FUNC_sk_assign;
        Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            tc: Probe::of(is_program_supported(ProgramType::SchedClassifier)),
            lookup: Probe::of(is_program_supported(ProgramType::SkLookup)),
            assign: Probe::of(is_helper_supported(ProgramType::SchedClassifier, helper)),
            tcx: tcx(),
            bpffs: bpffs(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|t| chosen(&t)),
            sysctls: Sysctls::read([JIT, HARDEN]),
        }
    }
}

/// Asking is better than the version: distributions carry it back, and leave it out.
fn tcx() -> Probe {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Probe::Yes,
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EINVAL) => Probe::No,
        Err(e) => Probe::Refused(causes(&e)),
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

/// The first two numbers of a release such as `6.8.0-45-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![release(facts)];
    findings.extend(programs(facts));
    findings.push(attaching(facts));
    findings.push(file_system(facts.bpffs));
    findings.extend(speed(&facts.sysctls));
    findings.push(btf(facts.btf));
    findings.extend(lockdown(facts.lockdown.as_deref()));
    findings
}

fn release(facts: &Facts) -> Finding {
    let (id, object) = ("kernel", "kernel");
    match version(&facts.release) {
        Some(version) if version < OLDEST => Finding::cannot(
            id,
            object,
            format!("is {}", facts.release),
            "Sheer needs Linux 5.11 or later for the maps and helpers of its programs",
            "install a newer kernel and boot it; every distribution with long-term support has one",
        ),
        Some(_) => Finding::fine(id, object, format!("is {}", facts.release), ""),
        None => Finding::warning(
            id,
            object,
            format!("has a release that says no version ({:?})", facts.release),
            "whether it is recent enough (5.11) cannot be told",
            "compare `uname -r` yourself",
        ),
    }
}

fn programs(facts: &Facts) -> Vec<Finding> {
    const LACKS: &str = "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_INET and CONFIG_NET_CLS_ACT";
    let refused = |what: &str, why: &str| {
        let what = format!("bpf(2) refused {what}: {why}");
        Finding::cannot("bpf", "eBPF", what, "Sheer cannot load its programs", privilege_cure(facts))
    };
    if let Probe::Refused(why) = &facts.tc {
        // One refusal explains the others.
        return vec![refused("a program for tc", why)];
    }
    let mut findings = Vec::new();
    let asked =
        [("tc programs", &facts.tc), ("socket lookup", &facts.lookup), ("choosing sockets", &facts.assign)];
    for (what, answer) in asked {
        match answer {
            Probe::Yes => {}
            Probe::No => findings.push(Finding::cannot(
                "bpf",
                "eBPF",
                format!("the kernel lacks: {what}"),
                "Sheer's programs cannot be loaded",
                LACKS,
            )),
            // Where tc programs are taken, loading the real ones will tell.
            Probe::Refused(why) => {
                let what = format!("could not be asked about: {what} ({why})");
                findings.push(Finding::fine("bpf", "eBPF", what, "a start will tell"));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine(
            "bpf",
            "eBPF",
            "tc programs, socket lookup and choosing sockets are there",
            "",
        ));
    }
    findings
}

fn privilege_cure(facts: &Facts) -> &'static str {
    if facts.lockdown.as_deref().is_some_and(|mode| mode != "none") {
        "run as root; if that does not help, kernel lockdown or another security module forbids it: look into dmesg"
    } else {
        "run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and not in a container that filters bpf(2)"
    }
}

fn attaching(facts: &Facts) -> Finding {
    let (id, object) = ("tcx", "TCX");
    match &facts.tcx {
        Probe::Yes => Finding::fine(id, object, "is there", ""),
        Probe::No => Finding::fine(
            id,
            object,
            "is not there (it came with Linux 6.6)",
            "filters under a clsact qdisc do the same here",
        ),
        Probe::Refused(_) => Finding::fine(id, object, "could not be asked for", "the kernel refused to say"),
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

fn btf(there: bool) -> Finding {
    let (id, object) = ("btf", "/sys/kernel/btf/vmlinux");
    if there {
        return Finding::fine(id, object, "is there", "");
    }
    Finding::warning(
        id,
        object,
        "is missing",
        "bpftool cannot name the fields of Sheer's maps, if the kernel takes no BTF at all",
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )
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
            tc: Probe::Yes,
            lookup: Probe::Yes,
            assign: Probe::Yes,
            tcx: Probe::Yes,
            bpffs: Bpffs::Mounted,
            btf: true,
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

    #[test]
    fn releases_are_read_and_old_ones_cannot_work() {
        assert_eq!(version("5.10.0-30-amd64"), Some((5, 10)));
        assert_eq!(version("6.6-rc1"), Some((6, 6)));
        assert_eq!(version("mine"), None);
        for (release, expected) in [
            ("5.10.226", Severity::CannotWork),
            ("4.19.0", Severity::CannotWork),
            ("5.11.0", Severity::Fine),
            ("6.1.0-25-amd64", Severity::Fine),
            ("mine", Severity::Warning),
        ] {
            let facts = Facts { release: release.into(), ..good() };
            assert_eq!(worst(&facts).0, expected, "{release}");
        }
    }

    #[test]
    fn a_missing_program_type_or_helper_cannot_work() {
        for facts in [
            Facts { tc: Probe::No, ..good() },
            Facts { lookup: Probe::No, ..good() },
            Facts { assign: Probe::No, ..good() },
            Facts { tc: Probe::Refused("Operation not permitted".into()), ..good() },
        ] {
            assert_eq!(worst(&facts), (Severity::CannotWork, vec!["bpf"]));
        }
    }

    #[test]
    fn a_helper_that_cannot_be_asked_about_stops_nobody() {
        let facts = Facts { assign: Probe::Refused("Argument list too long".into()), ..good() };
        assert_eq!(worst(&facts).0, Severity::Fine);
    }

    #[test]
    fn without_tcx_clsact_serves() {
        let facts = Facts { tcx: Probe::No, release: "5.15.0".into(), ..good() };
        let findings = judge(&facts);
        let tcx = findings.iter().find(|f| f.id == "tcx").unwrap();
        assert!(tcx.severity == Severity::Fine && tcx.why.contains("clsact"), "{tcx}");
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
    fn no_btf_is_a_warning_and_lockdown_is_told() {
        assert_eq!(btf(false).severity, Severity::Warning);
        assert_eq!(chosen("none integrity [confidentiality]\n").as_deref(), Some("confidentiality"));
        assert_eq!(lockdown(Some("confidentiality")).unwrap().severity, Severity::Fine);
        assert!(lockdown(Some("none")).is_none() && lockdown(None).is_none());
    }
}
