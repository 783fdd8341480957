//! What `sheer doctor` and a start say about the kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::time::{Duration, Instant};

use sheer::dataplane::{
    Capabilities,
    probe::{Answer, Feature},
};
use sheer_tests::{Lab, Sheer};

/// Where users look features up.
const EXPLAINED: &str = include_str!("../../docs/doctor.md");

#[test]
fn every_feature_is_in_the_documentation_with_the_version_that_brought_it() {
    for feature in Feature::ALL {
        let row = EXPLAINED.lines().find(|line| line.starts_with(&format!("| `{}` |", feature.id())));
        let row = row.unwrap_or_else(|| panic!("{} is not in docs/doctor.md", feature.id()));
        assert!(row.contains(&format!("| {} |", feature.since())), "{row}");
    }
}

#[test]
fn this_kernel_is_asked_about_all_of_them_in_no_time() {
    let before = Instant::now();
    let capabilities = Capabilities::probe();
    let took = before.elapsed();
    for (feature, answer) in capabilities.answers() {
        assert!(!matches!(answer, Answer::Refused(_)), "{feature:?}: {answer:?}");
    }
    // A millisecond or two; a start must not feel it even on a busy machine.
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn the_kernel_decides_how_to_attach_unless_the_config_does() {
    let lab = Lab::new();
    let tcx = Capabilities::probe().has(Feature::Tcx);
    for (wish, expected) in [("auto", tcx), ("clsact", false)] {
        let sheer = Sheer::on(&lab).tcp("80").option("--attach", wish).start();
        assert_eq!(sheer.link_of("clients0").is_some(), expected, "{wish}");
        sheer.stop();
    }
    let insisting = Sheer::on(&lab).tcp("80").option("--attach", "tcx");
    if tcx {
        let sheer = insisting.start();
        assert!(sheer.link_of("clients0").is_some());
        sheer.stop();
    } else {
        let complaint = insisting.start_in_vain();
        assert!(complaint.contains("6.6") && complaint.contains("clsact"), "{complaint}");
        insisting.assert_nothing_left();
    }
}
