//! The policy route by itself: made, adopted, removed, and never at the expense of others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::IpAddr;

use sheer::route::{
    Numbers, PROTOCOL, RouteError, RouteGuard, RoutePlan, choose_numbers, claims, purge, watch_addresses,
};
use sheer_tests::{Feature, Namespace, PATIENCE, missing};

const NUMBERS: Numbers = Numbers { mark: 0x2040, table: 8300, priority: 60 };

/// A namespace with the interfaces `left` and `right`.
fn namespace() -> Namespace {
    let namespace = Namespace::new("route");
    namespace.configure("link add left type veth peer name right\nlink set left up\nlink set right up\n");
    namespace
}

fn plan(interfaces: &[&str]) -> RoutePlan {
    let Numbers { mark, table, priority } = NUMBERS;
    let interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
    RoutePlan { mark, table, priority, interfaces, output: false }
}

/// Runs async code in a namespace, as `sheer run` does: on one thread.
fn inside<T: Send>(namespace: &Namespace, task: impl AsyncFnOnce() -> T + Send) -> T {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(task())
    })
}

/// Installs and forgets, as a killed process does.
fn install_and_crash(namespace: &Namespace, interfaces: &[&str]) {
    inside(namespace, async || std::mem::forget(RouteGuard::install(plan(interfaces)).await.unwrap()));
}

/// The rules that are not the kernel's own, without the priority and the blanks after it.
fn rules(namespace: &Namespace, family: &str) -> Vec<String> {
    let shown = namespace.sh(&format!("ip {family} rule show"));
    let added = shown.lines().filter(|line| line.contains("fwmark"));
    added.map(|line| line.split_once('\t').unwrap().1.trim().to_owned()).collect()
}

fn rule(interface: &str) -> String {
    format!("from all fwmark 0x2040 iif {interface} lookup 8300 proto {PROTOCOL}")
}

/// What stands in our table; empty when there is no such table.
fn routes(namespace: &Namespace, family: &str) -> String {
    namespace.sh(&format!("ip {family} route show table all proto {PROTOCOL}"))
}

fn assert_nothing_there(namespace: &Namespace) {
    for family in ["-4", "-6"] {
        assert_eq!(rules(namespace, family), Vec::<String>::new());
        assert_eq!(routes(namespace, family), "");
    }
}

#[test]
fn it_is_there_in_both_families_and_gone_after_remove() {
    let namespace = namespace();
    inside(&namespace, async || {
        let guard = RouteGuard::install(plan(&["left", "right"])).await.unwrap();
        for family in ["-4", "-6"] {
            assert_eq!(rules(&namespace, family), [rule("left"), rule("right")]);
            assert!(routes(&namespace, family).starts_with("local default dev lo table 8300"));
        }
        guard.remove().await.unwrap();
    });
    assert_nothing_there(&namespace);
}

#[test]
fn a_panic_takes_it_away_too() {
    let namespace = namespace();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        inside(&namespace, async || {
            let _guard = RouteGuard::install(plan(&["left"])).await.unwrap();
            assert_eq!(rules(&namespace, "-4"), [rule("left")]);
            std::panic::panic_any("on purpose");
        });
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
    assert_nothing_there(&namespace);
}

#[test]
fn what_a_crash_left_is_adopted_where_it_fits_and_removed_where_not() {
    let namespace = namespace();
    install_and_crash(&namespace, &["left", "right"]);
    inside(&namespace, async || {
        let guard = RouteGuard::install(plan(&["left"])).await.unwrap();
        assert_eq!(rules(&namespace, "-4"), [rule("left")]);
        assert_eq!(rules(&namespace, "-6"), [rule("left")]);
        guard.remove().await.unwrap();
    });
    assert_nothing_there(&namespace);
}

#[test]
fn purge_finds_the_rules_of_interfaces_that_are_gone() {
    let namespace = namespace();
    install_and_crash(&namespace, &["left", "right"]);
    namespace.configure("link del left\n");
    assert_eq!(rules(&namespace, "-4").len(), 2);
    inside(&namespace, async || purge(NUMBERS.table, NUMBERS.mark).await.unwrap());
    assert_nothing_there(&namespace);
}

