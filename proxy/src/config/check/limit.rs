//! `limit`: how much one client may take.

use std::{num::NonZeroU32, time::Duration};

use super::common::Check;
use crate::config::{
    Limit, PerClient,
    collect::Spot,
    error::quoted,
    raw,
    raw::{Field, Item},
    values,
};

/// The most new connections of a client in a second that can be told apart from no limit.
const FASTEST: u32 = 1_000_000;
/// Shorter blocks would be over before the client notices.
const SHORTEST_BLOCK: Duration = Duration::from_secs(1);

pub(super) fn limit(raw: &raw::Limit<'_>, check: &mut Check<'_>) -> Option<Limit> {
    if raw.is_empty {
        let what = "it limits nothing; write for example new_per_second = 100 or concurrent = 50";
        check.found.lacking(raw.spot.at, &raw.spot.key, what);
    }
    let new_per_second = check.value(raw.new_per_second.as_ref(), |n| positive(n, FASTEST));
    let burst = check.value(raw.burst.as_ref(), |n| positive(n, u32::MAX));
    let concurrent = check.value(raw.concurrent.as_ref(), |n| positive(n, u32::MAX));
    let block = check.value(raw.block.as_ref(), block);
    let per = per(raw.per.as_ref(), check);
    if raw.new_per_second.is_none() && !raw.is_empty {
        needs_rate(raw.burst.as_ref().map(|f| &f.spot), "burst", check);
        needs_rate(raw.block.as_ref().map(|f| &f.spot), "block", check);
    }
    Some(Limit {
        new_per_second,
        burst: burst.or(new_per_second).unwrap_or(NonZeroU32::MIN),
        concurrent,
        block,
        per: per.unwrap_or_default(),
    })
}

fn positive(number: i128, most: u32) -> Result<NonZeroU32, String> {
    NonZeroU32::new(values::within(number, 1, most)?).ok_or_else(|| "zero".to_owned())
}

fn block(text: &str) -> Result<Duration, String> {
    match values::duration(text)? {
        time if time < SHORTEST_BLOCK => Err(format!("{} is too short; give at least \"1s\"", quoted(text))),
        time => Ok(time),
    }
}

fn needs_rate(spot: Option<&Spot>, key: &str, check: &mut Check<'_>) {
    if let Some(spot) = spot {
        let what = format!(
            "`{key}` belongs to new_per_second, which is missing; add for example new_per_second = 100"
        );
        check.found.lacking(spot.at, &spot.key, what);
    }
}

/// Lengths of prefixes: up to 32 of IPv4, beyond of IPv6, since nobody tells clients of IPv6 apart by fewer bits.
fn per(field: Option<&Field<Vec<Item<&str>>>>, check: &mut Check<'_>) -> Option<PerClient> {
    let empty =
        "an empty list; leave the key out for single addresses, or write for example [\"/24\", \"/64\"]";
    let lengths = check.list(field, empty, |text| length(text))?;
    let of_v4 = |length: &&u8| **length <= 32;
    let v4: Vec<&u8> = lengths.iter().filter(of_v4).collect();
    let v6: Vec<&u8> = lengths.iter().filter(|l| !of_v4(l)).collect();
    if let (Some(field), true) = (field, v4.len() > 1 || v6.len() > 1) {
        let what = "one length for IPv4 (\"/1\" to \"/32\") and one for IPv6 (\"/33\" to \"/128\"), no more";
        check.found.add(&field.spot, what);
    }
    let default = PerClient::default();
    Some(PerClient { v4: v4.first().map_or(default.v4, |l| **l), v6: v6.first().map_or(default.v6, |l| **l) })
}

fn length(text: &str) -> Result<u8, String> {
    let (slash, digits) = match text.strip_prefix('/') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let parsed = digits.parse::<u8>().ok().filter(|n| (1..=128).contains(n) && !digits.starts_with('+'));
    match parsed {
        Some(length) if slash => Ok(length),
        Some(length) => Err(format!("{} lacks its slash; did you mean \"/{length}\"?", quoted(text))),
        None => Err(format!(
            "{} is no length of a prefix; write \"/1\" to \"/32\" for IPv4, \"/33\" to \"/128\" for IPv6",
            quoted(text)
        )),
    }
}
