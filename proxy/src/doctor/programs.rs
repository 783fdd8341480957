//! Other eBPF programs and filters where Sheer's are attached.

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::{
    Finding,
    netlink::{Netlink, collect},
};
use crate::dataplane::object::program;

/// Of `enum bpf_prog_type` in linux/bpf.h; aya gives the number alone.
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;

/// A program at TCX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) id: u32,
    pub(super) name: String,
}

impl Program {
    /// Told by its name: it may be another instance's, whose pins this process cannot see.
    pub(super) fn is_ours(&self) -> bool {
        is_ours(&self.name)
    }
}

fn is_ours(name: &str) -> bool {
    [program::ETHER, program::IP].contains(&name)
}

/// A filter under a clsact or ingress qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Lower ones are asked first; `pref` of tc.
    pub(super) priority: u32,
    /// `bpf`, `matchall`, `flower` …
    pub(super) kind: String,
    /// Of a program.
    pub(super) name: Option<String>,
    /// Of a program.
    pub(super) id: Option<u32>,
}

/// What is attached to the ingress of one interface, in the order in which it is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Ingress {
    pub(super) interface: String,
    pub(super) tcx: Vec<Program>,
    pub(super) filters: Vec<Filter>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) ingress: Vec<Ingress>,
    /// Socket lookup programs that are not Sheer's, anywhere on this host.
    pub(super) lookups: Vec<Program>,
}

impl Facts {
    pub(super) async fn gather(netlink: &Netlink, devices: &[(u32, String)]) -> Self {
        let mut ingress = Vec::new();
        for (index, interface) in devices {
            ingress.push(Ingress {
                interface: interface.clone(),
                tcx: tcx(interface),
                filters: filters(netlink, *index).await,
            });
        }
        Self { ingress, lookups: lookups() }
    }

    /// The ids of Sheer's programs on these interfaces, with the interface.
    pub(super) fn ours(&self) -> Vec<(u32, String)> {
        let of = |ingress: &Ingress| {
            let tcx = ingress.tcx.iter().filter(|p| p.is_ours()).map(|p| p.id);
            let filters = ingress.filters.iter().filter(|f| f.name.as_deref().is_some_and(is_ours));
            let ids: Vec<u32> = tcx.chain(filters.filter_map(|f| f.id)).collect();
            ids.into_iter().map(|id| (id, ingress.interface.clone())).collect::<Vec<_>>()
        };
        self.ingress.iter().flat_map(of).collect()
    }
}

/// None also where the kernel has no TCX, or does not let us ask.
fn tcx(interface: &str) -> Vec<Program> {
    let asked = SchedClassifier::query_tcx(interface, TcAttachType::Ingress);
    let programs = asked.map(|(_, programs)| programs).unwrap_or_default();
    let program = |info: &aya::programs::ProgramInfo| Program {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
    };
    programs.iter().map(program).collect()
}

async fn filters(netlink: &Netlink, index: u32) -> Vec<Filter> {
    let Ok(index) = i32::try_from(index) else { return Vec::new() };
    let dump = collect(netlink.handle.traffic_filter(index).get().ingress().execute()).await;
    let mut filters: Vec<Filter> = dump.unwrap_or_default().iter().map(filter).collect();
    // Some kinds answer with a message for the kind itself and one for each of their rules.
    filters.dedup_by(|later, first| {
        later.priority == first.priority
            && later.kind == first.kind
            && (first.id == later.id || first.id.is_none())
            && {
                *first = later.clone();
                true
            }
    });
    filters
}

fn filter(message: &TcMessage) -> Filter {
    let mut filter =
        Filter { priority: message.header.info >> 16, kind: String::new(), name: None, id: None };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.id = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}

/// The kernel tells no safe caller which network namespace a link of this kind belongs to.
fn lookups() -> Vec<Program> {
    loaded_programs()
        .filter_map(Result::ok)
        .filter(|info| info.program_type() as u32 == BPF_PROG_TYPE_SK_LOOKUP)
        .map(|info| Program { id: info.id(), name: info.name_as_str().unwrap_or_default().to_owned() })
        .filter(|found| found.name != program::LOOKUP)
        .collect()
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.ingress.iter().flat_map(on_ingress).collect();
    if !facts.lookups.is_empty() {
        let names: Vec<String> = facts.lookups.iter().map(|p| format!("{} ({})", p.id, p.name)).collect();
        findings.push(Finding::fine(
            "socket-lookup",
            "socket lookup",
            format!("other programs of this kind are loaded on this host: {}", names.join(", ")),
            "whether in this network namespace cannot be told; a new connection that Sheer steers does not ask them",
        ));
    }
    findings
}

