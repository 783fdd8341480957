//! Makes the policy route, keeps it, and takes it away again.

use std::cell::Cell;
use std::fs;
use std::thread;

use super::links::{self, Link};
use super::netlink::Netlink;
use super::rules::{self, Rule};
use super::{Family, PROTOCOL, RouteError, find_link, table};

/// What the policy route shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePlan {
    /// The mark that the dataplane puts on its packets; compared with the mask 0xffffffff.
    pub mark: u32,
    /// The routing table that holds `local default dev lo`.
    pub table: u32,
    /// The priority of the rules.
    pub priority: u32,
    /// The names of the interfaces that the dataplane looks at.
    pub interfaces: Vec<String>,
    /// Whether the dataplane looks at outgoing packets too, so that what it turns back has to be delivered here.
    pub output: bool,
}

/// The policy route of one instance; it is gone when this value is.
///
/// [`RouteGuard::remove`] takes it away and reports errors. Dropping does the same on a thread of its own and
/// logs them: that is the path of a panic and of an early return.
#[derive(Debug)]
#[must_use = "dropping the guard removes the policy route"]
pub struct RouteGuard {
    plan: RoutePlan,
    /// See [`RoutePlan::output`]; it may come true later.
    output: Cell<bool>,
    families: Vec<Family>,
    armed: bool,
}

impl RouteGuard {
    /// Makes the rules and routes of the plan. What a crash left is adopted where it fits and removed where it does not.
    ///
    /// IPv6 is left out when this namespace has it switched off; [`RouteGuard::families`] tells.
    ///
    /// # Errors
    /// When an interface does not exist, `lo` is down, the table belongs to somebody else, or the kernel refuses.
    /// Nothing of ours is left behind then.
    pub async fn install(plan: RoutePlan) -> Result<Self, RouteError> {
        check_numbers(&plan)?;
        let netlink = Netlink::open()?;
        let links = links::list(&netlink).await?;
        let loopback = loopback(&links)?;
        for name in &plan.interfaces {
            find_link(&links, name)?;
        }
        let families = families(&plan.interfaces)?;
        for &family in &families {
            check_table(&netlink, family, plan.table, loopback).await?;
        }
        let output = Cell::new(plan.output);
        let guard = Self { plan, output, families, armed: true };
        guard.apply(&netlink, &links, loopback).await?;
        Ok(guard)
    }

    /// Adds rules for VLAN devices and bridges that came since, removes those of devices that went.
    ///
    /// # Errors
    /// When the kernel refuses; what was there stays.
    pub async fn refresh(&self) -> Result<(), RouteError> {
        let netlink = Netlink::open()?;
        let links = links::list(&netlink).await?;
        self.apply(&netlink, &links, loopback(&links)?).await
    }

    /// Adds the rules for what the dataplane turns back on its way out.
    ///
    /// # Errors
    /// As [`RouteGuard::refresh`].
    pub async fn concern_output(&self) -> Result<(), RouteError> {
        self.output.set(true);
        self.refresh().await
    }

    /// The address families that were set up: IPv4, and IPv6 unless it is switched off.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// What was asked for.
    #[must_use]
    pub fn plan(&self) -> &RoutePlan {
        &self.plan
    }

    /// Takes rules and routes away.
    ///
    /// # Errors
    /// When the kernel refuses; the rest is removed nevertheless.
    pub async fn remove(mut self) -> Result<(), RouteError> {
        self.armed = false;
        purge(self.plan.table, self.plan.mark).await
    }

    /// Lets rules and routes stand when the value goes: for a successor, or for `sheer cleanup`.
    pub fn leave(mut self) {
        self.armed = false;
    }

    /// The routes come first: a rule that leads to an empty table would let the packet go on to the next rule.
    async fn apply(&self, netlink: &Netlink, links: &[Link], loopback: u32) -> Result<(), RouteError> {
        let (plan, output) = (&self.plan, self.output.get());
        let names = links::routed_as(links, &plan.interfaces);
        for &family in &self.families {
            table::add(netlink, family, plan.table, loopback).await?;
            let wanted: Vec<Rule> = names
                .iter()
                .map(|name| Rule::ours(family, plan.priority, plan.mark, name, plan.table))
                .chain(output.then(|| Rule::turned_back(family, plan.priority, plan.mark, plan.table)))
                .chain(output.then(|| Rule::from_loopback(family, plan.priority, plan.table)))
                .collect();
            let present = rules::list(netlink, family).await?;
            let change = rules::difference(&present, &wanted, plan.mark, plan.table);
            for rule in &change.add {
                rules::add(netlink, rule).await?;
            }
            for rule in &change.delete {
                log::info!("removing a rule that is no longer wanted: {rule}");
                rules::delete(netlink, rule).await?;
            }
        }
        Ok(())
    }
}