#[test]
fn the_rules_and_routes_of_others_survive() {
    let namespace = namespace();
    let foreign = "from all fwmark 0x2040 iif left lookup 8300 proto static";
    namespace.configure(
        "rule add fwmark 0x2040 iif left lookup 8300 priority 60 protocol static\n\
         route add local default dev lo table 8300 protocol static\n",
    );
    inside(&namespace, async || {
        let guard = RouteGuard::install(plan(&["left"])).await.unwrap();
        assert_eq!(rules(&namespace, "-4"), [foreign], "one that says the same is not doubled");
        guard.remove().await.unwrap();
    });
    assert_eq!(rules(&namespace, "-4"), [foreign]);
    assert!(namespace.sh("ip route show table 8300").starts_with("local default dev lo proto static"));
}

#[test]
fn a_table_in_which_others_keep_routes_is_refused_and_left_alone() {
    let namespace = namespace();
    namespace.configure("route add blackhole 203.0.113.0/24 table 8300\n");
    let error = inside(&namespace, async || RouteGuard::install(plan(&["left"])).await.unwrap_err());
    assert!(matches!(error, RouteError::TableInUse { table: 8300, .. }), "{error}");
    assert!(error.to_string().contains("blackhole 203.0.113.0/24"), "{error}");
    assert_nothing_there(&namespace);
    assert!(namespace.sh("ip route show table 8300").contains("blackhole"));
}

#[test]
fn without_ipv6_there_is_only_ipv4() {
    let namespace = namespace();
    namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    inside(&namespace, async || {
        let guard = RouteGuard::install(plan(&["left"])).await.unwrap();
        assert_eq!(guard.families().len(), 1);
        assert_eq!((rules(&namespace, "-4").len(), rules(&namespace, "-6").len()), (1, 0));
        guard.remove().await.unwrap();
    });
    assert_nothing_there(&namespace);
}

#[test]
fn a_loopback_that_is_down_is_refused_with_the_cure() {
    let namespace = namespace();
    namespace.configure("link set lo down\n");
    let error = inside(&namespace, async || RouteGuard::install(plan(&["left"])).await.unwrap_err());
    assert!(error.to_string().contains("ip link set lo up"), "{error}");
    assert_nothing_there(&namespace);
}

#[test]
fn numbers_that_somebody_uses_are_not_chosen() {
    let namespace = namespace();
    install_and_crash(&namespace, &["left"]);
    let next = inside(&namespace, async || choose_numbers(&claims().await.unwrap()).unwrap());
    assert_eq!(
        next,
        Numbers { mark: NUMBERS.mark + 1, table: NUMBERS.table + 1, priority: NUMBERS.priority + 1 }
    );
    // Somebody who looks at one bit of ours claims every number that has it.
    namespace.configure("rule add fwmark 0x2000/0x2000 lookup 77\n");
    let none = inside(&namespace, async || choose_numbers(&claims().await.unwrap()));
    assert!(matches!(none, Err(RouteError::NoFreeNumbers { .. })), "{none:?}");
}

#[test]
fn a_bridge_made_later_is_found_by_a_refresh() {
    if missing(Feature::Bridge, "a bridge made later is found by a refresh") {
        return;
    }
    let namespace = namespace();
    inside(&namespace, async || {
        let guard = RouteGuard::install(plan(&["left"])).await.unwrap();
        namespace.configure("link add name above type bridge\nlink set left master above\n");
        guard.refresh().await.unwrap();
        assert_eq!(rules(&namespace, "-4"), [rule("left"), rule("above")]);
        namespace.configure("link del above\n");
        guard.refresh().await.unwrap();
        assert_eq!(rules(&namespace, "-4"), [rule("left")]);
        guard.remove().await.unwrap();
    });
}

#[test]
fn addresses_that_come_and_go_are_told() {
    let namespace = namespace();
    let address: IpAddr = "203.0.113.5".parse().unwrap();
    inside(&namespace, async || {
        let mut addresses = watch_addresses().await.unwrap();
        for (command, there) in
            [("addr add 203.0.113.5/32 dev left\n", true), ("addr del 203.0.113.5/32 dev left\n", false)]
        {
            namespace.configure(command);
            let told = addresses.wait_for(|set| set.contains(&address) == there);
            tokio::time::timeout(PATIENCE, told).await.expect("nothing was told").unwrap();
        }
    });
}
