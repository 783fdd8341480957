//! Other eBPF programs and filters where Sheer's are attached, or would be.

use aya::programs::{SchedClassifier, loaded_programs};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::{
    Finding,
    netlink::{Netlink, collect},
};
use crate::dataplane::{Direction, object::program};

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
    program::ATTACHED.contains(&name)
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

/// What is attached to one side of an interface, in the order in which it is asked.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) interface: String,
    pub(super) direction: Direction,
    pub(super) tcx: Vec<Program>,
    pub(super) filters: Vec<Filter>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) sides: Vec<Side>,
    /// Socket lookup programs that are not Sheer's, anywhere on this host.
    pub(super) lookups: Vec<Program>,
}

impl Facts {
    pub(super) async fn gather(netlink: &Netlink, devices: &[(u32, String)]) -> Self {
        let mut sides = Vec::new();
        for (index, interface) in devices {
            for direction in [Direction::In, Direction::Out] {
                sides.push(Side {
                    interface: interface.clone(),
                    direction,
                    tcx: tcx(interface, direction),
                    filters: filters(netlink, *index, direction).await,
                });
            }
        }
        Self { sides, lookups: lookups() }
    }

    /// The ids of Sheer's programs on these interfaces, with the interface.
    pub(super) fn ours(&self) -> Vec<(u32, String)> {
        let of = |side: &Side| {
            let tcx = side.tcx.iter().filter(|p| p.is_ours()).map(|p| p.id);
            let filters = side.filters.iter().filter(|f| f.name.as_deref().is_some_and(is_ours));
            let ids: Vec<u32> = tcx.chain(filters.filter_map(|f| f.id)).collect();
            ids.into_iter().map(|id| (id, side.interface.clone())).collect::<Vec<_>>()
        };
        let ingress = self.sides.iter().filter(|side| side.direction == Direction::In);
        ingress.flat_map(of).collect()
    }
}

/// None also where the kernel has no TCX, or does not let us ask.
fn tcx(interface: &str, direction: Direction) -> Vec<Program> {
    let asked = SchedClassifier::query_tcx(interface, direction.into());
    let programs = asked.map(|(_, programs)| programs).unwrap_or_default();
    let program = |info: &aya::programs::ProgramInfo| Program {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
    };
    programs.iter().map(program).collect()
}

async fn filters(netlink: &Netlink, index: u32, direction: Direction) -> Vec<Filter> {
    let Ok(index) = i32::try_from(index) else { return Vec::new() };
    let asked = netlink.handle.traffic_filter(index).get();
    let asked = match direction {
        Direction::In => asked.ingress(),
        Direction::Out => asked.egress(),
    };
    let dump = collect(asked.execute()).await;
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
    let mut findings: Vec<Finding> = facts.sides.iter().flat_map(on).collect();
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

fn on(side: &Side) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Sheer goes to the very front at its start, so that where it is not yet there, all others stand behind it.
    let ours_at_tcx = side.tcx.iter().position(Program::is_ours);
    for (at, program) in side.tcx.iter().enumerate().filter(|(_, program)| !program.is_ours()) {
        let name = format!("the TCX program {} ({})", program.id, program.name);
        let look = format!("bpftool prog show id {}", program.id);
        let off = "`bpftool link show` names the link that holds it; bpftool link detach id LINK, if nobody needs it";
        let in_front = ours_at_tcx.is_some_and(|ours| at < ours);
        findings.extend(other(side, &name, in_front, format!("{look}, to see whose it is; {off}")));
    }
    let ours_under_clsact = side.filters.iter().position(|f| f.name.as_deref().is_some_and(is_ours));
    for (at, filter) in side.filters.iter().enumerate() {
        if filter.name.as_deref().is_some_and(is_ours) {
            continue;
        }
        let label = filter.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        let name = format!("the {} filter{label} with pref {}", filter.kind, filter.priority);
        // TCX programs are asked before all filters (sch_handle_ingress in net/core/dev.c).
        let in_front = ours_at_tcx.is_none() && ours_under_clsact.is_some_and(|ours| at < ours);
        let (interface, hook) = (&side.interface, side.hook());
        let cure = format!(
            "tc filter show dev {interface} {hook}, to see whose it is; tc filter del dev {interface} {hook} pref {}, if \
             nobody needs it",
            filter.priority
        );
        findings.extend(other(side, &name, in_front, cure));
    }
    findings
}

impl Side {
    fn hook(&self) -> &'static str {
        match self.direction {
            Direction::In => "ingress",
            Direction::Out => "egress",
        }
    }
}

/// Nothing for what stands behind Sheer on the way out: there Sheer takes what it needs, and the rest is not its own.
fn other(side: &Side, name: &str, in_front: bool, cure: String) -> Option<Finding> {
    let (id, why) = match (in_front, side.direction) {
        (true, Direction::In) => (
            "tc-in-front",
            "it stands in front of Sheer: what it drops, redirects or accepts, Sheer never sees",
        ),
        (true, Direction::Out) => (
            "tc-in-front",
            "it stands in front of Sheer: where it drops, redirects or accepts answers of local servers and connections of \
             local processes, or of services with `reply = same-way`, Sheer never sees them",
        ),
        (false, Direction::In) => (
            "tc-behind",
            "it comes after Sheer, and may still drop, redirect or mark anew what Sheer has steered",
        ),
        (false, Direction::Out) => return None,
    };
    let what = format!("has {name} on its {}", side.hook());
    Some(Finding::warning(id, side.interface.clone(), what, why, cure))
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

    fn side(direction: Direction, tcx: &[Program], filters: &[Filter]) -> Side {
        Side { interface: "eth0".into(), direction, tcx: tcx.to_vec(), filters: filters.to_vec() }
    }

    fn judged(tcx: &[Program], filters: &[Filter]) -> Vec<(&'static str, String)> {
        on(&side(Direction::In, tcx, filters)).into_iter().map(|f| (f.id, f.what)).collect()
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
        let tcx = [program(5, "sheer_ether"), program(6, "theirs")];
        let ingress = side(Direction::In, &tcx, &[filter(64, "bpf", Some("sheer_ip"))]);
        let egress = side(Direction::Out, &[program(7, "sheer_out_ether")], &[]);
        let facts = Facts { sides: vec![ingress, egress], lookups: vec![] };
        assert_eq!(facts.ours(), [(5, "eth0".to_owned()), (64, "eth0".to_owned())]);
    }
    #[test]
    fn on_the_way_out_only_what_stands_in_front_matters() {
        let (ours, theirs) = (program(8, "sheer_out_ether"), program(7, "theirs"));
        let found = on(&side(Direction::Out, &[theirs.clone(), ours.clone()], &[]));
        assert!(found.len() == 1 && found[0].id == "tc-in-front" && found[0].what.ends_with("egress"));
        assert!(on(&side(Direction::Out, &[ours, theirs.clone()], &[])).is_empty());
        assert!(on(&side(Direction::Out, &[theirs], &[])).is_empty());
    }
}