impl Drop for RouteGuard {
    /// A runtime cannot be blocked on from inside another, hence the thread; it is waited for, because the process
    /// may end right after this.
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (table, mark) = (self.plan.table, self.plan.mark);
        let worker = thread::Builder::new().name("route-guard".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime.map(|runtime| runtime.block_on(purge(table, mark))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("{error}. Remove what is left with: sheer cleanup"),
                Err(error) => {
                    log::error!(
                        "cannot start a runtime to remove the policy route: {error}. Run: sheer cleanup"
                    );
                }
            }
        });
        match worker.map(thread::JoinHandle::join) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => log::error!("removing the policy route panicked. Run: sheer cleanup"),
            Err(error) => {
                log::error!("cannot start a thread to remove the policy route: {error}. Run: sheer cleanup");
            }
        }
    }
}

/// Removes every rule and route of ours with this mark and table, of both families, also for interfaces that are gone.
///
/// # Errors
/// The first error; what can be removed is removed nevertheless.
pub async fn purge(table: u32, mark: u32) -> Result<(), RouteError> {
    let netlink = Netlink::open()?;
    let mut outcome = Ok(());
    for family in Family::ALL {
        let result = purge_family(&netlink, family, table, mark).await;
        outcome = outcome.and(result);
    }
    outcome
}

async fn purge_family(netlink: &Netlink, family: Family, table: u32, mark: u32) -> Result<(), RouteError> {
    let present = rules::list(netlink, family).await?;
    let mut outcome = Ok(());
    for rule in rules::difference(&present, &[], mark, table).delete {
        let result = rules::delete(netlink, &rule).await;
        outcome = outcome.and(result);
    }
    // Two instances that were told to share a table: the other one still needs the route.
    if rules::list(netlink, family).await?.iter().any(|r| r.protocol == PROTOCOL && r.table == table) {
        return outcome;
    }
    for found in table::list(netlink, family, table, 0).await?.iter().filter(|found| found.is_ours()) {
        let result = table::delete(netlink, family, table, found).await;
        outcome = outcome.and(result);
    }
    outcome
}

fn check_numbers(plan: &RoutePlan) -> Result<(), RouteError> {
    if plan.mark == 0 {
        let why = "every unmarked packet carries it. Choose another, or leave it out of the config";
        return Err(RouteError::BadNumber { what: "the mark", value: 0, why });
    }
    if plan.table == 0 || (253..=255).contains(&plan.table) {
        let why = "it is one of the kernel's own tables (0 unspecified, 253 default, 254 main, 255 local). Choose \
                   another, or leave it out of the config";
        return Err(RouteError::BadNumber { what: "the table", value: plan.table, why });
    }
    Ok(())
}

fn loopback(links: &[Link]) -> Result<u32, RouteError> {
    links.iter().find(|link| link.name == "lo" && link.up).map(|lo| lo.index).ok_or(RouteError::LoopbackDown)
}

/// A foreign route in our table would catch marked packets before, or instead of, ours.
async fn check_table(netlink: &Netlink, family: Family, table: u32, loopback: u32) -> Result<(), RouteError> {
    for found in table::list(netlink, family, table, loopback).await? {
        if found.is_ours() && !found.wanted {
            table::delete(netlink, family, table, &found).await?;
        } else if !found.wanted {
            let flag = if family == Family::V6 { "-6 " } else { "" };
            return Err(RouteError::TableInUse { table, route: found.to_string(), flag });
        }
    }
    Ok(())
}

/// IPv4 always; IPv6 when the namespace has it and `lo` can carry it.
fn families(interfaces: &[String]) -> Result<Vec<Family>, RouteError> {
    if ipv6_enabled("lo") {
        return Ok(Family::ALL.to_vec());
    }
    match interfaces.iter().find(|name| ipv6_enabled(name)) {
        Some(interface) => Err(RouteError::LoopbackWithoutIpv6 { interface: interface.clone() }),
        None => Ok(vec![Family::V4]),
    }
}

/// The file is missing when the kernel was booted with `ipv6.disable=1` or built without IPv6.
fn ipv6_enabled(interface: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"))
        .is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mark: u32, table: u32) -> RoutePlan {
        RoutePlan { mark, table, priority: 60, interfaces: vec!["eth0".to_owned()], output: false }
    }

    #[test]
    fn the_kernels_own_tables_and_the_empty_mark_are_refused() {
        for table in [0, 253, 254, 255] {
            assert!(matches!(check_numbers(&plan(1, table)), Err(RouteError::BadNumber { .. })));
        }
        assert!(matches!(check_numbers(&plan(0, 8300)), Err(RouteError::BadNumber { .. })));
        assert!(check_numbers(&plan(1, 8300)).is_ok());
    }

    #[test]
    fn a_loopback_that_is_down_is_an_error_with_its_cure() {
        assert!(loopback(&[]).unwrap_err().to_string().contains("ip link set lo up"));
    }
}
