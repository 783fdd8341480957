//! Any text as a configuration: it is fine, or its mistakes have places inside it, in order, and each fits a line.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sheer::config::check::check;

fuzz_target!(|text: &str| {
    let Ok(instance) = "fuzz".parse() else { return };
    // A directory without files.
    match check(text, "fuzz.toml", Path::new("/proc/self/fdinfo/none"), instance) {
        Ok(config) => {
            assert!(!config.services.is_empty() && !config.interfaces.is_empty());
            let _ = config.summary();
        }
        Err(mistakes) => {
            let shown = mistakes.to_string();
            assert_eq!(shown.lines().count(), mistakes.iter().count(), "{shown}");
            let places: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.place).collect();
            assert!(!places.is_empty() && places.is_sorted(), "{shown}");
            let lines = text.split('\n').count();
            assert!(places.iter().all(|place| place.line <= lines && place.column >= 1), "{shown}");
        }
    }
});