fn on_ingress(ingress: &Ingress) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Sheer goes to the very front at its start, so that where it is not yet there, all others stand behind it.
    let ours_at_tcx = ingress.tcx.iter().position(Program::is_ours);
    for (at, program) in ingress.tcx.iter().enumerate().filter(|(_, program)| !program.is_ours()) {
        let name = format!("the TCX program {} ({})", program.id, program.name);
        let look = format!("bpftool prog show id {}", program.id);
        let off = "`bpftool link show` names the link that holds it; bpftool link detach id LINK, if nobody needs it";
        findings.push(other(
            ingress,
            name,
            ours_at_tcx.is_some_and(|ours| at < ours),
            format!("{look}, to see whose it is; {off}"),
        ));
    }
    let ours_under_clsact = ingress.filters.iter().position(|f| f.name.as_deref().is_some_and(is_ours));
    for (at, filter) in ingress.filters.iter().enumerate() {
        if filter.name.as_deref().is_some_and(is_ours) {
            continue;
        }
        let label = filter.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        let name = format!("the {} filter{label} with pref {}", filter.kind, filter.priority);
        // TCX programs are asked before all filters (sch_handle_ingress in net/core/dev.c).
        let in_front = ours_at_tcx.is_none() && ours_under_clsact.is_some_and(|ours| at < ours);
        let interface = &ingress.interface;
        let cure = format!(
            "tc filter show dev {interface} ingress, to see whose it is; tc filter del dev {interface} ingress pref {}, \
             if nobody needs it",
            filter.priority
        );
        findings.push(other(ingress, name, in_front, cure));
    }
    findings
}

fn other(ingress: &Ingress, what: String, in_front: bool, cure: String) -> Finding {
    let (id, why) = if in_front {
        ("tc-in-front", "it stands in front of Sheer: what it drops, redirects or accepts, Sheer never sees")
    } else {
        (
            "tc-behind",
            "it comes after Sheer, and may still drop, redirect or mark anew what Sheer has steered",
        )
    };
    Finding::warning(id, ingress.interface.clone(), format!("has {what} on its ingress"), why, cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(id: u32, name: &str) -> Program {
        Program { id, name: name.to_owned() }
    }

    fn filter(priority: u32, kind: &str, name: Option<&str>) -> Filter {
        Filter { priority, kind: kind.to_owned(), name: name.map(str::to_owned), id: Some(priority) }
    }

    fn judged(tcx: &[Program], filters: &[Filter]) -> Vec<(&'static str, String)> {
        let ingress = Ingress { interface: "eth0".into(), tcx: tcx.to_vec(), filters: filters.to_vec() };
        on_ingress(&ingress).into_iter().map(|f| (f.id, f.what)).collect()
    }

    #[test]
    fn sheers_own_programs_are_no_finding() {
        assert_eq!(judged(&[program(1, "sheer_ether"), program(2, "sheer_ip")], &[]), []);
        assert_eq!(judged(&[], &[filter(64, "bpf", Some("sheer_ether"))]), []);
    }

    #[test]
    fn others_are_named_with_their_place() {
        let tcx = [program(7, "cil_from_netdev"), program(8, "sheer_ether"), program(9, "late")];
        let found = judged(&tcx, &[filter(10, "matchall", None)]);
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), ["tc-in-front", "tc-behind", "tc-behind"]);
        assert!(
            found[0].1.contains("7 (cil_from_netdev)") && found[2].1.contains("matchall filter with pref 10")
        );
    }

    #[test]
    fn under_clsact_the_priority_decides() {
        let filters =
            [filter(1, "bpf", Some("theirs")), filter(64, "bpf", Some("sheer_ip")), filter(99, "u32", None)];
        let found = judged(&[], &filters);
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), ["tc-in-front", "tc-behind"]);
        assert!(found[0].1.contains("bpf filter (theirs)"));
    }

    #[test]
    fn before_a_start_all_others_will_stand_behind() {
        let found = judged(&[program(7, "theirs")], &[filter(1, "matchall", None)]);
        assert!(found.iter().all(|f| f.0 == "tc-behind"));
    }

    #[test]
    fn ours_are_found_by_number_and_interface() {
        let ingress = Ingress {
            interface: "eth0".into(),
            tcx: vec![program(5, "sheer_ether"), program(6, "theirs")],
            filters: vec![filter(64, "bpf", Some("sheer_ip"))],
        };
        let facts = Facts { ingress: vec![ingress], lookups: vec![] };
        assert_eq!(facts.ours(), [(5, "eth0".to_owned()), (64, "eth0".to_owned())]);
    }
}
