//! What a misspelt word may have meant.

use super::error::quoted;

/// Longer words are not compared: nobody misspells them, and the effort grows with the square.
const LONGEST: usize = 64;
/// How much alike two words are that begin alike, by Jaro and Winkler: `dest` and `destination`.
const ALIKE: f64 = 0.87;
/// How many are named where none is close.
const LISTED: usize = 24;
/// How many are compared: nobody has more interfaces by hand.
const COMPARED: usize = 256;

/// The words that come closest, best first, at most three; empty where none is close.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    if word.is_empty() || word.len() > LONGEST {
        return Vec::new();
    }
    let word = word.to_lowercase();
    let known: Vec<&str> = known.into_iter().take(COMPARED).filter(|k| k.len() <= LONGEST).collect();
    // Two changes make anything of a short word.
    let far = if word.chars().count() <= 5 { 1 } else { 2 };
    let mut close: Vec<(usize, &str)> =
        known.iter().map(|k| (strsim::osa_distance(&word, &k.to_lowercase()), *k)).collect();
    close.retain(|(distance, _)| *distance <= far);
    close.sort_unstable();
    close.dedup();
    if let Some((best, _)) = close.first().copied() {
        return close.iter().filter(|(d, _)| *d == best).take(3).map(|(_, k)| *k).collect();
    }
    let alike = known.iter().map(|k| (strsim::jaro_winkler(&word, &k.to_lowercase()), *k));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, k)| k).into_iter().collect()
}

/// Half a sentence: ``did you mean `port`?``, or what there is.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let near: Vec<String> = nearest(word, known.clone()).into_iter().map(quoted).collect();
    if near.is_empty() { there_is(known) } else { format!("did you mean {}?", near.join(" or ")) }
}

fn there_is<'a>(known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<String> = known.into_iter().take(LISTED + 1).map(quoted).collect();
    if known.len() > LISTED {
        known.truncate(LISTED);
        known.push("others".to_owned());
    }
    match known.split_last() {
        None => "there is none".to_owned(),
        Some((only, [])) => format!("there is only {only}"),
        Some((last, others)) => format!("there are {} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 5] = ["name", "port", "destination", "destination_file", "when_down"];

    #[test]
    fn close_words_are_suggested() {
        for (word, meant) in [
            ("prot", "port"),
            ("Port", "port"),
            ("ports", "port"),
            ("when-down", "when_down"),
            ("dest", "destination"),
            ("destinations", "destination"),
        ] {
            assert_eq!(nearest(word, KEYS), [meant], "{word}");
        }
        assert_eq!(nearest("eth", ["eth0", "eth1"]), ["eth0", "eth1"]);
    }

    #[test]
    fn others_get_the_list() {
        assert_eq!(nearest("x", KEYS), [""; 0]);
        assert_eq!(nearest("", KEYS), [""; 0]);
        assert_eq!(nearest(&"port".repeat(100), KEYS), [""; 0]);
        assert_eq!(hint("colour", ["a", "b", "c"]), "there are `a`, `b` and `c`");
        assert_eq!(hint("colour", ["a"]), "there is only `a`");
        assert_eq!(hint("colour", []), "there is none");
        let many: Vec<String> = (0..30).map(|i| format!("veth-{i}")).collect();
        assert!(hint("colour", many.iter().map(String::as_str)).ends_with("`veth-23` and others"));
    }
}
