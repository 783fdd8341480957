//! Any bytes as a file of prefixes: what is kept are networks, every line is counted once, and writing what was read
//! reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheer::config::{Prefixes, prefixes::read_prefixes};

const MOST: usize = 1000;

fuzz_target!(|bytes: &[u8]| {
    let mut kept = Prefixes::default();
    let Ok(lines) = read_prefixes(bytes, &mut kept, MOST) else { panic!("memory cannot fail to be read") };
    assert_eq!(kept.len(), lines.prefixes.min(MOST));
    assert!(kept.v4.iter().all(|net| net.addr() == net.network()));
    assert!(kept.v6.iter().all(|net| net.addr() == net.network()));
    assert!(lines.bad.is_sorted_by_key(|bad| bad.place));
    let there = bytes.split(|b| *b == b'\n').count();
    assert!(lines.prefixes + lines.bad.len() + lines.more <= there);
    assert!(lines.bad.iter().all(|bad| bad.place.line <= there));

    let v4 = kept.v4.iter().map(ToString::to_string);
    let written: Vec<String> = v4.chain(kept.v6.iter().map(ToString::to_string)).collect();
    let mut again = Prefixes::default();
    let Ok(lines) = read_prefixes(written.join("\r\n").as_bytes(), &mut again, MOST) else {
        panic!("as above")
    };
    assert!(lines.bad.is_empty() && again == kept);
});
